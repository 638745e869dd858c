"""The way of an answered decision into the stream DECISIONS, which no answer ever waits for.

It owns the buffer, the choice of what is logged under pressure, and the one task that publishes. While NATS can't take
decisions they go to a spool on disk (streams/spool.py), which is published first once it can. It refuses to know what a
decision holds: whoever answers encodes it, with the rate that ``admit`` returned. streams/batch_publisher.py sends.

Order is that of writing. A decision is stored once, but for two cases, each of at most one batch (500): the connection
is lost before the answer to a batch and stays away for longer than the stream's dedupe window (10 minutes), or this
process is killed then and started again after that time. A killed process loses what is in its memory: usually what
it wrote in the last 20 ms, and up to five seconds of it while an answer of NATS is awaited that does not come.
"""

import asyncio
import collections
import contextlib
import itertools
import logging
import random
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Literal

import attrs

from models.errors import StoreError
from streams.admission import admission_rate, is_admitted
from streams.batch_publisher import BatchPublisher, Published
from streams.batches import BATCH_LIMIT_BYTES, BATCH_LIMIT_COUNT, HEADERS_BYTES
from streams.broker import Broker
from streams.health import DecisionFacts
from streams.spool import Record, Spools, size_on_disk
from streams.topology import HEADER_BUDGET_BYTES

log = logging.getLogger(__name__)

SUBJECT = re.compile(r"decisions(\.[A-Za-z0-9_-]+)+")
LINGER_S = 0.02
"""How long decisions are collected before they leave together: larger batches cost less, on both sides."""
IDLE_S = 1.0
ANSWER_S = 5.0
PRESSED_S = 1.0
"""How long an answer is waited for while the buffer is more than half full; ANSWER_S otherwise."""
FLUSH_S = 2.0
BACKOFF_LIMIT_S = 5.0
SPOOL_PAUSE_S = 1.0
SPOOL_COUNT = 2000
SPOOL_BYTES = 8 * 1024 * 1024
RECENT_S = 60.0
"""For how long /health speaks of a loss."""

Loss = Literal["full", "too_large", "subject"]


@attrs.frozen(kw_only=True)
class DecisionLimits:
    """What may wait, in memory and on disk."""

    buffer_count: int = attrs.field(default=10_000, validator=attrs.validators.ge(1))
    buffer_bytes: int = attrs.field(default=64 * 1024 * 1024, validator=attrs.validators.ge(1))
    spool_bytes: int = attrs.field(default=256 * 1024 * 1024, validator=attrs.validators.ge(1))


class DecisionLog:
    """The decision log of one process; decisions are written on its event loop.

    Until ``publishing`` is entered, and for ever when NATS is disabled, nothing is logged, which is no fault.

    Args:
        folder: where spools are, those of killed processes included.
    """

    def __init__(self, folder: Path, *, limits: DecisionLimits | None = None) -> None:
        self._limits = limits or DecisionLimits()
        self._spools = Spools(folder, limit_bytes=self._limits.spool_bytes)
        self._broker: Broker | None = None
        self._buffer: collections.deque[Record] = collections.deque()
        self._buffer_bytes = 0
        self._chunk: Sequence[Record] = ()
        self._name = secrets.token_hex(6)
        self._numbers = itertools.count(1)
        self._published = self._sampled_out = 0
        self._dropped: dict[str, int] = {"full": 0, "too_large": 0, "subject": 0}
        self._dropped_at: float | None = None
        self._torn_count = 0
        self._failures = 0
        self._not_before = self._spool_not_before = 0.0
        self._error: str | None = None
        self._is_broken = False
        self._spool_error: str | None = None
        self._stop_at: float | None = None
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()

    def admit(self, request_id: str) -> float | None:
        """The rate under which the decision on this request is logged; None: it is not to be written."""
        if self._broker is None or self._is_broken:
            return None
        rate = admission_rate(self._fill())
        if is_admitted(request_id, rate):
            return rate
        self._sampled_out += 1
        return None

    def write(self, subject: str, payload: bytes) -> bool:
        """Takes a decision, without waiting; False: it is lost, and counted.

        True says that it is on its way: it is stored some 20 ms later, or lies on disk until NATS takes it.
        """
        if self._broker is None or self._is_broken:
            return False
        if not SUBJECT.fullmatch(subject):
            return self._drop("subject")
        if len(payload) > self._broker.max_payload_bytes - HEADER_BUDGET_BYTES - HEADERS_BYTES:
            return self._drop("too_large")
        record = Record(id=f"{self._name}-{next(self._numbers)}", subject=subject, payload=payload)
        size = size_on_disk(record)
        if len(self._buffer) >= self._limits.buffer_count or self._buffer_bytes + size > self._limits.buffer_bytes:
            return self._drop("full")
        self._buffer.append(record)
        self._buffer_bytes += size
        self._wake.set()
        if len(self._buffer) >= BATCH_LIMIT_COUNT:
            self._hurry.set()
        return True

    def facts(self) -> DecisionFacts:
        """How it is, as of now."""
        dropped_at = self._dropped_at
        return DecisionFacts(
            is_enabled=self._broker is not None,
            is_connected=self._broker is not None and self._broker.is_connected,
            rate=admission_rate(self._fill()),
            buffered=len(self._buffer),
            spooled=self._spools.count,
            spool_bytes=self._spools.size_bytes,
            published=self._published,
            sampled_out=self._sampled_out,
            dropped={**self._dropped, "torn": self._spools.torn_count},
            is_dropping=dropped_at is not None and time.monotonic() - dropped_at < RECENT_S,
            error=self._spool_error or self._error,
        )

    @contextlib.asynccontextmanager
    async def publishing(self, broker: Broker) -> AsyncIterator[None]:
        """Publishes through this connection; leaving takes two seconds at most, and what is left then goes to disk."""
        self._broker = broker
        broker.on_reconnect(self._hasten)
        task = asyncio.create_task(self._run(BatchPublisher(broker)), name="decisions")
        task.add_done_callback(self._note_end)
        try:
            yield
        finally:
            self._stop_at = time.monotonic() + FLUSH_S
            self._hasten()
            try:
                await task
            finally:
                self._broker = None

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """Takes no more decisions once nobody publishes them; an error that nobody foresaw is told in the health."""
        if not task.cancelled() and (error := task.exception()):
            self._is_broken = True
            self._spool_error = f"nothing is published any more: {type(error).__name__}"
            log.error("decisions are no longer published", exc_info=error)

    def _hasten(self) -> None:
        self._wake.set()
        self._hurry.set()

    def _fill(self) -> float:
        limits = self._limits
        return max(
            len(self._buffer) / limits.buffer_count,
            self._buffer_bytes / limits.buffer_bytes,
            self._spools.size_bytes / limits.spool_bytes,
        )

    def _drop(self, reason: Loss, count: int = 1) -> bool:
        now = time.monotonic()
        if self._dropped_at is None or now - self._dropped_at > RECENT_S:
            log.warning("decisions are lost", extra={"fields": {"reason": reason}})
        self._dropped_at = now
        self._dropped[reason] += count
        return False

    async def _run(self, publisher: BatchPublisher) -> None:
        has_done = False
        try:
            await self._adopt()
            while not self._is_finished():
                await self._rest(has_done)
                has_done = bool(self._buffer) and self._must_spool() and await self._spool_some()
                if self._may_publish():
                    has_done = await self._publish_some(publisher) or has_done
        finally:
            await self._keep_rest()
            await publisher.close()

    async def _adopt(self) -> None:
        found = await asyncio.to_thread(self._spools.adopt)
        if found:
            log.info("decisions of an earlier process wait on disk", extra={"fields": {"count": found}})
        self._note_torn()

    async def _rest(self, has_done: bool) -> None:
        """Waits for something to do, and then a moment for more of it.

        Args:
            has_done: the last turn moved something; if it did not, there is a pause whatever waits.
        """
        can_drain = bool(self._spools.count) and self._may_publish()
        if not self._buffer and not can_drain:
            self._wake.clear()
            pause_s = min(max(self._not_before - time.monotonic(), LINGER_S), IDLE_S)
            await _wait(self._wake, pause_s if self._spools.count else None)
        if not has_done:
            await asyncio.sleep(LINGER_S)
        elif self._stop_at is None and len(self._buffer) < BATCH_LIMIT_COUNT and not can_drain:
            self._hurry.clear()
            await _wait(self._hurry, LINGER_S)

    def _is_flowing(self) -> bool:
        """Whether NATS takes decisions, as far as is known."""
        return self._broker is not None and self._broker.is_connected and not self._failures

    def _is_pressed(self) -> bool:
        limits = self._limits
        return 2 * len(self._buffer) >= limits.buffer_count or 2 * self._buffer_bytes >= limits.buffer_bytes

    def _must_spool(self) -> bool:
        return self._is_pressed() or not self._is_flowing()

    def _may_publish(self) -> bool:
        is_waiting = bool(self._buffer or self._spools.count)
        is_open = self._broker is not None and self._broker.connected.is_set()
        return is_waiting and is_open and time.monotonic() >= self._not_before and not self._is_over()

    def _is_over(self) -> bool:
        """Whether the time for a flush at the end is over."""
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    def _is_finished(self) -> bool:
        if self._stop_at is None:
            return False
        return self._is_over() or not self._is_flowing() or not (self._buffer or self._spools.count)

    def _may_wait(self, waited_s: float) -> bool:
        return waited_s < (PRESSED_S if self._is_pressed() else ANSWER_S) and not self._is_over()

    def _first(self, max_count: int, max_bytes: int) -> list[Record]:
        """The oldest decisions in memory; at least one."""
        found: list[Record] = []
        size = 0
        for record in itertools.islice(self._buffer, max_count):
            size += size_on_disk(record)
            if found and size > max_bytes:
                break
            found.append(record)
        return found

    def _take_out(self, records: Sequence[Record], *, but: Callable[[Record], bool] = lambda record: False) -> None:
        """Removes the oldest decisions from memory, except for those that stay, in their order."""
        for _ in records:
            self._buffer_bytes -= size_on_disk(self._buffer.popleft())
        for record in reversed([record for record in records if but(record)]):
            self._buffer.appendleft(record)
            self._buffer_bytes += size_on_disk(record)

    async def _spool_some(self) -> bool:
        """Moves the oldest decisions in memory to the disk; False when it takes none."""
        if time.monotonic() < self._spool_not_before:
            return False
        records = self._first(SPOOL_COUNT, SPOOL_BYTES)
        try:
            has_room = await asyncio.to_thread(self._spools.append, records)
        except StoreError as error:
            self._note_spool_error(error)
            return False
        self._spool_error = None
        if has_room:
            self._take_out(records)
        return has_room

    async def _publish_some(self, publisher: BatchPublisher) -> bool:
        """Publishes one batch, of what waits on disk if there is any; False when nothing came of it."""
        if not self._spools.count:
            records = self._first(BATCH_LIMIT_COUNT, BATCH_LIMIT_BYTES)
            result = await publisher.publish(records, may_wait=self._may_wait)
            self._take_out(records, but=lambda record: record.id not in result.settled)
            self._note(result)
            return bool(result.settled)
        try:
            return await self._publish_from_disk(publisher)
        except StoreError as error:
            self._note_spool_error(error)
            self._not_before = self._spool_not_before
            return False

    async def _publish_from_disk(self, publisher: BatchPublisher) -> bool:
        if not self._chunk:
            self._chunk = await asyncio.to_thread(self._spools.read, BATCH_LIMIT_COUNT, BATCH_LIMIT_BYTES)
        if not self._chunk:
            self._note_torn()
            return True
        result = await publisher.publish(self._chunk, may_wait=self._may_wait)
        self._chunk = [record for record in self._chunk if record.id not in result.settled]
        self._note(result)
        if not self._chunk:
            await asyncio.to_thread(self._spools.forget)
        return bool(result.settled)

    def _note_torn(self) -> None:
        if self._spools.torn_count > self._torn_count:
            self._torn_count = self._spools.torn_count
            self._dropped_at = time.monotonic()
            log.warning("decisions on disk can't be read", extra={"fields": {"files": self._torn_count}})

    def _note(self, result: Published) -> None:
        self._published += len(result.stored)
        if result.too_large:
            self._drop("too_large", len(result.too_large))
        if result.error is None:
            self._failures, self._error = 0, None
            if not self._spools.count:  # the disk is not needed any more
                self._spool_error = None
            return
        self._failures += 1
        self._not_before = time.monotonic() + random.uniform(0.5, 1) * min(
            BACKOFF_LIMIT_S, 0.05 * 2.0 ** min(self._failures, 8)
        )
        if result.error != self._error:
            self._error = result.error
            log.warning("decisions can't be stored", extra={"fields": {"error": result.error}})

    def _note_spool_error(self, error: StoreError) -> None:
        self._spool_not_before = time.monotonic() + SPOOL_PAUSE_S
        if str(error) != self._spool_error:
            self._spool_error = str(error)
            log.error("decisions can't be kept on disk", extra={"fields": {"error": str(error)}})

    async def _keep_rest(self) -> None:
        """Leaves what could not be published to the next process."""
        self._spool_not_before = 0.0
        while self._buffer and await self._spool_some():
            pass
        if self._buffer:
            self._drop("full", len(self._buffer))
        await asyncio.to_thread(self._spools.close)


async def _wait(event: asyncio.Event, timeout_s: float | None) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
