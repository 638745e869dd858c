"""Publishes committed events: in commit order, and never two of one lane at once.

A row leaves the store once JetStream has stored it. Its id is its ``Nats-Msg-Id``, so a row that is sent twice within
the stream's dedupe window is stored once; one in doubt for longer is looked up first. A dead letter demands that its
subject is still empty, which holds for ever.
"""

import asyncio
import collections
import datetime as dt
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence

import attrs

from models.errors import ApiError, BrokerError, BrokerUnavailable
from state.store import OutboxRow
from streams.broker import WRONG_LAST_SEQUENCE, Broker
from streams.lookup import MSG_ID, stored_ids
from streams.patterns import matches
from streams.provision import stream_info
from streams.topology import DEAD_LETTER_PREFIX, DEAD_LETTERS, NANOSECONDS, STREAMS, StreamSpec

log = logging.getLogger(__name__)

WAVE_COUNT = 256
CLOCK_RESERVE_S = 60
FULL_COUNT = 10_000
FULL_BYTES = 32 * 1024 * 1024
BACKOFF_LIMIT_S = 5.0
SETTLED_POLL_S = 0.02
LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"


@attrs.define(eq=False)
class Waiting:
    """A committed row, and what to call once JetStream has stored it.

    It is in doubt once it may have been stored without our knowing: by an earlier process, or by an attempt that got no
    answer. ``failures`` are attempts in a row; the next one comes after ``not_before``; both instants are monotonic.
    """

    row: OutboxRow
    on_stored: Callable[[], None] | None = None
    is_in_doubt: bool = False
    is_stored: bool = False
    failures: int = 0
    failed_at: float = 0.0
    not_before: float = 0.0


class Outbox:
    """The publisher of one worker process.

    A row that is refused waits alone, with its lane; a stream that does not answer has all its rows wait. Neither holds
    up the others.

    Args:
        forget: told the id of every row that is stored, to have it deleted.
    """

    def __init__(self, broker: Broker, *, forget: Callable[[str], None]) -> None:
        self._broker = broker
        self._forget = forget
        self._rows: collections.deque[Waiting] = collections.deque()
        self._byte_count = 0
        self._silences: dict[str, tuple[int, float]] = {}
        self._wake = asyncio.Event()
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
        return len(self._rows) > FULL_COUNT or self._byte_count > FULL_BYTES

    def enqueue(self, waiting: Waiting) -> None:
        """Takes a row that was committed just now."""
        self._rows.append(waiting)
        self._byte_count += len(waiting.row.payload)
        self._wake.set()

    async def settled(self) -> None:
        """Waits until every row is stored, or was tried once more without success."""
        begun_at = time.monotonic()
        while any(waiting.failed_at < begun_at for waiting in self._heads()):
            await asyncio.sleep(SETTLED_POLL_S)

    async def run(self) -> None:
        """Publishes until cancelled; what is not stored by then stays in the store."""
        while True:
            await self._broker.connected.wait()
            self._wake.clear()
            wave, wait_s = self._choose_wave(time.monotonic())
            if not wave:
                await self._pause(wait_s)
                continue
            is_certain = await self._look_up(wave)
            await asyncio.gather(*(self._publish(waiting, is_certain=is_certain) for waiting in wave))
            self._settle()
            await asyncio.sleep(0)

    async def _pause(self, wait_s: float | None) -> None:
        """Waits for new rows, or until one that failed may be tried again."""
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            return

    def _heads(self) -> list[Waiting]:
        """The first waiting row of each lane, in order."""
        heads: dict[str, Waiting] = {}
        for waiting in self._rows:
            heads.setdefault(waiting.row.lane, waiting)
        return list(heads.values())

    def _choose_wave(self, now: float) -> tuple[list[Waiting], float | None]:
        """The lanes' first rows that may be tried now; without any, the seconds until one may, if there are rows."""
        wave: list[Waiting] = []
        soonest = math.inf
        for waiting in self._heads():
            due = max(waiting.not_before, self._silences.get(_family(waiting.row), (0, 0.0))[1])
            if due <= now:
                wave.append(waiting)
                if len(wave) >= WAVE_COUNT:
                    break
            else:
                soonest = min(soonest, due)
        return wave, None if math.isinf(soonest) else soonest - now

    def _settle(self) -> None:
        remaining: collections.deque[Waiting] = collections.deque()
        for waiting in self._rows:
            if not waiting.is_stored:
                remaining.append(waiting)
                continue
            self._byte_count -= len(waiting.row.payload)
            self._forget(waiting.row.id)
            if waiting.on_stored:
                waiting.on_stored()
        self._rows = remaining

    async def _look_up(self, wave: Sequence[Waiting]) -> bool:
        """Finds which rows in doubt are stored, as far as their streams' dedupe windows no longer tell.

        All rows in doubt of a stream are looked up at once, whether or not it is their turn.

        Returns:
            False when a stream could not be asked, so that no row in doubt may be sent.
        """
        if not any(waiting.is_in_doubt for waiting in wave):
            return True
        try:
            for stream in STREAMS:
                mine = [waiting for waiting in self._rows if waiting.is_in_doubt and _is_in(stream, waiting.row)]
                found = await self._look_up_in(stream.name, [waiting.row for waiting in mine]) if mine else set()
                for waiting in mine:
                    waiting.is_stored = waiting.row.id in found
                    waiting.is_in_doubt = False
        except (BrokerUnavailable, ApiError) as error:
            self.error = str(error)
            return False
        return True

    async def _look_up_in(self, stream: str, rows: Sequence[OutboxRow]) -> set[str]:
        info = await stream_info(self._broker, stream)
        window_s = info["config"]["duplicate_window"] / NANOSECONDS if info else 0.0
        old = [row for row in rows if time.time() - row.created > window_s / 2]
        if info is None or not old:
            return set()
        since = dt.datetime.fromtimestamp(min(row.created for row in old) - CLOCK_RESERVE_S, dt.UTC).isoformat()
        subjects, ids = {row.subject for row in old}, {row.id for row in old}
        return await stored_ids(self._broker, stream, subjects=subjects, since=since, wanted=ids)

    async def _publish(self, waiting: Waiting, *, is_certain: bool) -> None:
        """Publishes one row, unless it is known to be stored or in doubt for good reason."""
        row = waiting.row
        if waiting.is_stored:
            return
        if waiting.is_in_doubt and not is_certain:
            self._put_off(waiting)
            return
        try:
            if row.subject.startswith(DEAD_LETTER_PREFIX):
                await self._publish_once_for_ever(row)
            else:
                await self._broker.publish(row.subject, row.payload, {**row.headers, MSG_ID: row.id})
        except BrokerUnavailable as error:
            waiting.is_in_doubt = True
            self.error = str(error)
            self._fall_silent(_family(row))
            self._put_off(waiting)
        except BrokerError as error:
            if self.error != str(error):
                log.error("an event can't be published", extra={"fields": {"id": row.id, "error": str(error)}})
            self.error = str(error)
            self._put_off(waiting)
        else:
            waiting.is_stored = True
            self._silences.pop(_family(row), None)
            if is_certain:
                self.error = None

    def _put_off(self, waiting: Waiting) -> None:
        """Has a row wait, longer each time."""
        waiting.failures += 1
        waiting.failed_at = time.monotonic()
        waiting.not_before = waiting.failed_at + _backoff_s(waiting.failures)

    def _fall_silent(self, family: str) -> None:
        """Has all rows of a stream wait that gives no answer; the failures of one wave count once."""
        now = time.monotonic()
        count, until = self._silences.get(family, (0, 0.0))
        if until <= now:
            self._silences[family] = count + 1, now + _backoff_s(count + 1)

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


def _family(row: OutboxRow) -> str:
    """The first token of a subject, which tells its stream."""
    return row.subject.partition(".")[0]


def _is_in(stream: StreamSpec, row: OutboxRow) -> bool:
    """Whether a row goes to this stream, and its id alone tells whether it is stored; a dead letter's subject does."""
    return stream.is_public and any(matches(pattern, row.subject) for pattern in stream.subjects)


def _backoff_s(failures: int) -> float:
    return random.uniform(0.5, 1) * min(BACKOFF_LIMIT_S, 0.05 * 2.0 ** min(failures, 8))
