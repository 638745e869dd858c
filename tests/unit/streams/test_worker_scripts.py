"""Any script of messages, failures, delays, crashes and redeliveries, against the worker's own logic and a real store.

There is no server: the test plays it. It delivers in stream order from the message after the floor, as a server does
after a reset, and a crash drops the worker where it stands, with what is not committed. Whatever the script, each
message ends once: applied in the order of its key, or given up.
"""

import asyncio
import contextlib
import random
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import msgspec
from consume_kit import FakeBroker, ended
from harness import wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams_kit import make_outbox_row

from models.errors import Reject, Retry
from state import ledger
from state.sqlite import SqliteReader, SqliteStore
from state.store import Floor
from state.tables import Table
from streams.commit import Committer
from streams.consumer import Attached
from streams.context import Context
from streams.message import Message
from streams.outbox import FULL_BYTES, Outbox, Waiting
from streams.outcomes import Services
from streams.policy import Policy
from streams.subjects import SubjectTable
from streams.suspects import Gate
from streams.table_health import Limits
from streams.topology import ConsumerSpec
from streams.worker import TableWorker

DURABLE = "test-steps"
SPEC = ConsumerSpec(durable=DURABLE, table="steps", stream="SIGNALS", subjects=("signals.step",), ack_wait_s=30)
CREATED = "2026-01-01T00:00:00Z"
MAX_DELIVER = 3

# What the attempts on one message do, one letter an attempt; the last one repeats.
# a: applied, f: fails, r: asks to be run again, x: rejected, b: does not decode, w: waits a moment, then is applied
Script = str


@attrs.frozen(kw_only=True)
class Step:
    user_id: str
    n: int


@attrs.frozen(kw_only=True)
class Trace:
    seen: tuple[int, ...] = ()


def is_fatal(script: Script) -> bool:
    """Whether the message is given up in the end."""
    failures = 0
    for attempt in range(50):
        kind = script[min(attempt, len(script) - 1)]
        if kind in "xb":
            return True
        if kind in "aw":
            return False
        failures += kind == "f"
        if failures == MAX_DELIVER:
            return True
    return False


@attrs.define
class World:
    """What outlives a crash: the messages, how often each was run, and the store on disk."""

    folder: Path
    messages: list[tuple[str, Script]]
    runs: dict[int, int] = attrs.field(factory=dict)

    def message(self, seq: int) -> Message:
        user, script = self.messages[seq - 1]
        body = b"{" if script[0] == "b" else msgspec.json.encode({"user_id": user, "n": seq})
        return Message("SIGNALS", "signals.step", body, f"$JS.ACK.{seq}", seq, seq, seq * 1_000)

    async def behave(self, event: Step, ctx: Context) -> None:
        run = self.runs.get(event.n, 0)
        self.runs[event.n] = run + 1
        script = self.messages[event.n - 1][1]
        kind = script[min(run, len(script) - 1)]
        if kind == "w":
            await asyncio.sleep(0.001)
        elif kind == "f":
            raise ValueError("fails")
        elif kind == "r":
            raise Retry(delay_s=0.001)
        elif kind == "x":
            raise Reject("never")


class Life:
    """One worker process: everything between two crashes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = SqliteStore(world.folder / "state.db")
        self.broker = FakeBroker()
        self.broker.ack = self._ack  # type: ignore[attr-defined]
        self.committer = Committer(self.store, observe=lambda count, seconds: None)
        self.outbox = Outbox(
            self.broker,  # type: ignore[arg-type]
            forget=self.committer.forget_sent,
            fetch=self.store.fetch_outbox_row,
        )
        self.worker = TableWorker(_table(world), SPEC, self._services(), Limits(max_deliver=5, parked_max=1000))
        self.tasks: list[asyncio.Task[Any]] = []

    async def _ack(self, replies: Any, word: bytes = b"+ACK") -> None:
        """Acks go nowhere: the position is the store's."""

    def _services(self) -> Services:
        return Services(
            broker=self.broker,  # type: ignore[arg-type]
            store=self.store,
            store_id=self.store.store_id,
            committer=self.committer,
            outbox=self.outbox,
            publishable=lambda subject: True,
            gate=Gate(),
            rng=random.Random(1),
            version="1",
            alive=tuple,
        )

    async def start(self) -> None:
        """Attaches and delivers everything from the message after the floor."""
        worker = self.worker
        self.tasks = [
            asyncio.create_task(self.committer.run()),
            asyncio.create_task(worker.slots.run("steps")),
            asyncio.create_task(self._unpark()),
        ]
        floor = worker.floor or Floor(durable=DURABLE, stream="SIGNALS", created=CREATED, seq=0, ts=0)
        found = Attached(floor=floor, delivered_seq=0, subjects=SPEC.subjects, expired=None)
        assert await worker.attached(found)

    def deliver(self, count: int) -> None:
        """Has the server reset to the floor and deliver ``count`` messages."""
        floor = self.worker.floor
        first = floor.seq + 1 if floor else 1
        for seq in range(first, min(first + count, len(self.world.messages) + 1)):
            self.worker.deliver(self.world.message(seq))

    async def _unpark(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            self.worker.unpark_due()

    @property
    def is_over(self) -> bool:
        """Whether every message has its outcome."""
        position = self.worker._hand.position
        if not position or self.worker._hand.parked.message_count:
            return False
        return all(position.is_done(seq, seq * 1_000) for seq in range(1, len(self.world.messages) + 1))

    async def end(self) -> None:
        """Drops it where it stands; a commit under way is finished first.

        It says that it ended in order, so that the next life suspects no message: suspects wait, and have their own
        tests.
        """
        await ended(self.tasks)
        self.committer.close()
        self.store.end_clean()
        self.store.close()


def _table(world: World) -> SubjectTable:
    rows = Table("steps", Trace)
    table = SubjectTable("steps", tables=[rows], concurrency=4)

    async def step(event: Step, ctx: Context) -> None:
        await world.behave(event, ctx)
        row = ctx.get(rows, event.user_id) or Trace()
        ctx.put(rows, event.user_id, Trace(seen=(*row.seen, event.n)))

    table.on("signals.step", policy=Policy(max_deliver=MAX_DELIVER, backoff_s=(0.001,)))(step)
    return table


async def play(world: World, lives: list[tuple[int, int]]) -> None:
    """Runs one life after another; each ends after so many turns of the loop, and the last one when all is over."""
    for count, turns in lives:
        life = Life(world)
        await life.start()
        life.deliver(count)
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns % 3 == 0:  # a redelivery in mid-life: a reset to the floor, as after a reconnect
            floor = life.worker.floor
            assert floor is not None
            await life.worker.attached(Attached(floor=floor, delivered_seq=0, subjects=SPEC.subjects, expired=None))
            life.deliver(count)
            for _ in range(turns):
                await asyncio.sleep(0)
        await life.end()
    life = Life(world)
    await life.start()
    life.deliver(len(world.messages))
    try:
        await wait_until(lambda: life.is_over, 10, what="every message has its outcome", poll_s=0.001)
    finally:
        await life.end()


def check(world: World) -> None:
    """Compares what is committed with what the scripts say."""
    wanted: dict[str, list[int]] = {}
    fatal = set()
    for seq, (user, script) in enumerate(world.messages, 1):
        if is_fatal(script):
            fatal.add(seq)
        else:
            wanted.setdefault(user, []).append(seq)
    reader, store = SqliteReader(world.folder / "state.db"), SqliteStore(world.folder / "state.db")
    try:
        found = {row.key: row.row["seen"] for row in reader.list_rows("steps", limit=1000)}
        dead = {seq for seq in range(1, len(world.messages) + 1) if store.fetch_dead(DURABLE, seq)}
        rows = store._query("select segment, bits, again from ledger where durable = ?", DURABLE)
        outbox = [row.subject for row in store.fetch_outbox()]
    finally:
        reader.close()
        store.close()
    assert found == wanted
    assert dead == fatal
    assert sorted(outbox) == sorted(f"deadletters.SIGNALS.steps.step.{seq}" for seq in fatal)
    assert {seq for segment, bits, _ in rows for seq in ledger.seqs(segment, bits)} == {
        seq for seqs in wanted.values() for seq in seqs
    }
    assert all(again == 0 for _, _, again in rows)


SCRIPTS = st.sampled_from(["a", "a", "a", "w", "fa", "ra", "ffa", "f", "rrfa", "x", "fx", "b"])
MESSAGES = st.lists(st.tuples(st.sampled_from(["ana", "bob", "cy"]), SCRIPTS), min_size=1, max_size=25)
LIVES = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40)), max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MESSAGES, LIVES)
def test_worker_gives_each_message_one_outcome_in_the_order_of_its_key(
    messages: list[tuple[str, Script]], lives: list[tuple[int, int]]
) -> None:
    """Through any failures, delays, crashes and redeliveries: applied once and in order, or one dead letter."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), messages)
        asyncio.run(play(world, lives))
        check(world)


@contextlib.asynccontextmanager
async def alive(folder: Path, *scripts: Script) -> AsyncIterator[Life]:
    """A worker that has got one message of ana's for each script."""
    life = Life(World(folder, [("ana", script) for script in scripts]))
    await life.start()
    life.deliver(len(scripts))
    try:
        yield life
    finally:
        await life.end()


async def test_parked_lane_stays_parked_while_the_outbox_is_full(tmp_path: Path) -> None:
    """What is due runs only once events have left, and then without being asked again."""
    async with alive(tmp_path, "ra") as life:
        life.outbox.enqueue(Waiting(make_outbox_row(1, payload=b"x" * (FULL_BYTES + 1))))
        parked = life.worker._hand.parked
        await wait_until(lambda: parked.message_count == 1 and not len(life.worker._hand.held))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert (life.world.runs, life.is_over) == ({1: 1}, False)
        life.tasks.append(asyncio.create_task(life.outbox.run()))
        await wait_until(lambda: life.is_over, what="it ran once more")
        assert life.world.runs == {1: 2}


async def test_message_given_up_is_answered_once_its_letter_is_stored_on_its_newest_delivery(tmp_path: Path) -> None:
    """A redelivery before that is neither acked nor run; the end of the message goes to where it came from last."""
    async with alive(tmp_path, "x") as life:
        answers: list[tuple[list[str], bytes]] = []

        async def ack(replies: Any, word: bytes = b"+ACK") -> None:
            answers.append((list(replies), word))

        life.broker.ack = ack  # type: ignore[attr-defined]
        await wait_until(lambda: life.outbox.unsent_count)
        life.worker.deliver(attrs.evolve(life.world.message(1), reply="$JS.ACK.again"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [answer for answer in answers if answer[0]] == []
        life.tasks.append(asyncio.create_task(life.outbox.run()))
        await wait_until(lambda: any(replies for replies, _ in answers))
        assert [answer for answer in answers if answer[0]] == [(["$JS.ACK.again"], b"+TERM")]
        assert not life.worker._hand.letters
