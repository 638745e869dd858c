"""The group committer: makes outcomes real, many in one transaction, in the order in which they were decided.

It owns the store's writer, which it uses in one thread. An ack follows its commit, never the other way round. A batch
that fails for one message's sake is retried message by message before any later one; when the disk takes no writes,
everything uncommitted is dropped (the server still has it) and intake stops, until an empty commit succeeds.
"""

import asyncio
import collections
import concurrent.futures
import logging
import time
from collections.abc import Callable, Coroutine, Sequence, Set
from typing import Any, Protocol

import attrs

from models.errors import StoreCorrupt, StoreError, StoreFenced, StoreUnwritable
from state.store import Change, Floor, Place, Store

log = logging.getLogger(__name__)

BATCH_COUNT = 500
PROBE_INTERVAL_S = 0.5
IDLE_PROBE_S = 1.0

_FATAL = (StoreUnwritable, StoreFenced, StoreCorrupt)  # no message's own fault


class Participant(Protocol):
    """A worker whose outcomes are committed here."""

    def advance(self, entries: "Sequence[Entry]") -> Floor | None:
        """Marks the entries' messages as settled and computes the floor that their commit makes true."""

    async def on_committed(self, entries: "Sequence[Entry]", floor: Floor | None) -> None:
        """Called in commit order once the entries are durable; ``is_repeated`` ones were it before."""

    def refuse(self, entry: "Entry", error: StoreError) -> "Entry":
        """Chooses what to commit for a message whose own change the store refused."""

    def on_store_failure(self, reason: str) -> None:
        """Called when everything uncommitted was dropped; nothing may be pulled until ``on_store_recovery``."""

    def on_store_recovery(self) -> None:
        """Called when the store takes writes again."""


@attrs.define(eq=False)
class Entry:
    """One outcome on its way into the store; ``outcome`` is what the participant remembers of it.

    ``is_repeated`` is set when another process had given the message its outcome, so that nothing was written.
    """

    participant: Participant
    change: Change
    outcome: Any = None
    is_repeated: bool = False


class Committer:
    """Collects outcomes and commits them from a thread of its own.

    Args:
        observe: told the number of outcomes and the seconds of every commit.
        executor: the one thread of several committers; None takes a thread of its own.
    """

    def __init__(
        self,
        store: Store,
        *,
        observe: Callable[[int, float], None],
        executor: concurrent.futures.Executor | None = None,
    ) -> None:
        self._store = store
        self._observe = observe
        self._queue: collections.deque[Entry] = collections.deque()
        self._sent: list[str] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._participants: list[Participant] = []
        self._has_own_executor = executor is None
        self._executor = executor or concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="commit")
        self.failure: str | None = None
        self.fenced: asyncio.Event = asyncio.Event()

    def join(self, participant: Participant) -> None:
        """Has a worker told of failures and recovery."""
        self._participants.append(participant)

    def submit(self, entry: Entry) -> None:
        """Queues an outcome; while the store takes no writes it is dropped, and its message comes again."""
        if self.failure is None:
            self._queue.append(entry)
            self._idle.clear()
            self._wake.set()

    def forget_sent(self, row_id: str) -> None:
        """Has an outbox row that JetStream has stored deleted with the next commit."""
        self._sent.append(row_id)
        if self.failure is None:
            self._idle.clear()
        self._wake.set()

    async def note_start(self, durable: str, seq: int, crashes: int) -> bool:
        """Notes durably that a crash suspect is about to run; False when the store takes no writes."""
        return await self.note(lambda: self._store.note_start(durable, seq, crashes))

    async def note(self, write: Callable[[], None]) -> bool:
        """Runs a transaction of its own in the commit thread; False when the store takes no writes."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, write)
        except StoreFenced:
            self.fenced.set()
            return False
        except StoreError as error:
            self._fail(str(error))
            self._wake.set()
            return False
        return True

    @property
    def is_idle(self) -> bool:
        """Whether everything submitted so far is committed or dropped."""
        return self._idle.is_set()

    async def flushed(self) -> None:
        """Waits until everything submitted so far is committed or dropped."""
        await self._idle.wait()

    async def run(self) -> None:
        """Commits until cancelled; a commit that has started is finished first."""
        while True:
            await self._wait_for_work()
            is_idle = not (self._queue or self._sent)
            while self._queue or self._sent or is_idle:
                is_idle = False
                await _finished(self._commit_batch())
                if self.failure is not None and not self.fenced.is_set():
                    await self._recover()
            self._idle.set()

    async def _wait_for_work(self) -> None:
        """Waits for work, for a while only: an empty commit then tells whether the disk still takes writes."""
        timer = asyncio.get_running_loop().call_later(IDLE_PROBE_S, self._wake.set)
        try:
            await self._wake.wait()
            self._wake.clear()
        finally:
            timer.cancel()

    async def _commit_batch(self) -> None:
        queue = self._queue
        batch = [queue.popleft() for _ in range(min(len(queue), BATCH_COUNT))]
        sent, self._sent = self._sent, []
        groups: dict[int, tuple[Participant, list[Entry]]] = {}
        for entry in batch:
            groups.setdefault(id(entry.participant), (entry.participant, []))[1].append(entry)
        floors = [(participant, entries, participant.advance(entries)) for participant, entries in groups.values()]
        started = time.perf_counter()
        try:
            await self._write(batch, [floor for _, _, floor in floors if floor], sent)
        except StoreFenced as error:
            self._fail(str(error))
            self.fenced.set()
            return
        except StoreError as error:
            self._sent = sent + self._sent
            self._fail(str(error))
            return
        if batch:
            self._observe(len(batch), time.perf_counter() - started)
        for participant, entries, floor in floors:
            await participant.on_committed(entries, floor)

    async def _write(self, batch: Sequence[Entry], floors: Sequence[Floor], sent: Sequence[str]) -> None:
        """Commits a batch whole; if that fails for another reason than the disk, message by message."""
        above = {floor.durable: floor.seq for floor in floors}
        changes = [entry.change for entry in batch]
        marks = [change for change in changes if not change.tried and change.seq > above.get(change.durable, -1)]
        try:
            done = await self._in_thread(changes, floors, marks, sent)
            for entry in batch if done else ():
                entry.is_repeated = (entry.change.durable, entry.change.seq) in done
        except _FATAL:
            raise
        except StoreError as error:
            log.error("a commit failed, retrying message by message", extra={"fields": {"error": str(error)}})
            await self._write_one_by_one(batch, floors, sent)

    async def _write_one_by_one(self, batch: Sequence[Entry], floors: Sequence[Floor], sent: Sequence[str]) -> None:
        done = []
        try:
            for entry in batch:
                await self._write_alone(entry)
                done.append(entry)
            await self._in_thread([], floors, [], sent)
        except StoreError:
            for entry in done:  # these are durable, whatever becomes of the others
                await entry.participant.on_committed([entry], None)
            raise

    async def _write_alone(self, entry: Entry) -> None:
        try:
            await self._write_change(entry)
        except _FATAL:
            raise
        except StoreError as error:
            refused = entry.participant.refuse(entry, error)
            entry.change, entry.outcome = refused.change, refused.outcome
            await self._write_change(entry)

    async def _write_change(self, entry: Entry) -> None:
        change = entry.change
        entry.is_repeated = bool(await self._in_thread([change], [], [] if change.tried else [change], []))

    async def _in_thread(
        self, changes: Sequence[Change], floors: Sequence[Floor], marks: Sequence[Change], sent: Sequence[str]
    ) -> Set[Place]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._executor, lambda: self._store.commit(changes, floors, marks=marks, sent=sent)
        )

    def _fail(self, reason: str) -> None:
        self.failure = reason
        log.error("the store takes no writes", extra={"fields": {"reason": reason}})
        self._queue.clear()
        self._idle.set()
        for participant in self._participants:
            participant.on_store_failure(reason)

    async def _recover(self) -> None:
        """Tries an empty commit until the disk takes one."""
        while self.failure is not None:
            await asyncio.sleep(PROBE_INTERVAL_S)
            try:
                await self._in_thread([], [], [], [])
            except StoreFenced:
                self.fenced.set()
                return
            except StoreError as error:
                self.failure = str(error)
                continue
            self.failure = None
        log.info("the store takes writes again")
        for participant in self._participants:
            participant.on_store_recovery()

    def close(self) -> None:
        """Waits until a commit under way has ended, and ends a thread of its own."""
        if self._has_own_executor:
            self._executor.shutdown(wait=True)
        else:
            self._executor.submit(_nothing).result()


def _nothing() -> None:
    """What comes after everything that the thread was given before."""


async def _finished(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs something to its end even when the caller is cancelled meanwhile, which then passes on."""
    task = asyncio.ensure_future(coroutine)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
