"""Publishes committed events: in commit order, and never two of one lane at once.

A row leaves the store once JetStream has stored it. Its id is its ``Nats-Msg-Id``, so a row that is sent twice within
the stream's dedupe window is stored once; one in doubt for longer is looked up first. A dead letter demands that its
subject is still empty, which holds for ever.
"""

import asyncio
import collections
import datetime as dt
import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from models.errors import ApiError, BrokerError, BrokerUnavailable, StoreError
from state.store import OutboxEntry, OutboxRow
from streams.broker import WRONG_LAST_SEQUENCE, Broker
from streams.lookup import MSG_ID, stored_ids
from streams.provision import stream_info
from streams.topology import DEAD_LETTER_PREFIX, DEAD_LETTERS, NANOSECONDS, STREAMS

log = logging.getLogger(__name__)

WAVE_COUNT = 256
WAVE_BYTES = 4 * 1024 * 1024
CLOCK_RESERVE_S = 60
FULL_COUNT = 10_000
FULL_BYTES = 32 * 1024 * 1024
BACKOFF_LIMIT_S = 5.0
SETTLED_POLL_S = 0.02
LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"

PUBLIC_STREAMS = {
    pattern.partition(".")[0]: stream.name for stream in STREAMS if stream.is_public for pattern in stream.subjects
}
"""The streams in which an id alone tells whether an event is stored; a dead letter's subject does."""


@attrs.define(eq=False)
class Waiting:
    """A committed row, and what to call once JetStream has stored it.

    It is in doubt once it may have been stored without our knowing: by an earlier process, or by an attempt that got no
    answer. ``failures`` are attempts in a row; the next one comes after ``not_before``; both instants are monotonic.

    Args:
        row: an entry alone when the payload is to be read at the time of sending.
    """

    row: OutboxRow | OutboxEntry
    on_stored: Callable[[], None] | None = None
    is_in_doubt: bool = False
    is_stored: bool = False
    failures: int = 0
    failed_at: float = 0.0
    not_before: float = 0.0
    error: str | None = None


@attrs.define
class Target:
    """A stream: whether a wave is on its way there, and the waves in a row that got no answer at all."""

    is_busy: bool = False
    silences: int = 0
    silent_at: float = 0.0
    not_before: float = 0.0
    logged_error: str | None = None


class Outbox:
    """The publisher of one worker process.

    Each stream gets waves of its own, so that one that does not answer holds up no other; as long as it is silent, one
    row asks whether it is back. A row that is refused waits alone, with its lane.

    Args:
        forget: told the id of every row that is stored, to have it deleted.
        fetch: reads a row from the store; None when it is there no more, for another process has sent it.
    """

    def __init__(
        self, broker: Broker, *, forget: Callable[[str], None], fetch: Callable[[str], OutboxRow | None]
    ) -> None:
        self._broker = broker
        self._forget = forget
        self._fetch = fetch
        self._lanes: dict[str, collections.deque[Waiting]] = {}
        self._count = 0
        self._byte_count = 0
        self._targets: collections.defaultdict[str, Target] = collections.defaultdict(Target)
        self._wake = asyncio.Event()

    def load(self, rows: Iterable[OutboxEntry]) -> None:
        """Takes over the rows that an earlier run, or another process, left."""
        known = {waiting.row.id for waiting in self._all()}
        for row in rows:
            if row.id not in known:
                self.enqueue(Waiting(row, is_in_doubt=True))

    @property
    def unsent_count(self) -> int:
        """Rows that are committed and not yet stored by JetStream."""
        return self._count

    @property
    def is_full(self) -> bool:
        """Whether workers should stop pulling until events have left."""
        return self._count > FULL_COUNT or self._byte_count > FULL_BYTES

    @property
    def error(self) -> str | None:
        """Why a row that waits could not be sent."""
        return next((waiting.error for waiting in self._heads() if waiting.error is not None), None)

    def enqueue(self, waiting: Waiting) -> None:
        """Takes a row that was committed just now; beyond the bound of bytes the store alone keeps its payload."""
        row = waiting.row
        self._count += 1
        self._byte_count += row.size_bytes
        if self._byte_count > FULL_BYTES and isinstance(row, OutboxRow):
            waiting.row = row.entry
        self._lanes.setdefault(row.lane, collections.deque()).append(waiting)
        self._wake.set()

    async def settled(self) -> None:
        """Waits until every row is stored, or can't be: it, or its stream, was tried once more without success.

        Nothing can be tried without a connection.
        """
        begun_at = time.monotonic()
        for target in self._targets.values():
            target.not_before = 0.0
        for waiting in self._heads():
            waiting.not_before = 0.0
        self._wake.set()
        while self._broker.connected.is_set() and any(
            max(waiting.failed_at, self._target(waiting).silent_at) < begun_at for waiting in self._heads()
        ):
            await asyncio.sleep(SETTLED_POLL_S)

    async def run(self) -> None:
        """Publishes until cancelled; what is not stored by then stays in the store."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._broker.connected.wait()
                self._wake.clear()
                waves, wait_s = self._choose_waves(time.monotonic())
                for family, wave in waves.items():
                    self._targets[family].is_busy = True
                    group.create_task(self._send_wave(family, wave), name=f"outbox-{family}")
                await self._pause(wait_s)

    async def _pause(self, wait_s: float | None) -> None:
        """Waits for new rows, for a wave's end, or until a row that failed may be tried again."""
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            return

    def _all(self) -> Iterator[Waiting]:
        return itertools.chain.from_iterable(self._lanes.values())

    def _heads(self) -> Iterator[Waiting]:
        """The first row of each lane."""
        return (lane[0] for lane in self._lanes.values())

    def _target(self, waiting: Waiting) -> Target:
        return self._targets[_family(waiting.row)]

    def _choose_waves(self, now: float) -> tuple[dict[str, list[Waiting]], float | None]:
        """The rows that may be tried now, by the stream's first token, and the seconds until others may be."""
        waves: dict[str, list[Waiting]] = {}
        sizes: collections.Counter[str] = collections.Counter()
        soonest = math.inf
        for waiting in self._heads():
            family = _family(waiting.row)
            target = self._targets[family]
            if target.is_busy:
                continue
            due = max(waiting.not_before, target.not_before)
            if due > now:
                soonest = min(soonest, due)
                continue
            wave = waves.setdefault(family, [])
            if len(wave) < (1 if target.silences else WAVE_COUNT) and sizes[family] < WAVE_BYTES:
                wave.append(waiting)
                sizes[family] += waiting.row.size_bytes
        return waves, None if math.isinf(soonest) else soonest - now

    async def _send_wave(self, family: str, wave: Sequence[Waiting]) -> None:
        """Publishes rows of different lanes at once, and notes whether their stream answers."""
        target = self._targets[family]
        await self._look_up(family, wave)
        answers = await asyncio.gather(*(self._publish(waiting, target) for waiting in wave))
        if any(answers):
            target.silences, target.silent_at = 0, 0.0
        else:
            target.silences += 1
            target.silent_at = time.monotonic()
            target.not_before = target.silent_at + _backoff_s(target.silences)
        for waiting in wave:
            if waiting.is_stored:
                target.logged_error = None
                self._let_go(waiting)
        target.is_busy = False
        self._wake.set()

    def _let_go(self, waiting: Waiting) -> None:
        """Forgets the first row of a lane, which is stored; its lane goes to the end."""
        name = waiting.row.lane
        lane = self._lanes.pop(name)
        lane.popleft()
        if lane:
            self._lanes[name] = lane
        self._count -= 1
        self._byte_count -= waiting.row.size_bytes
        self._forget(waiting.row.id)
        if waiting.on_stored:
            waiting.on_stored()

    async def _look_up(self, family: str, wave: Sequence[Waiting]) -> None:
        """Finds which rows in doubt are stored, as far as their stream's dedupe window no longer tells.

        All rows in doubt of the stream are looked up at once, whether or not it is their turn. If it can't be asked,
        none of them may be sent.
        """
        stream = PUBLIC_STREAMS.get(family)
        if stream is None or not any(waiting.is_in_doubt for waiting in wave):
            return
        doubtful = [waiting for waiting in self._all() if waiting.is_in_doubt and _family(waiting.row) == family]
        try:
            found = await self._look_up_in(stream, [waiting.row for waiting in doubtful])
        except (BrokerUnavailable, ApiError) as error:
            for waiting in doubtful:
                self._put_off(waiting, str(error))
            return
        for waiting in doubtful:
            waiting.is_stored = waiting.row.id in found
            waiting.is_in_doubt = False

    async def _look_up_in(self, stream: str, rows: Sequence[OutboxRow | OutboxEntry]) -> set[str]:
        info = await stream_info(self._broker, stream)
        window_s = info["config"]["duplicate_window"] / NANOSECONDS if info else 0.0
        old = [row for row in rows if time.time() - row.created > window_s / 2]
        if info is None or not old:
            return set()
        since = dt.datetime.fromtimestamp(min(row.created for row in old) - CLOCK_RESERVE_S, dt.UTC).isoformat()
        subjects, ids = {row.subject for row in old}, {row.id for row in old}
        return await stored_ids(self._broker, stream, subjects=subjects, since=since, wanted=ids)

    async def _publish(self, waiting: Waiting, target: Target) -> bool:
        """Publishes one row, unless it is known to be stored, or in doubt; False when its stream gave no answer."""
        if waiting.is_stored:
            return True
        if waiting.is_in_doubt and _family(waiting.row) in PUBLIC_STREAMS:
            return True  # put off by the look-up
        try:
            row = waiting.row if isinstance(waiting.row, OutboxRow) else self._fetch(waiting.row.id)
            if row is not None:
                await self._publish_row(row)
        except BrokerUnavailable as error:
            waiting.is_in_doubt = True
            self._put_off(waiting, str(error))
            return False
        except (BrokerError, StoreError) as error:
            if str(error) not in (target.logged_error, waiting.error):
                log.error("an event can't be published", extra={"fields": {"id": waiting.row.id, "error": str(error)}})
            target.logged_error = str(error)
            self._put_off(waiting, str(error))
        else:
            waiting.is_stored = True
        return True

    def _put_off(self, waiting: Waiting, error: str) -> None:
        """Has a row wait, longer each time."""
        waiting.failures += 1
        waiting.failed_at = time.monotonic()
        waiting.not_before = waiting.failed_at + _backoff_s(waiting.failures)
        waiting.error = error

    async def _publish_row(self, row: OutboxRow) -> None:
        if row.subject.startswith(DEAD_LETTER_PREFIX):
            await self._publish_once_for_ever(row)
        else:
            await self._broker.publish(row.subject, row.payload, {**row.headers, MSG_ID: row.id})

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


def _family(row: OutboxRow | OutboxEntry) -> str:
    """The first token of a subject, which tells its stream."""
    return row.subject.partition(".")[0]


def _backoff_s(failures: int) -> float:
    return random.uniform(0.5, 1) * min(BACKOFF_LIMIT_S, 0.05 * 2.0 ** min(failures, 8))
