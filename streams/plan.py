"""Decides from where the rows of a subject table can be made again: the first message, or a snapshot. Pure.

The ledger says which messages were applied, so it says which ones have to run again, and whether the stream still has
them. streams/replay.py runs them.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from state import ledger
from state.snapshots import Snapshot
from streams.message import Message
from streams.moment import Known
from streams.subjects import SubjectTable
from streams.topology import ConsumerSpec

FAILURES_KEPT = 100


@attrs.frozen(kw_only=True)
class Base:
    """A snapshot in which rows may begin, with what it knew of a durable."""

    snapshot: Snapshot
    known: Known


@attrs.frozen(kw_only=True)
class Failed:
    """A message that was applied once and that today's handler does not take."""

    seq: int
    handler: str
    error: str


@attrs.define(kw_only=True)
class Plan:
    """How the rows of one subject table are made again, up to a sequence.

    Args:
        known: what the store knows of its durable.
        upto: the first sequence that is no longer part of it.
        base: the snapshot that they begin with; None for the first message.
        wanted: the sequences that have to run.
        trouble: why they can't be made again as a whole; None when they can.
        ran: how many of the wanted messages were met in the stream.
        is_read: the stream was read up to the end of the plan, so that what was not met is missing.
        failed: those that today's handlers don't take: ``failed_count``, and the first ones.
    """

    table: SubjectTable
    spec: ConsumerSpec
    known: Known
    upto: int
    base: Base | None = None
    wanted: ledger.Numbers = attrs.field(factory=dict)
    trouble: str | None = None
    ran: int = 0
    is_read: bool = False
    guessed: int = 0
    failed_count: int = 0
    failed: list[Failed] = attrs.field(factory=list)
    _late: list[tuple[float, int, Message]] = attrs.field(factory=list, init=False)

    @property
    def durable(self) -> str:
        """Under which name the store knows it."""
        return self.known.floor.durable if self.known.floor else self.spec.durable

    def wants(self, seq: int) -> bool:
        """Whether a message has to run."""
        return ledger.contains(self.wanted, seq)

    def take(self, message: Message) -> bool:
        """Counts a wanted message; False when its turn comes later, since it was a dead letter that was redriven."""
        self.ran += 1
        at = self.known.redriven.get(message.seq)
        if at is None:
            return True
        heapq.heappush(self._late, (at, message.seq, message))
        return False

    def late(self, until_s: float) -> Iterator[Message]:
        """The redriven messages that were applied before an instant (Unix seconds), in the order of that."""
        while self._late and self._late[0][0] < until_s:
            yield heapq.heappop(self._late)[2]

    def fail(self, seq: int, handler: str, error: str) -> None:
        """Notes a message that today's handler does not take."""
        self.failed_count += 1
        if len(self.failed) < FAILURES_KEPT:
            self.failed.append(Failed(seq=seq, handler=handler, error=error))

    @property
    def missing_count(self) -> int:
        """Wanted messages that the stream does not have; 0 until it is read."""
        return ledger.count(self.wanted) - self.ran if self.is_read else 0

    @property
    def proved(self) -> str:
        """The range that was run again, and what it began with."""
        last = ledger.highest(self.wanted) or (
            ledger.highest(ledger.numbers(self.base.known.segments)) if self.base else 0
        )
        if not last:
            return "nothing was applied"
        if self.base is None:
            return f"{self.spec.stream} 1 to {last}"
        begun = self.base.snapshot.taken_at.isoformat(timespec="seconds")
        first = ledger.lowest(self.wanted)
        span = f"{self.spec.stream} {first} to {last}" if first else "no message since"
        return f"{span}, on the snapshot of {begun}; what led to that is not proved"


def make_plan(
    table: SubjectTable,
    spec: ConsumerSpec,
    known: Known,
    *,
    stream: Mapping[str, Any] | None,
    bases: Iterable[Base],
    upto: int | None = None,
) -> Plan:
    """Chooses what the rows of a table begin with, and which messages have to run after that.

    Args:
        stream: what the server says of the stream; None when it is gone.
        bases: the snapshots that may be used, the newest first; the first message comes last.
        upto: the first sequence that is left out; None for everything that was applied.
    """
    applied = ledger.numbers(known.segments)
    end = ledger.highest(applied) + 1 if upto is None else upto
    plan = Plan(table=table, spec=spec, known=known, upto=end)
    if known.floor is None:
        return plan
    if stream is None or stream["created"] != known.floor.created:
        plan.trouble = f"stream {spec.stream} is not the one that the store has read: it is gone, or was made anew"
        return plan
    first_kept = int(stream["state"]["first_seq"])
    for base in bases:
        wanted = _after(base, known, applied, end)
        if wanted is not None and not ledger.below(wanted, first_kept):
            plan.base, plan.wanted = base, wanted
            return plan
    plan.wanted = ledger.below(applied, end)
    first = ledger.lowest(plan.wanted)
    if first is not None and first < first_kept:
        gone = ledger.count(ledger.below(plan.wanted, first_kept))
        plan.trouble = (
            f"{gone} messages that were applied, from sequence {first} on, are no longer in stream {spec.stream},"
            " and no snapshot has what they led to"
        )
    return plan


def _after(base: Base, known: Known, applied: ledger.Numbers, end: int) -> ledger.Numbers | None:
    """What has to run after a snapshot; None when it is of another stream, or knows what comes later."""
    floor = base.known.floor
    if floor is None or known.floor is None or floor.created != known.floor.created:
        return None
    had = ledger.numbers(base.known.segments)
    if ledger.minus(had, ledger.below(applied, end)):
        return None
    return ledger.minus(ledger.below(applied, end), had)
