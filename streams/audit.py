"""Holds the store against the streams: every sequence that a table's filters match is in exactly one class.

applied, dead-lettered, pending (on the server or parked), skipped (below the first sequence that its subject is read
from); whatever is in none of them, and should be, is a gap. What the stream dropped unread, or lost, is reported too.
The stream's end is read first and the store after it, so that a worker may go on meanwhile. The decisions are functions
without I/O; streams/moment.py reads the store, streams/reading.py the stream.
"""

import asyncio
import contextlib
import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import attrs

from models.errors import AttachRefused
from state import ledger
from streams.audit_sources import stored_letters
from streams.broker import Broker
from streams.moment import Known, read_known
from streams.patterns import matches
from streams.position import check_stream
from streams.provision import check_identity, consumer_info, stream_info
from streams.reading import read_messages
from streams.topology import DEAD_LETTER_PREFIX, ConsumerSpec

RANGES_SHOWN = 100

Class = Literal["applied", "dead", "pending", "skipped", "gap"]
Range = tuple[int, int]


@attrs.define
class Ranges:
    """Sequences as ranges: the first hundred are kept, and all are counted."""

    shown: list[Range] = attrs.field(factory=list)
    count: int = 0

    @classmethod
    def of(cls, seqs: Iterable[int]) -> "Ranges":
        """Collects sequences that come in order."""
        ranges = cls()
        for seq in seqs:
            ranges.add(seq, seq)
        return ranges

    def add(self, first: int, last: int) -> None:
        """Takes a range that begins after all others."""
        self.count += last - first + 1
        if self.shown and self.shown[-1][1] == first - 1:
            self.shown[-1] = self.shown[-1][0], last
        elif len(self.shown) < RANGES_SHOWN:
            self.shown.append((first, last))

    def __str__(self) -> str:
        spans = [str(first) if first == last else f"{first} to {last}" for first, last in self.shown]
        hidden = self.count - sum(last - first + 1 for first, last in self.shown)
        return ", ".join(spans) + (f" and {hidden} more" if hidden else "")


@attrs.define(kw_only=True)
class Report:
    """The audit of one durable over a range of sequences.

    Args:
        counts: the messages in the stream that the table's filters match, by class.
        waiting_count: those of the pending ones that are parked, or wait on the server for their next attempt.
        gaps: those that have no outcome and should have one.
        read_from: subjects that are read from a later sequence on, which is why messages are skipped.
        expired: what the stream has dropped before it had an outcome; other tables' messages may be among it.
        lost: what was accepted as lost with a stream's end.
        removed: outcomes of messages that the stream has dropped since.
    """

    durable: str
    stream: str
    first_seq: int
    last_seq: int
    counts: dict[Class, int] = attrs.field(factory=lambda: dict.fromkeys(("applied", "dead", "pending", "skipped"), 0))
    waiting_count: int = 0
    gaps: Ranges = attrs.field(factory=Ranges)
    read_from: dict[str, int] = attrs.field(factory=dict)
    expired: Ranges = attrs.field(factory=Ranges)
    lost: list[Range] = attrs.field(factory=list)
    removed: dict[Class, int] = attrs.field(factory=lambda: dict.fromkeys(("applied", "dead"), 0))
    problems: list[str] = attrs.field(factory=list)

    @property
    def matched(self) -> int:
        """Messages in the stream that the table's filters match."""
        return sum(self.counts.values()) + self.gaps.count

    @property
    def is_good(self) -> bool:
        """Whether nothing is missing, expired, lost or done twice."""
        return not (self.gaps.count or self.expired.count or self.lost or self.problems)

    def note(self, seq: int, found: Class) -> None:
        """Counts a matching message; sequences come in order."""
        if found == "gap":
            self.gaps.add(seq, seq)
        else:
            self.counts[found] += 1


class Rest:
    """The outcomes in the store that no message has been found for, as bitmaps; messages are met one by one."""

    def __init__(self, known: Known, first_seq: int, last_seq: int) -> None:
        self._known = known
        self._range = first_seq, last_seq
        self._bits = {segment: bytearray(bits) for segment, bits in known.segments.items()}
        self._dead = set(known.dead)

    def meet(self, seq: int) -> bool:
        """Takes an outcome out, as its message was found; False when there is none."""
        was_dead = seq in self._dead
        self._dead.discard(seq)
        bits = self._bits.get(ledger.segment_of(seq))
        place, bit = (seq >> 3) % ledger.SEGMENT_BYTES, 1 << (seq & 7)
        if bits is not None and bits[place] & bit:
            bits[place] ^= bit
            return True
        return was_dead

    def seqs(self) -> Iterator[int]:
        """What is left, in order."""
        return outcomes(self._bits, self._dead, *self._range)

    def count(self) -> dict[Class, int]:
        """Counts what is left by class."""
        counts: dict[Class, int] = dict.fromkeys(("applied", "dead"), 0)
        for seq in self.seqs():
            counts["applied" if is_applied(seq, self._known) else "dead"] += 1
        return counts


def outcomes(
    segments: "dict[int, bytes] | dict[int, bytearray]", others: Iterable[int], first: int, last: int
) -> Iterator[int]:
    """Merges the ledger's sequences and others within a range, in order, each once."""
    wanted = sorted(s for s in segments if ledger.segment_of(first) <= s <= ledger.segment_of(last))
    applied = (seq for segment in wanted for seq in ledger.seqs(segment, bytes(segments[segment])))
    previous = 0
    for seq in heapq.merge(applied, sorted(others)):
        if first <= seq <= last and seq != previous:
            yield seq
            previous = seq


def without_outcome(first: int, last: int, known: Known) -> Iterator[Range]:
    """The parts of a range of which the store has neither an outcome nor the message itself."""
    for seq in outcomes(dict(known.segments), known.dead.keys() | known.waiting, first, last):
        if seq > first:
            yield first, seq - 1
        first = seq + 1
    if first <= last:
        yield first, last


def is_applied(seq: int, known: Known) -> bool:
    """Whether a message's handler has succeeded, at once or as a dead letter that was tried once more."""
    return known.has_bit(seq) or known.dead.get(seq, ("", ""))[1] == "applied"


def classify(seq: int, subject: str, known: Known) -> Class:
    """Finds the one class of a matching message."""
    if is_applied(seq, known):
        return "applied"
    if seq in known.dead:
        return "dead"
    if seq in known.waiting or known.floor_seq is None:
        return "pending"
    since = [first for pattern, first in known.since.items() if matches(pattern, subject)]
    if since and seq < min(since):
        return "skipped"
    if seq > known.floor_seq:
        return "pending"
    return "gap" if since or not known.since else "skipped"  # a new subject, which the durable does not filter yet


def contradictions(first: int, last: int, known: Known) -> list[str]:
    """What the store says twice and differently; one line a kind."""
    given_up = {seq for seq, (_, state) in known.dead.items() if state != "applied"}
    both = {
        "applied and given up": {seq for seq in given_up if known.has_bit(seq)},
        "applied and yet to run": {seq for seq in known.waiting if is_applied(seq, known)},
        "given up and yet to run": given_up & known.waiting,
    }
    found = {what: Ranges.of(sorted(seq for seq in seqs if first <= seq <= last)) for what, seqs in both.items()}
    problems = [f"both {what}: {seqs}" for what, seqs in found.items() if seqs.count]
    if known.again_count:
        problems.insert(0, f"{known.again_count} messages were applied twice")
    return problems


async def audit_tables(
    broker: Broker, path: Path, specs: Iterable[ConsumerSpec], *, first_seq: int = 1, last_seq: int | None = None
) -> list[Report]:
    """Audits the durables of some tables.

    Args:
        path: the store; without one, everything is pending.
        first_seq, last_seq: the range of sequences; None for the stream's last one.

    Raises:
        BrokerUnavailable, ApiError: a stream could not be read to its end.
        StoreError: the store can't be read.
    """
    return [await _audit(broker, path, spec, first_seq, last_seq) for spec in specs]


async def _audit(broker: Broker, path: Path, spec: ConsumerSpec, first_seq: int, last_seq: int | None) -> Report:
    stream = await stream_info(broker, spec.stream)
    end = stream["state"]["last_seq"] if stream else 0
    last = end if last_seq is None else min(last_seq, end)
    server = await consumer_info(broker, spec.stream, spec.durable) if stream else None
    known = await asyncio.to_thread(read_known, path, spec)
    report = Report(durable=spec.durable, stream=spec.stream, first_seq=first_seq, last_seq=last)
    report.problems += contradictions(first_seq, last, known)
    if stream is None:
        if known.floor is not None:
            report.problems.append(f"stream {spec.stream} is gone; it was read up to sequence {known.floor.seq}")
        return report
    report.problems += await _strangers(broker, spec, known, server)
    if spec.is_shared and server and known.floor_seq is not None and not _is_foreign(spec, known, server):
        known = attrs.evolve(known, floor_seq=max(known.floor_seq, server["ack_floor"]["stream_seq"]))
    rest = Rest(known, first_seq, last)
    matching = read_messages(broker, spec.stream, spec.subjects, first_seq, last, headers_only=True)
    async with contextlib.aclosing(matching) as found:
        async for message in found:
            report.note(message.seq, classify(message.seq, message.subject, known))
            report.waiting_count += message.seq in known.waiting
            rest.meet(message.seq)
    if report.counts["skipped"]:
        report.read_from = {subject: seq for subject, seq in known.since.items() if seq > first_seq}
    await _follow_rest(broker, spec, known, rest, report)
    _add_gone(report, known, stream["state"]["first_seq"], end)
    report.problems += await _missing_letters(broker, spec, known, report)
    return report


def _is_foreign(spec: ConsumerSpec, known: Known, server: Any) -> str:
    """Why the durable on the server is not this store's; empty when it is, or when there is no store."""
    try:
        if known.store_id:
            check_identity(spec.durable, server["config"], known.store_id)
    except AttachRefused as error:
        return str(error)
    return ""


async def _strangers(broker: Broker, spec: ConsumerSpec, known: Known, server: Any) -> list[str]:
    """Says when the durable, or the stream, is not the one that the store has read."""
    problems = [why] if server and (why := _is_foreign(spec, known, server)) else []
    if known.floor is None:
        return problems
    stream = await stream_info(broker, spec.stream)  # once more: a worker may have gone on before the store was read
    message = await broker.message_at(spec.stream, known.floor.seq) if known.floor.seq else None
    try:
        if stream is not None:
            check_stream(known.floor, stream, message.ts if message else None)
    except AttachRefused as error:
        problems.append(str(error))
    return problems


async def _follow_rest(broker: Broker, spec: ConsumerSpec, known: Known, rest: Rest, report: Report) -> None:
    """Finds out about outcomes without a matching message: the stream has dropped it since, or it was never ours."""
    first = next(rest.seqs(), None)
    if first is None:
        return
    last, strange = max(rest.seqs()), Ranges()
    every = read_messages(broker, spec.stream, (), first, last, headers_only=True)
    async with contextlib.aclosing(every) as found:
        async for message in found:
            # a pattern that is no longer there belonged to a handler that was removed
            is_ours = any(matches(pattern, message.subject) for pattern in known.since)
            if rest.meet(message.seq) and not is_ours:
                strange.add(message.seq, message.seq)
    if strange.count:
        report.problems.append(f"{strange.count} messages have an outcome and don't match the table: {strange}")
    report.removed = rest.count()


def _add_gone(report: Report, known: Known, stream_first_seq: int, end: int) -> None:
    """Adds what was dropped unread or lost: what workers have noted, and what none has met yet."""
    gone = [(first, last) for first, last, what in known.gone if what == "expired"]
    unread = (known.floor.seq + 1 if known.floor else stream_first_seq), stream_first_seq - 1
    if known.floor and known.floor.seq < end:
        gone.append(unread)
    first_seq = report.first_seq
    for first, last in sorted(gone):
        for begin, finish in without_outcome(max(first, first_seq), min(last, report.last_seq), known):
            report.expired.add(begin, finish)
        first_seq = max(first_seq, last + 1)
    report.lost = [
        (first, last) for first, last, what in known.gone if what == "lost" and last >= report.first_seq
    ]  # these sequences may be in use again, or not there any more


async def _missing_letters(broker: Broker, spec: ConsumerSpec, known: Known, report: Report) -> list[str]:
    """Messages given up whose dead letters are neither stored nor on their way; the store was read before."""
    wanted = {
        seq: handler
        for seq, (handler, state) in sorted(known.dead.items())
        if state != "applied" and report.first_seq <= seq <= report.last_seq
    }
    if not wanted:
        return []
    there = await stored_letters(broker, spec.stream)
    on_their_way = {row_id.rsplit(":", 2)[0] for row_id in known.unsent}
    missing = Ranges.of(
        seq
        for seq, handler in wanted.items()
        if f"{DEAD_LETTER_PREFIX}{spec.stream}.{handler}.{seq}" not in there
        and f"{handler}:{spec.stream}:{seq}" not in on_their_way
    )
    return [f"{missing.count} messages were given up and their dead letters are nowhere: {missing}"] * bool(
        missing.count
    )
