"""Making rows again and playing what is asked for: which messages run, in which order, and what is only noted."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
from consume_kit import NOTES, SPEC, FakeBroker, Note, Step, steps
from store_kit import commit
from streams_kit import CREATED, DURABLE, make_change, make_floor, make_message

from models.errors import Reject
from state.scratch import Scratch
from state.snapshots import Snapshot, list_snapshots, take_snapshot
from state.sqlite import SqliteStore
from state.store import Change
from streams.context import Context
from streams.message import Message
from streams.moment import Moment
from streams.patterns import matches
from streams.plan import Failed, Plan
from streams.player import Played, Player
from streams.replay import Span, load_bases, make_plans, rebuild, replay
from streams.subjects import SubjectTable
from streams.topology import ConsumerSpec


class StoredBroker(FakeBroker):
    """Has messages of SIGNALS by sequence, and gives those that a consumer's filters match from its start on."""

    def __init__(self, messages: Mapping[int, Message]) -> None:
        super().__init__()
        self.messages = messages
        self.first_seq = 1
        self.answers["CONSUMER.CREATE.SIGNALS"] = self._create
        self.answers["STREAM.INFO.SIGNALS"] = self._inform
        self._given: list[Message] = []

    async def _inform(self, body: Any) -> Any:
        return {"created": CREATED, "state": {"first_seq": self.first_seq, "last_seq": max(self.messages)}}

    async def _create(self, body: Any) -> Any:
        config = body["config"]
        self._given = [
            message
            for seq, message in sorted(self.messages.items())
            if seq >= config["opt_start_seq"]
            and any(matches(pattern, message.subject) for pattern in config["filter_subjects"])
        ]
        return {"name": "reader", "num_pending": len(self._given)}

    async def read(
        self, stream: str, consumer: str, count: int, *, silent_s: float
    ) -> AsyncGenerator[tuple[Message, Mapping[str, str]], None]:
        for message in self._given[:count]:
            yield message, {}

    async def send(self, subject: str, payload: bytes = b"", *, reply: str = "") -> bool:
        self.log.append((subject,))
        return True


def stored(*seqs: int, subject: str = "signals.step") -> dict[int, Message]:
    """Steps of ana, each a second after the one before."""
    payload = {seq: msgspec.json.encode({"user_id": "ana", "n": seq}) for seq in seqs}
    return {seq: make_message(seq, payload[seq], subject=subject) for seq in seqs}


async def note(event: Step, ctx: Context) -> None:
    """Appends the number to ana's note; refuses 99."""
    if event.n == 99:
        raise Reject("no good")
    row = ctx.get(NOTES, event.user_id) or Note()
    ctx.put(NOTES, event.user_id, Note(text=f"{row.text}{event.n} "))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """An empty store."""
    found = SqliteStore(tmp_path / "state.db")
    yield found
    found.close()


def applied(store: SqliteStore, *seqs: int, floor: int = 50, durable: str = DURABLE, **fields: Any) -> None:
    """Says that these sequences were applied."""
    changes: list[Change] = [make_change(seq, durable=durable, **fields) for seq in seqs]
    commit(store, *changes, floor=make_floor(floor, durable=durable))


class Replay:
    """A replay over a store, with everything that it needs."""

    def __init__(self, broker: StoredBroker, path: Path, scratch: Scratch) -> None:
        self.broker = broker
        self.path = path
        self.scratch = scratch
        self.plans: list[Plan] = []
        self.progress: list[int] = []

    async def plan(
        self,
        *tables: tuple[SubjectTable, ConsumerSpec],
        snapshots: list[Snapshot] | None = None,
        spans: Mapping[str, Span] | None = None,
    ) -> Player:
        with Moment(self.path) as moment:
            self.plans = await make_plans(self.broker, moment, tables, snapshots or [], spans=spans)  # type: ignore[arg-type]
        load_bases(self.plans, self.scratch)
        peeks = lambda table, seq: ()  # noqa: E731 (the shortest way to say nothing)
        return Player(
            [table for table, _ in tables], self.scratch, peeks=peeks, max_deliver=5, max_payload_bytes=100_000
        )

    async def run(self, *tables: tuple[SubjectTable, ConsumerSpec], span: Span, **options: Any) -> list[Played]:
        spans = {"SIGNALS": span}
        player = await self.plan(*tables, spans=spans, **options)
        broker: Any = self.broker
        async with player:
            progress = lambda stream, seq: self.progress.append(seq)  # noqa: E731
            return [one async for one in replay(broker, self.plans, player, spans=spans, progress=progress)]

    async def rebuild(self, *tables: tuple[SubjectTable, ConsumerSpec], **options: Any) -> dict[str, bytes]:
        player = await self.plan(*tables, **options)
        broker: Any = self.broker
        async with player:
            await rebuild(broker, self.plans, player, progress=lambda stream, seq: None)
        return dict(self.scratch.rows("notes"))


@pytest.fixture
def replaying(tmp_path: Path, store: SqliteStore) -> Iterator[Replay]:
    """A replay of SIGNALS with steps 1 to 9."""
    with Scratch() as scratch:
        yield Replay(StoredBroker(stored(*range(1, 10))), tmp_path / "state.db", scratch)


async def test_replay_makes_the_rows_again_before_what_is_asked_for(replaying: Replay, store: SqliteStore) -> None:
    """What was applied earlier runs unseen, what was not does not; then every message asked for is shown."""
    applied(store, 1, 3, 5, 6)
    found = await replaying.run((steps(note), SPEC), span=Span(first=5, last=7))
    assert [one.message.seq for one in found] == [5, 6, 7]
    assert [one.effects.puts["notes", "ana"] for one in found] == [
        b'{"text":"%b"}' % text for text in (b"1 3 5 ", b"1 3 5 6 ", b"1 3 5 6 7 ")
    ]
    assert replaying.progress == list(range(1, 8))
    assert replaying.broker.log[-1] == ("$JS.API.CONSUMER.DELETE.SIGNALS.reader",)


async def test_replay_begins_with_a_snapshot(replaying: Replay, store: SqliteStore, tmp_path: Path) -> None:
    """Rows of a snapshot stand for the messages that led to them, even when the stream has lost those."""
    applied(store, 1, 2, puts=[("notes", "ana", b'{"text":"snap "}')])
    take_snapshot(tmp_path / "state.db", tmp_path / "snapshots", reason="daily", tables={"steps": 1}, app_version="1")
    applied(store, 3, 4)
    replaying.broker.first_seq, replaying.broker.messages = 3, stored(*range(3, 10))
    snapshots = list_snapshots(tmp_path / "snapshots")
    found = await replaying.run((steps(note), SPEC), span=Span(first=4, last=4), snapshots=snapshots)
    assert [one.effects.puts["notes", "ana"] for one in found] == [b'{"text":"snap 3 4 "}']
    assert replaying.plans[0].trouble is None and replaying.progress == [3, 4]


async def test_replay_runs_a_redriven_dead_letter_when_it_was_applied(replaying: Replay, store: SqliteStore) -> None:
    """A dead letter of the rebuilt part comes in when it was redriven: here between 3 and 4."""
    applied(store, 1, 2, 3)
    replaying.broker.messages = stored(*range(1, 10))
    player = await replaying.plan((steps(note), SPEC), spans={"SIGNALS": Span(first=5, last=5)})
    plan = attrs.evolve(replaying.plans[0], known=attrs.evolve(replaying.plans[0].known, redriven={1: 3.5}))
    broker: Any = replaying.broker
    spans = {"SIGNALS": Span(first=4, last=5)}
    async with player:
        found = [one async for one in replay(broker, [attrs.evolve(plan, upto=4)], player, spans=spans)]
    assert found[0].effects.puts["notes", "ana"] == b'{"text":"2 3 1 4 "}'


async def test_replay_notes_what_today_does_not_take(replaying: Replay, store: SqliteStore) -> None:
    """A message that was applied once, and today is refused or has no handler, is noted and leaves the rows."""
    applied(store, 1, 2, 3)
    bad = make_message(2, b'{"user_id":"ana","n":99}', subject="signals.step")
    gone = attrs.evolve(make_message(3, b"{}"), subject="signals.gone")
    replaying.broker.messages = stored(1, 4) | {2: bad, 3: gone}
    spec = attrs.evolve(SPEC, subjects=("signals.step", "signals.gone"))
    found = await replaying.run((steps(note), spec), span=Span(first=4, last=4))
    assert found[0].effects.puts["notes", "ana"] == b'{"text":"1 4 "}'
    assert replaying.plans[0].failed == [
        Failed(seq=2, handler="steps.step", error="Reject: no good"),
        Failed(seq=3, handler="steps.removed", error="no handler takes 'signals.gone' any more"),
    ]


async def test_replay_leaves_the_effects_of_a_failure_out(replaying: Replay, store: SqliteStore) -> None:
    """What is asked for and fails is shown, and the messages after it don't see its writes."""
    replaying.broker.messages = stored(1, 3) | {2: attrs.evolve(stored(2)[2], payload=b'{"user_id":"ana","n":99}')}
    found = await replaying.run((steps(note), SPEC), span=Span(first=1, last=3))
    assert [one.verdict.kind for one in found] == ["applied", "dead", "applied"]
    assert found[2].effects.puts["notes", "ana"] == b'{"text":"1 3 "}'


async def test_replay_of_an_empty_range_shows_nothing(replaying: Replay, store: SqliteStore) -> None:
    """A range that ends before it begins has no message, and nothing of the stream is needed."""
    assert await replaying.run((steps(note), SPEC), span=Span(first=8, last=7)) == []


async def test_replay_needs_no_store(replaying: Replay, tmp_path: Path) -> None:
    """Without a store nothing was applied: the rows begin empty and all messages play."""
    replaying.path = tmp_path / "nowhere.db"
    found = await replaying.run((steps(note), SPEC), span=Span(first=1, last=2))
    assert [one.message.seq for one in found] == [1, 2]


async def test_rebuild_makes_every_row_again(replaying: Replay, store: SqliteStore) -> None:
    """All that was applied runs, and nothing else."""
    applied(store, 1, 2, 9)
    assert await replaying.rebuild((steps(note), SPEC)) == {"ana": b'{"text":"1 2 9 "}'}
    assert (replaying.plans[0].ran, replaying.plans[0].trouble) == (3, None)


async def test_rebuild_passes_over_what_one_of_two_tables_did_not_apply(replaying: Replay, store: SqliteStore) -> None:
    """Two tables may take the same subject; where one has got less far, the rest is not played for it."""
    second = SubjectTable("second")

    @second.on("signals.step")
    async def look(event: Step, ctx: Context) -> None:
        """Does nothing."""

    applied(store, 1, 2)
    applied(store, 1, 2, 3, 4, durable="second")
    spec = attrs.evolve(SPEC, durable="second", table="second")
    assert await replaying.rebuild((steps(note), SPEC), (second, spec)) == {"ana": b'{"text":"1 2 "}'}
    assert [plan.ran for plan in replaying.plans] == [2, 4]


async def test_rebuild_runs_a_late_redriven_message_last(replaying: Replay, store: SqliteStore) -> None:
    """A dead letter that was redriven after the last message comes in at the end."""
    applied(store, 1, 2)
    player = await replaying.plan((steps(note), SPEC))
    plan = attrs.evolve(replaying.plans[0], known=attrs.evolve(replaying.plans[0].known, redriven={1: 1e9}))
    broker: Any = replaying.broker
    await rebuild(broker, [plan], player, progress=lambda stream, seq: None)
    assert dict(replaying.scratch.rows("notes")) == {"ana": b'{"text":"2 1 "}'}


async def test_rebuild_says_what_is_missing(replaying: Replay, store: SqliteStore) -> None:
    """A message that was applied and was deleted from the stream is the plan's trouble."""
    applied(store, 1, 2, 3)
    replaying.broker.messages = stored(1, 3)
    await replaying.rebuild((steps(note), SPEC))
    assert replaying.plans[0].trouble == "1 messages that were applied are no longer in stream SIGNALS"


async def test_rebuild_leaves_a_plan_in_trouble_alone(replaying: Replay, store: SqliteStore) -> None:
    """Where the stream has lost the beginning, nothing runs, and the reason stays as it was."""
    applied(store, 1, 2)
    replaying.broker.first_seq = 2
    assert await replaying.rebuild((steps(note), SPEC)) == {}
    assert "from sequence 1 on, are no longer in stream" in str(replaying.plans[0].trouble)
