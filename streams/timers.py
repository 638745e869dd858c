"""Publishes the ticks of timers, in the process that owns the store.

A tick is published on condition that the last message of its subject is still the one that this publisher knows, so of
two publishers one succeeds. Instants that passed while nobody published are made up for by the newest of them alone.
"""

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Iterable

import msgspec

from models.codec import decoder_for
from models.errors import ApiError, BrokerError, BrokerUnavailable, PayloadError
from streams.broker import MESSAGE_NOT_FOUND, WRONG_LAST_SEQUENCE, Broker
from streams.lookup import MSG_ID
from streams.outbox import LAST_SUBJECT_SEQUENCE
from streams.ticks import Tick, Timer
from streams.topology import TIMERS

log = logging.getLogger(__name__)

LOOK_S = 5.0
RETRY_S = 1.0
OVERTAKEN_S = 0.05
AHEAD = dt.timedelta(minutes=1)
"""A last instant that is further ahead of the clock than this is told: somebody's clock is, or was, wrong."""
LATEST = dt.datetime(9000, 1, 1, tzinfo=dt.UTC)
"""No calendar goes on from an instant after this one."""
WRONG_LAST_SEQUENCE_IN_FLIGHT = 10164
"""What a cluster says while another publisher's message of the same subject is on its way."""

_decode = decoder_for(Tick)


def utc_now() -> dt.datetime:
    """The wall clock."""
    return dt.datetime.now(dt.UTC)


class Timers:
    """The publisher of all timers of an app.

    Args:
        now: the wall clock.
    """

    def __init__(self, broker: Broker, timers: Iterable[Timer], *, now: Callable[[], dt.datetime] = utc_now) -> None:
        self._broker = broker
        self._timers = list(timers)
        self._now = now
        self._errors: dict[str, str] = {}
        self._lasts: dict[str, dt.datetime] = {}

    def troubles(self) -> dict[str, str]:
        """Why timers don't fire, by their names."""
        ahead = {name: last for name, last in self._lasts.items() if last - self._now() > AHEAD}
        return {name: f"it fired for {last.isoformat()}, ahead of the clock" for name, last in ahead.items()} | (
            self._errors
        )

    async def run(self) -> None:
        """Publishes until cancelled."""
        if not self._timers:
            await asyncio.Event().wait()
        async with asyncio.TaskGroup() as group:
            for timer in self._timers:
                group.create_task(self._keep(timer), name=timer.subject)

    async def _keep(self, timer: Timer) -> None:
        started_at = self._now()
        while True:
            await self._broker.connected.wait()
            try:
                last, last_seq = await self._last(timer)
                while True:
                    if last:
                        self._lasts[timer.name] = last
                    due = next_due(timer, last, now=self._now(), started_at=started_at)
                    if due > self._now():  # nothing waits to be published
                        self._errors.pop(timer.name, None)
                    await self._wait_for(due)
                    last_seq = await self._publish(timer, due, last_seq)
                    last = due
                    self._errors.pop(timer.name, None)
            except ApiError as error:
                if error.code in (WRONG_LAST_SEQUENCE, WRONG_LAST_SEQUENCE_IN_FLIGHT):  # another process was first
                    await asyncio.sleep(OVERTAKEN_S)
                else:
                    await self._complain(timer, error)
            except BrokerError as error:
                await self._complain(timer, error)

    async def _complain(self, timer: Timer, error: BrokerError) -> None:
        if timer.name not in self._errors and not isinstance(error, BrokerUnavailable):
            log.error("a timer can't fire", extra={"fields": {"timer": timer.name, "error": str(error)}})
        self._errors[timer.name] = str(error)
        await asyncio.sleep(RETRY_S)

    async def _last(self, timer: Timer) -> tuple[dt.datetime | None, int]:
        """The instant that was published last, and its message's sequence."""
        try:
            message = await self._broker.last_message(TIMERS, timer.subject)
        except ApiError as error:
            if error.code == MESSAGE_NOT_FOUND:
                return None, 0
            raise
        try:
            if (at := _decode(message.payload).at) < LATEST:
                return at, message.seq
        except PayloadError:
            log.debug("no tick on a timer's subject", exc_info=True)
        return dt.datetime.fromtimestamp(message.ts / 1e9, dt.UTC), message.seq  # a stranger's; its time serves as well

    async def _wait_for(self, due: dt.datetime) -> None:
        """Waits until the wall clock shows an instant; a clock that is set is seen after a moment."""
        while (left_s := (due - self._now()).total_seconds()) > 0:
            await asyncio.sleep(min(left_s, LOOK_S))

    async def _publish(self, timer: Timer, due: dt.datetime, last_seq: int) -> int:
        payload = msgspec.json.encode(Tick(name=timer.name, at=due))
        headers = {MSG_ID: f"{timer.name}:{due.isoformat()}", LAST_SUBJECT_SEQUENCE: str(last_seq)}
        return (await self._broker.publish(timer.subject, payload, headers)).seq


def next_due(timer: Timer, last: dt.datetime | None, *, now: dt.datetime, started_at: dt.datetime) -> dt.datetime:
    """The instant that is published next: the newest missed one if there is any, else the next one.

    Args:
        last: the instant that was published last; a timer that never fired has missed nothing.
    """
    if last is None:
        return timer.next_after(started_at)
    newest = timer.newest_until(now)
    return newest if newest > last else timer.next_after(max(now, last))
