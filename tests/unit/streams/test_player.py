"""Playing stored messages: as the worker runs them, with what was kept of then; only the scratch store changes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import attrs
import msgspec
import pytest
from streams_kit import make_message

from models.errors import DeclarationError, Reject, Retry
from state import scratch as scratch_module
from state.scratch import Scratch
from state.tables import Table
from streams.context import Context
from streams.player import PeekRow, Played, Player
from streams.policy import Policy
from streams.subjects import SubjectTable


@attrs.frozen(kw_only=True)
class Step:
    user_id: str
    n: int = 0


@attrs.frozen(kw_only=True)
class Trace:
    seen: tuple[int, ...] = ()


@attrs.frozen(kw_only=True)
class Count:
    steps: int = 0


TRACES, COUNTS, OTHERS = Table("traces", Trace), Table("counts", Count, kind="counters"), Table("others", Trace)
Behaviour = Callable[[Step, Context], Awaitable[None]]


async def trace(event: Step, ctx: Context) -> None:
    """Appends to the user's row and counts."""
    row = ctx.get(TRACES, event.user_id) or Trace()
    ctx.put(TRACES, event.user_id, Trace(seen=(*row.seen, event.n)))
    ctx.add(COUNTS, "all", "steps", 1)


def table_of(behaviour: Behaviour = trace, policy: Policy | None = None) -> SubjectTable:
    """A subject table of one handler, ``steps.step``."""
    table = SubjectTable("steps", tables=[TRACES, COUNTS])

    async def step(event: Step, ctx: Context) -> None:
        await behaviour(event, ctx)

    table.on("signals.step", policy=policy)(step)
    return table


@pytest.fixture
def scratch() -> Iterator[Scratch]:
    """An empty scratch store."""
    with Scratch() as found:
        yield found


def player_of(table: SubjectTable, scratch: Scratch, *peeks: PeekRow) -> Player:
    """A player to whom the same peeks were kept for every message."""
    return Player([table], scratch, peeks=lambda name, seq: peeks, max_deliver=3, max_payload_bytes=100_000)


async def play(player: Player, table: SubjectTable, seq: int = 1, user: str = "ana", **fields: Any) -> Played:
    """Plays step ``seq`` of a user and keeps what it led to."""
    event = msgspec.json.encode({"user_id": user, "n": seq})
    message = attrs.evolve(make_message(seq, event, subject="signals.step"), **fields)
    played = await player.play(table, message)
    assert played is not None
    player.keep(played)
    return played


async def test_play_shows_effects_and_what_was_before(scratch: Scratch) -> None:
    """Each message sees the rows that those before it left, and shows them beside its own."""
    table = table_of()
    async with player_of(table, scratch) as player:
        first, second = await play(player, table, 1), await play(player, table, 2)
    assert (first.verdict.kind, first.key, first.event) == ("applied", "ana", Step(user_id="ana", n=1))
    assert first.before == {("traces", "ana"): None, ("counts", "all"): None}
    assert second.before == {("traces", "ana"): b'{"seen":[1]}', ("counts", "all"): b'{"steps":1}'}
    assert second.effects.puts == {("traces", "ana"): b'{"seen":[1,2]}'}
    assert second.handler.name == "steps.step"


async def test_rows_are_the_same_however_often_they_are_written_out(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in memory and rows in the scratch's database read the same; the memory is let go when it is full."""
    monkeypatch.setattr(scratch_module, "LIMIT_COUNT", 3)
    table = table_of()
    async with player_of(table, scratch) as player:
        for seq in range(1, 9):
            await play(player, table, seq, user=f"user{seq % 2}")
        assert not scratch.is_full
        player.flush()
    assert dict(scratch.rows("traces")) == {"user0": b'{"seen":[2,4,6,8]}', "user1": b'{"seen":[1,3,5,7]}'}
    assert dict(scratch.rows("counts")) == {"all": b'{"steps":8}'}


async def test_play_sees_a_deleted_row_as_gone(scratch: Scratch) -> None:
    """A row that was deleted is not there for the next message."""

    async def forget(event: Step, ctx: Context) -> None:
        if event.n == 2:
            ctx.delete(TRACES, event.user_id)
        else:
            await trace(event, ctx)

    table = table_of(forget)
    async with player_of(table, scratch) as player:
        for seq in (1, 2, 3):
            played = await play(player, table, seq)
    assert played.effects.puts == {("traces", "ana"): b'{"seen":[3]}'}


async def test_play_passes_over_what_no_handler_takes(scratch: Scratch) -> None:
    """A message on another subject is none of the table's."""
    table = table_of()
    async with player_of(table, scratch) as player:
        assert await player.play(table, make_message(subject="signals.other")) is None


@pytest.mark.parametrize("payload", [b"{", b"{}", b"\xff"], ids=["no JSON", "missing field", "no text"])
async def test_play_gives_up_what_does_not_decode(scratch: Scratch, payload: bytes) -> None:
    """A payload that does not fit is a dead letter without a run, as in the worker."""
    table = table_of()
    async with player_of(table, scratch) as player:
        played = await play(player, table, payload=payload)
    assert (played.verdict.kind, played.key, played.event, played.effects.puts) == ("dead", "", None, {})


@pytest.mark.parametrize(
    ("error", "kind", "is_failure"),
    [(ValueError("x"), "parked", True), (Retry("later"), "parked", False), (Reject("bad"), "dead", True)],
    ids=["error", "retry", "reject"],
)
async def test_play_drops_the_effects_of_a_failure(
    scratch: Scratch, error: Exception, kind: str, is_failure: bool
) -> None:
    """What a handler asked for before it failed is not kept; the verdict is the worker's for a first attempt."""

    async def fail(event: Step, ctx: Context) -> None:
        await trace(event, ctx)
        raise error

    table = table_of(fail)
    async with player_of(table, scratch) as player:
        played = await play(player, table)
    assert (played.verdict.kind, played.verdict.is_failure) == (kind, is_failure)
    assert played.effects.puts == {} and scratch.fetch("traces", "ana") is None


async def test_peeks_are_answered_as_they_were_then(scratch: Scratch) -> None:
    """What was kept with the message is given again in its order, the last one for every further question."""
    seen: list[Trace | None] = []

    async def look(event: Step, ctx: Context) -> None:
        seen.extend(ctx.peek(OTHERS, "b") for _ in range(3))
        seen.append(ctx.peek(OTHERS, "none"))

    table = table_of(look)
    scratch.put(("others", "b"), b'{"seen":[9]}', "S", 1)
    kept = (("others", "b", b'{"seen":[1]}'), ("others", "none", None), ("others", "b", b'{"seen":[2]}'))
    async with player_of(table, scratch, *kept) as player:
        played = await play(player, table)
    assert seen == [Trace(seen=(1,)), Trace(seen=(2,)), Trace(seen=(2,)), None]
    assert played.guessed == 0


async def test_peeks_that_were_not_kept_come_from_the_scratch_and_are_counted(scratch: Scratch) -> None:
    """A handler that asks for something else today is answered from the rows made again, and that is said."""
    seen: list[Trace | None] = []

    async def look(event: Step, ctx: Context) -> None:
        seen.append(ctx.peek(OTHERS, "b"))

    table = table_of(look)
    scratch.put(("others", "b"), b'{"seen":[9]}', "S", 1)
    async with player_of(table, scratch, ("others", "a", None)) as player:
        found = [await play(player, table, seq) for seq in (1, 2)]
    assert seen == [Trace(seen=(9,))] * 2
    assert [played.guessed for played in found] == [1, 1]


async def test_time_chance_and_ids_come_from_the_message(scratch: Scratch) -> None:
    """Two runs of one message have the same ones, another message has others."""
    found = []

    async def note(event: Step, ctx: Context) -> None:
        found.append((ctx.now, ctx.random.random(), ctx.new_id()))

    table = table_of(note)
    for seq in (1, 1, 2):
        async with player_of(table, scratch) as player:
            await play(player, table, seq)
    assert found[0] == found[1] and not set(found[0]) & set(found[2])


async def test_publishing_is_checked_as_in_the_worker(scratch: Scratch) -> None:
    """Events are collected; a subject that no stream takes, and a payload above the limit, fail."""

    async def send(event: Step, ctx: Context) -> None:
        if event.n == 2:
            ctx.publish("elsewhere.x", b"{}")
        ctx.publish("signals.next", b"x" * (10 if event.n == 1 else 100_000))

    table = table_of(send)
    async with player_of(table, scratch) as player:
        found = [await play(player, table, seq) for seq in (1, 2, 3)]
    assert found[0].effects.publishes == [("signals.next", b"x" * 10)]
    assert "no stream for handlers takes" in str(found[1].verdict.error)
    assert DeclarationError.__name__ in str(found[2].verdict.error) and "above the limit" in str(found[2].verdict.error)


async def hang(event: Step, ctx: Context) -> None:
    """Waits for ever on the first message."""
    if event.n == 1:
        await asyncio.Event().wait()


async def swallow(event: Step, ctx: Context) -> None:
    """Waits on the first message, and takes the cancellation for an answer."""
    if event.n == 1:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return


async def resist(event: Step, ctx: Context) -> None:
    """Swallows the first cancellation and goes on waiting."""
    if event.n == 1:
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue


@pytest.mark.parametrize("behaviour", [hang, swallow, resist])
async def test_a_handler_past_its_time_fails_and_the_replay_goes_on(scratch: Scratch, behaviour: Behaviour) -> None:
    """An attempt that runs past timeout_s is cancelled, again if need be; the next message runs as ever."""
    table = table_of(behaviour, Policy(timeout_s=0.05))
    async with player_of(table, scratch) as player:
        late, fine = await play(player, table, 1), await play(player, table, 2)
    assert (late.verdict.kind, late.verdict.error) == ("parked", "TimeoutError: ran longer than 0.05 s")
    assert fine.verdict.kind == "applied"
    task = asyncio.current_task()
    assert task is not None and not task.cancelling()


@pytest.mark.parametrize("behaviour", [hang, swallow])
async def test_a_cancellation_from_outside_ends_the_replay(scratch: Scratch, behaviour: Behaviour) -> None:
    """Who cancels the whole, as Ctrl-C does, is obeyed even when the handler swallows it."""
    table = table_of(behaviour)
    started = asyncio.Event()

    async def whole() -> None:
        async with player_of(table, scratch) as player:
            started.set()
            await play(player, table, 1)

    task = asyncio.create_task(whole())
    await started.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_handler_that_cancels_itself_fails(scratch: Scratch) -> None:
    """A cancellation of something that the handler awaited is a failure of the handler, not the end."""

    async def cancelled(event: Step, ctx: Context) -> None:
        raise asyncio.CancelledError

    table = table_of(cancelled)
    async with player_of(table, scratch) as player:
        played = await play(player, table)
    assert played.verdict.kind == "parked" and "was cancelled" in str(played.verdict.error)


async def test_player_runs_without_its_clock(scratch: Scratch) -> None:
    """Without being entered it plays as well, with nobody to look at the time."""
    table = table_of()
    assert (await play(player_of(table, scratch), table)).verdict.kind == "applied"


async def test_what_handlers_print_goes_to_stderr(scratch: Scratch, capsys: pytest.CaptureFixture[str]) -> None:
    """The output of a replay is for programs; a print that somebody has left in a handler does not get into it."""

    async def talk(event: Step, ctx: Context) -> None:
        print("debugging")

    table = table_of(talk)
    async with player_of(table, scratch) as player:
        await play(player, table)
    assert capsys.readouterr() == ("", "debugging\n")
