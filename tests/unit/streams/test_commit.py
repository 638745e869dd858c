"""The group committer over a store that fails on demand."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from consume_kit import ended
from harness import wait_until
from streams_kit import make_change, make_floor

from models.errors import StoreCorrupt, StoreError, StoreFenced, StoreUnwritable
from state.store import Change, Floor
from streams.commit import BATCH_COUNT, Committer, Entry

HERE = Path("state.db")
FULL = StoreUnwritable(HERE, "is full")


class FakeStore:
    """Notes each commit: (sequences, floors, marks, sent rows); ``fail`` may raise before it counts."""

    def __init__(self) -> None:
        self.commits: list[tuple[list[int], list[int], list[int], list[int]]] = []
        self.threads: set[str] = set()
        self.fail: Callable[[list[int]], None] = lambda seqs: None
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def commit(
        self, changes: Sequence[Change], floors: Sequence[Floor], *, marks: Sequence[Change], sent: Sequence[int]
    ) -> None:
        self.threads.add(threading.current_thread().name)
        self.waiting.set()
        assert self.gate.wait(5)
        seqs = [change.seq for change in changes]
        self.fail(seqs)
        self.commits.append((seqs, [floor.seq for floor in floors], [mark.seq for mark in marks], list(sent)))

    def seqs(self) -> list[int]:
        """All sequences committed, in order."""
        return [seq for commit in self.commits for seq in commit[0]]


class FakeWorker:
    """A participant that notes what it is told; its floor is the highest of a batch, less ``behind``."""

    def __init__(self, committer: Committer, store: FakeStore) -> None:
        self.log: list[object] = []
        self.behind: int | None = None
        self._committer, self._store = committer, store
        committer.join(self)

    def submit(self, *seqs: int) -> None:
        for seq in seqs:
            self._committer.submit(Entry(self, make_change(seq)))

    def advance(self, entries: Sequence[Entry]) -> Floor | None:
        return None if self.behind is None else make_floor(entries[-1].change.seq - self.behind)

    async def on_committed(self, entries: Sequence[Entry], floor: Floor | None) -> None:
        seqs = [entry.change.seq for entry in entries]
        assert set(seqs) <= set(self._store.seqs()), "an ack comes after its commit"
        self.log.append(("ack", seqs, floor.seq if floor else None))

    def refuse(self, entry: Entry, error: StoreError) -> Entry:
        self.log.append(("refuse", entry.change.seq, error.problem))
        return Entry(self, make_change(1000 + entry.change.seq), "dead")

    def on_store_failure(self, reason: str) -> None:
        self.log.append(("failure", reason))

    def on_store_recovery(self) -> None:
        self.log.append("recovery")


class Stage:
    """A committer that runs, its store and one participant."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.observed: list[int] = []
        self.committer = Committer(self.store, observe=lambda count, seconds: self.observed.append(count))  # type: ignore[arg-type]
        self.worker = FakeWorker(self.committer, self.store)
        self.task = asyncio.create_task(self.committer.run())


@contextlib.asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    """Runs a committer for the time of a test."""
    stage = Stage()
    try:
        yield stage
        assert not stage.task.done() or stage.task.cancelled()
    finally:
        stage.store.gate.set()
        await ended([stage.task])
        stage.committer.close()


def failing(error: StoreError, *poison: int) -> Callable[[list[int]], None]:
    """Fails every commit that holds one of the sequences."""

    def fail(seqs: list[int]) -> None:
        if set(poison) & set(seqs):
            raise error

    return fail


def refusing_all(error: StoreError) -> Callable[[list[int]], None]:
    """Fails every commit."""

    def fail(seqs: list[int]) -> None:
        raise error

    return fail


async def test_outcomes_are_committed_in_order_in_groups_and_acked_after() -> None:
    """What is submitted is committed first in, first out, many at once, in one thread, and acked after that."""
    async with staged() as stage:
        stage.worker.submit(*range(BATCH_COUNT + 3))
        await stage.committer.flushed()
        assert [len(commit[0]) for commit in stage.store.commits] == stage.observed == [BATCH_COUNT, 3]
        assert stage.store.seqs() == list(range(BATCH_COUNT + 3))
        assert stage.worker.log == [
            ("ack", list(range(BATCH_COUNT)), None),
            ("ack", [BATCH_COUNT, BATCH_COUNT + 1, BATCH_COUNT + 2], None),
        ]
        assert len(stage.store.threads) == 1


async def test_nothing_is_acked_while_its_commit_is_under_way() -> None:
    """Until the store has returned no participant hears of the batch, and later outcomes wait."""
    async with staged() as stage:
        stage.store.gate.clear()
        stage.worker.submit(1)
        await wait_until(stage.store.waiting.is_set)
        stage.worker.submit(2)
        assert stage.worker.log == []
        stage.store.gate.set()
        await stage.committer.flushed()
        assert stage.worker.log == [("ack", [1], None), ("ack", [2], None)]


async def test_marks_are_written_above_the_floor_only() -> None:
    """A commit stores the floor that it makes true, and a mark for each outcome above it."""
    async with staged() as stage:
        stage.worker.behind = 2
        stage.worker.submit(5, 6, 7, 8)
        await stage.committer.flushed()
        assert stage.store.commits == [([5, 6, 7, 8], [6], [7, 8], [])]
        assert stage.worker.log == [("ack", [5, 6, 7, 8], 6)]


async def test_participants_share_a_commit_and_hear_of_their_own_outcomes() -> None:
    """One transaction holds the outcomes of several workers; each is told of its own."""
    async with staged() as stage:
        other = FakeWorker(stage.committer, stage.store)
        stage.worker.submit(1)
        other.submit(2)
        stage.worker.submit(3)
        await stage.committer.flushed()
        assert stage.store.seqs() == [1, 2, 3]
        assert (stage.worker.log, other.log) == ([("ack", [1, 3], None)], [("ack", [2], None)])


async def test_sent_rows_are_deleted_even_without_outcomes() -> None:
    """A row that JetStream has stored is deleted with the next commit, which may be empty otherwise."""
    async with staged() as stage:
        stage.committer.forget_sent(7)
        stage.committer.forget_sent(8)
        await stage.committer.flushed()
        assert stage.store.commits == [([], [], [], [7, 8])]


async def test_batch_that_fails_for_one_message_is_retried_message_by_message() -> None:
    """The others are committed in order, the refused one is replaced by what its worker chooses, then later ones."""
    async with staged() as stage:
        stage.worker.behind = 0
        stage.store.fail = failing(StoreError(HERE, "too odd"), 2)
        stage.store.gate.clear()
        stage.worker.submit(1, 2, 3)
        stage.committer.forget_sent(9)
        await wait_until(stage.store.waiting.is_set)
        stage.worker.submit(4)
        stage.store.gate.set()
        await stage.committer.flushed()
        assert stage.store.commits == [
            ([1], [], [1], []),
            ([1002], [], [1002], []),
            ([3], [], [3], []),
            ([], [3], [], [9]),
            ([4], [4], [], []),
        ]
        assert stage.worker.log == [("refuse", 2, "too odd"), ("ack", [1, 1002, 3], 3), ("ack", [4], 4)]


async def test_full_disk_drops_everything_uncommitted_until_it_takes_a_commit() -> None:
    """Participants are told, nothing is acked, new outcomes are dropped, and an empty commit ends it."""
    async with staged() as stage:
        stage.store.fail = refusing_all(FULL)
        stage.worker.submit(1, 2)
        await wait_until(lambda: stage.committer.failure)
        stage.worker.submit(3)
        await stage.committer.flushed()
        assert stage.worker.log == [("failure", "state.db: is full")]
        stage.store.fail = refusing_all(StoreUnwritable(HERE, "is read-only now"))
        await wait_until(lambda: stage.committer.failure == "state.db: is read-only now")
        stage.store.fail = failing(FULL)
        await wait_until(lambda: "recovery" in stage.worker.log)
        stage.worker.submit(4)
        await stage.committer.flushed()
        assert stage.store.seqs() == [4]
        assert stage.worker.log == [("failure", "state.db: is full"), "recovery", ("ack", [4], None)]


async def test_sent_rows_survive_a_full_disk() -> None:
    """Rows that JetStream has stored are deleted once the disk takes writes again, those said meanwhile as well."""
    async with staged() as stage:
        stage.store.fail = refusing_all(FULL)
        stage.committer.forget_sent(1)
        await wait_until(lambda: stage.committer.failure)
        stage.committer.forget_sent(2)
        await stage.committer.flushed()  # a stop does not wait for the disk
        stage.store.fail = failing(FULL)
        await wait_until(lambda: any(commit[3] for commit in stage.store.commits))
        assert [commit[3] for commit in stage.store.commits if commit[3]] == [[1, 2]]


async def test_disk_that_fills_up_between_single_messages_keeps_what_is_committed() -> None:
    """Messages committed one by one before the failure are acked, and their events may leave; the others are not."""
    async with staged() as stage:
        odd, full = failing(StoreError(HERE, "too odd"), 1), failing(FULL, 1001, 1002)

        def fail(seqs: list[int]) -> None:
            (odd if len(seqs) > 1 or seqs == [1] else full)(seqs)

        stage.store.fail = fail
        stage.worker.submit(3, 1, 4)
        await wait_until(lambda: stage.committer.failure)
        await stage.committer.flushed()
        assert stage.store.seqs() == [3]
        assert stage.worker.log == [("refuse", 1, "too odd"), ("ack", [3], None), ("failure", "state.db: is full")]


@pytest.mark.parametrize("error", [StoreCorrupt(HERE, "is damaged"), FULL], ids=["corrupt", "full"])
async def test_fatal_error_of_a_single_message_is_nobodys_fault(error: StoreError) -> None:
    """A store that fails while messages are retried one by one refuses none of them: all come again."""
    async with staged() as stage:

        def fail(seqs: list[int]) -> None:
            raise StoreError(HERE, "too odd") if len(seqs) > 1 else error

        stage.store.fail = fail
        stage.worker.submit(1, 2)
        await wait_until(lambda: stage.committer.failure)
        assert stage.worker.log == [("failure", str(error))]


async def test_fenced_store_stops_for_good() -> None:
    """A store that another process has taken over is never written again: no probe, no recovery."""
    async with staged() as stage:
        stage.store.fail = refusing_all(StoreFenced(HERE, "taken over"))
        stage.worker.submit(1)
        await stage.committer.fenced.wait()
        await stage.committer.flushed()
        assert stage.worker.log == [("failure", "state.db: taken over")]
        assert not stage.task.done()


async def test_store_that_is_fenced_while_it_is_probed_stops_for_good() -> None:
    """A store taken over while the disk was full is fenced, too."""
    async with staged() as stage:
        stage.store.fail = refusing_all(FULL)
        stage.worker.submit(1)
        await wait_until(lambda: stage.committer.failure)
        stage.store.fail = refusing_all(StoreFenced(HERE, "taken over"))
        await stage.committer.fenced.wait()
        assert stage.worker.log == [("failure", "state.db: is full")]


async def test_cancelled_committer_finishes_and_acks_the_commit_under_way() -> None:
    """A cancellation in the middle of a commit waits for its end and its acks, and takes nothing more."""
    async with staged() as stage:
        stage.store.gate.clear()
        stage.worker.submit(1)
        await wait_until(stage.store.waiting.is_set)
        stage.worker.submit(2)
        stage.task.cancel()
        await asyncio.sleep(0)
        assert not stage.task.done()
        stage.store.gate.set()
        await asyncio.wait([stage.task], timeout=3)
        assert stage.task.cancelled()
        assert stage.worker.log == [("ack", [1], None)]


async def test_cancelled_committer_does_not_wait_for_a_full_disk() -> None:
    """A cancellation while the disk is probed ends the committer."""
    async with staged() as stage:
        stage.store.fail = refusing_all(FULL)
        stage.worker.submit(1)
        await wait_until(lambda: stage.committer.failure)
        await ended([stage.task])
        assert stage.task.cancelled()
