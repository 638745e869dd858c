"""Runs stored messages through today's handlers again, without touching production.

An ephemeral consumer reads, a scratch store takes the rows: empty, or made again up to the first message that is asked
for. No durable, no store and no subject moves. What is shown, and how, is decided by the caller (app/cli/replay.py).
"""

import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence

import attrs

from state import ledger
from state.scratch import Scratch
from state.snapshots import Snapshot
from streams.broker import Broker
from streams.message import Message
from streams.moment import Moment
from streams.patterns import as_filter
from streams.plan import Base, Plan, make_plan
from streams.player import Played, Player
from streams.provision import stream_info
from streams.reading import read_messages
from streams.subjects import SubjectTable
from streams.topology import ConsumerSpec


@attrs.frozen(kw_only=True)
class Span:
    """The sequences of a stream that are asked for, both included."""

    first: int
    last: int


Progress = Callable[[str, int], None]
"""Told the stream and the sequence that was read last."""


async def make_plans(
    broker: Broker,
    moment: Moment,
    tables: Sequence[tuple[SubjectTable, ConsumerSpec]],
    snapshots: Sequence[Snapshot],
    *,
    spans: Mapping[str, Span] | None = None,
) -> list[Plan]:
    """Plans how the rows of subject tables are made again.

    Args:
        snapshots: those that may be used, the oldest first; what a rebuild replaced is left out.
        spans: the messages, by stream, before which the rows are wanted; None: as they are at this moment.

    Raises:
        BrokerUnavailable, ApiError: the server does not say what the streams are.
    """
    infos = {stream: await stream_info(broker, stream) for stream in {spec.stream for _, spec in tables}}
    usable = [snapshot for snapshot in reversed(snapshots) if snapshot.reason != "before-rebuild"]
    plans = []
    for table, spec in tables:
        bases = []
        for snapshot in usable:
            with Moment(snapshot.path) as then:
                bases.append(Base(snapshot=snapshot, known=then.known(spec)))
        upto = spans[spec.stream].first if spans else None
        known = moment.known(spec)
        plans.append(make_plan(table, spec, known, stream=infos[spec.stream], bases=bases, upto=upto))
    return plans


def load_bases(plans: Sequence[Plan], scratch: Scratch) -> None:
    """Gives the scratch store the rows that the plans begin with."""
    for plan in plans:
        if plan.base:
            for table in plan.table.tables:
                scratch.load(plan.base.snapshot.path, table.name)


async def replay(
    broker: Broker,
    plans: Sequence[Plan],
    player: Player,
    *,
    spans: Mapping[str, Span] | None = None,
    progress: Progress = lambda stream, seq: None,
) -> AsyncGenerator[Played, None]:
    """Makes the rows again as planned, then yields what becomes of each message that is asked for, in order.

    Args:
        spans: the messages asked for, by stream; None for none at all.

    Raises:
        BrokerError: a stream could not be read to its end.
        StoreError: the scratch store is full.
    """
    for stream in sorted({plan.spec.stream for plan in plans}):
        group = [plan for plan in plans if plan.spec.stream == stream]
        span = spans[stream] if spans else None
        async with contextlib.aclosing(_messages(broker, stream, group, span)) as messages:
            async for message in messages:
                progress(stream, message.seq)
                for plan in group:
                    await _catch_up(plan, player, message.ts / 1e9)
                    if message.seq < plan.upto:
                        if plan.wants(message.seq) and plan.take(message):
                            await _run_again(plan, player, message)
                        continue
                    plan.is_read = True
                    if span and (played := await player.play(plan.table, message)):
                        if played.verdict.kind == "applied":
                            player.keep(played)
                        yield played
        for plan in group:
            plan.is_read = True
            await _catch_up(plan, player, float("inf"))


async def rebuild(broker: Broker, plans: Sequence[Plan], player: Player, *, progress: Progress) -> None:
    """Makes the rows again as planned; a plan that finds a message missing says so as its trouble.

    Raises:
        BrokerError, StoreError: as ``replay``.
    """
    sound = [plan for plan in plans if plan.trouble is None]
    async with contextlib.aclosing(replay(broker, sound, player, progress=progress)) as shown:
        async for _ in shown:
            raise AssertionError("without spans nothing is shown")
    player.flush()
    for plan in sound:
        if plan.missing_count:
            plan.trouble = f"{plan.missing_count} messages that were applied are no longer in stream {plan.spec.stream}"


def _messages(broker: Broker, stream: str, plans: Collection[Plan], span: Span | None) -> AsyncGenerator[Message, None]:
    firsts = [first for plan in plans if (first := ledger.lowest(plan.wanted)) is not None]
    lasts = [ledger.highest(plan.wanted) for plan in plans]
    if span:
        firsts.append(span.first)
        lasts.append(span.last)
    subjects = {subject for plan in plans for subject in plan.spec.subjects}
    subjects |= {subject for plan in plans if plan.wanted for subject in plan.known.since}  # of removed handlers, too
    return read_messages(broker, stream, as_filter(subjects), min(firsts, default=1), max(lasts, default=0))


async def _catch_up(plan: Plan, player: Player, until_s: float) -> None:
    for message in plan.late(until_s):
        await _run_again(plan, player, message)


async def _run_again(plan: Plan, player: Player, message: Message) -> None:
    played = await player.play(plan.table, message)
    if played is None:
        plan.fail(message.seq, f"{plan.table.name}.removed", f"no handler takes {message.subject!r} any more")
    elif played.verdict.kind == "applied":
        plan.guessed += played.guessed
        player.keep(played)
    else:
        plan.fail(message.seq, played.handler.name, played.verdict.error or "")
