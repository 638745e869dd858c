"""Publishes committed events: in commit order, and never two of one lane at once.

A row leaves the store once JetStream has stored it. Its id is its ``Nats-Msg-Id``, so a row that is sent twice within
the stream's dedupe window is stored once; one in doubt for longer is looked up first. A dead letter demands that its
subject is still empty, which holds for ever.
"""

import asyncio
import collections
import datetime as dt
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from models.errors import ApiError, BrokerError, BrokerUnavailable
from state.store import OutboxRow
from streams.broker import WRONG_LAST_SEQUENCE, Broker
from streams.lookup import MSG_ID, stored_ids
from streams.patterns import matches
from streams.provision import stream_info
from streams.topology import DEAD_LETTER_PREFIX, DEAD_LETTERS, NANOSECONDS, STREAMS

log = logging.getLogger(__name__)

WAVE_COUNT = 256
CLOCK_RESERVE_S = 60
FULL_COUNT = 10_000
LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"


@attrs.define(eq=False)
class Waiting:
    """A committed row, and what to call once JetStream has stored it.

    It is in doubt once it may have been stored without our knowing: by an earlier process, or by an attempt that got no
    answer.
    """

    row: OutboxRow
    on_stored: Callable[[], None] | None = None
    is_in_doubt: bool = False


class Outbox:
    """The publisher of one worker process.

    Args:
        forget: told the id of every row that is stored, to have it deleted.
    """

    def __init__(self, broker: Broker, *, forget: Callable[[str], None]) -> None:
        self._broker = broker
        self._forget = forget
        self._rows: collections.deque[Waiting] = collections.deque()
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self.error: str | None = None

    def load(self, rows: Iterable[OutboxRow]) -> None:
        """Takes over the rows that an earlier run, or another process, left."""
        known = {waiting.row.id for waiting in self._rows}
        for row in rows:
            if row.id not in known:
                self.enqueue(Waiting(row, is_in_doubt=True))

    @property
    def unsent_count(self) -> int:
        """Rows that are committed and not yet stored by JetStream."""
        return len(self._rows)

    @property
    def is_full(self) -> bool:
        """Whether workers should stop pulling until events have left."""
        return len(self._rows) > FULL_COUNT

    def enqueue(self, waiting: Waiting) -> None:
        """Takes a row that was committed just now."""
        self._rows.append(waiting)
        self._empty.clear()
        self._wake.set()

    async def emptied(self) -> None:
        """Waits until every row is stored."""
        await self._empty.wait()

    async def run(self) -> None:
        """Publishes until cancelled; what is not stored by then stays in the store."""
        failures = 0
        while True:
            await self._wake.wait()
            await self._broker.connected.wait()
            wave = self._choose_wave()
            known = await self._look_up([waiting.row for waiting in wave if waiting.is_in_doubt])
            stored = await asyncio.gather(*(self._publish(waiting, known) for waiting in wave))
            self._settle({waiting.row.id: is_stored for waiting, is_stored in zip(wave, stored, strict=True)})
            failures = 0 if all(stored) else min(failures + 1, 8)
            if not self._rows:
                self._wake.clear()
                self._empty.set()
            elif failures:
                await asyncio.sleep(random.uniform(0.5, 1) * min(5.0, 0.05 * 2**failures))

    def _choose_wave(self) -> list[Waiting]:
        """The first waiting row of each lane, in order."""
        wave: dict[str, Waiting] = {}
        for waiting in self._rows:
            wave.setdefault(waiting.row.lane, waiting)
            if len(wave) >= WAVE_COUNT:
                break
        return list(wave.values())

    def _settle(self, stored: Mapping[str, bool]) -> None:
        remaining = collections.deque(waiting for waiting in self._rows if not stored.get(waiting.row.id))
        for waiting in self._rows:
            if stored.get(waiting.row.id):
                self._forget(waiting.row.id)
                if waiting.on_stored:
                    waiting.on_stored()
        self._rows = remaining

    async def _look_up(self, rows: Sequence[OutboxRow]) -> set[str] | None:
        """Finds which rows in doubt are stored, as far as their streams' dedupe windows no longer tell.

        Returns:
            The ids of stored rows; None when a stream could not be asked, so that no row in doubt may be sent.
        """
        found: set[str] = set()
        try:
            for stream in STREAMS:
                mine = [
                    row for row in rows if stream.is_public and any(matches(p, row.subject) for p in stream.subjects)
                ]
                if mine:
                    found |= await self._look_up_in(stream.name, mine)
        except (BrokerUnavailable, ApiError) as error:
            self.error = str(error)
            return None
        return found

    async def _look_up_in(self, stream: str, rows: Sequence[OutboxRow]) -> set[str]:
        info = await stream_info(self._broker, stream)
        window_s = info["config"]["duplicate_window"] / NANOSECONDS if info else 0.0
        old = [row for row in rows if time.time() - row.created > window_s / 2]
        if info is None or not old:
            return set()
        since = dt.datetime.fromtimestamp(min(row.created for row in old) - CLOCK_RESERVE_S, dt.UTC).isoformat()
        subjects, ids = {row.subject for row in old}, {row.id for row in old}
        return await stored_ids(self._broker, stream, subjects=subjects, since=since, wanted=ids)

    async def _publish(self, waiting: Waiting, known: set[str] | None) -> bool:
        """Publishes one row, unless it is known to be stored; False when it has to be tried again."""
        row = waiting.row
        if waiting.is_in_doubt and known is None:
            return False
        if known and row.id in known:
            return True
        waiting.is_in_doubt = True
        try:
            if row.subject.startswith(DEAD_LETTER_PREFIX):
                await self._publish_once_for_ever(row)
            else:
                await self._broker.publish(row.subject, row.payload, {**row.headers, MSG_ID: row.id})
        except BrokerUnavailable as error:
            self.error = str(error)
            return False
        except BrokerError as error:
            if self.error != str(error):
                log.error("an event can't be published", extra={"fields": {"id": row.id, "error": str(error)}})
            self.error = str(error)
            return False
        if known is not None:
            self.error = None
        return True

    async def _publish_once_for_ever(self, row: OutboxRow) -> None:
        """Publishes a dead letter to a subject of its own, on condition that it is not there yet."""
        headers = {**row.headers, MSG_ID: row.id}
        try:
            await self._broker.publish(row.subject, row.payload, {**headers, LAST_SUBJECT_SEQUENCE: "0"})
        except ApiError as error:
            if error.code != WRONG_LAST_SEQUENCE:
                raise
            last_id, last_seq = await self._last_on(row.subject)
            if last_id != row.id:  # the same place of an earlier creation of the stream
                await self._broker.publish(row.subject, row.payload, {**headers, LAST_SUBJECT_SEQUENCE: str(last_seq)})

    async def _last_on(self, subject: str) -> tuple[str, int]:
        message = await self._broker.last_message(DEAD_LETTERS, subject)
        return message.headers.get(MSG_ID, ""), message.seq
