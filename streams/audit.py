"""Holds the store against the streams: every sequence that a table's filters match is in exactly one class.

applied, dead-lettered, pending (on the server or parked), skipped (below the first sequence that its subject is read
from); whatever is in none of them, and should be, is a gap. What the stream dropped unread, or lost, is reported too.
The stream's end is read first and the store after it, so that a worker may go on meanwhile.
"""

import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from models.errors import BrokerError
from state import ledger
from state.schema import connect_readonly, translate
from streams.broker import API_PREFIX, Broker
from streams.patterns import matches
from streams.provision import consumer_info, stream_info
from streams.topology import DEAD_LETTER_PREFIX, DEAD_LETTERS, NANOSECONDS, ConsumerSpec

SILENT_S = 10.0
RANGES_SHOWN = 100

Class = Literal["applied", "dead", "pending", "skipped", "gap"]


@attrs.frozen(kw_only=True)
class Known:
    """What the store knows of one durable.

    Args:
        floor_seq: up to here everything has its outcome; for a shared durable, the server's own floor counts too.
        since: the first sequence that each subject, or pattern, is read from.
        segments: the ledger's bitmaps.
        again_count: bits of the ledger that were set twice.
        dead: handler and state of what was given up, by sequence.
        waiting: sequences that are parked, or that the server keeps for their next attempt.
        gone: first and last sequence, and what became of them.
        unsent: ids of events that are not published yet.
    """

    floor_seq: int = 0
    since: Mapping[str, int] = attrs.field(factory=dict)
    segments: Mapping[int, bytes] = attrs.field(factory=dict)
    again_count: int = 0
    dead: Mapping[int, tuple[str, str]] = attrs.field(factory=dict)
    waiting: frozenset[int] = frozenset()
    gone: Sequence[tuple[int, int, str]] = ()
    unsent: frozenset[str] = frozenset()


@attrs.define(kw_only=True)
class Report:
    """The audit of one durable over a range of sequences; ``removed`` were applied and are no longer in the stream."""

    durable: str
    stream: str
    first_seq: int
    last_seq: int
    counts: dict[Class, int] = attrs.field(factory=lambda: dict.fromkeys(("applied", "dead", "pending", "skipped"), 0))
    gaps: list[tuple[int, int]] = attrs.field(factory=list)
    gap_count: int = 0
    expired: list[tuple[int, int]] = attrs.field(factory=list)
    lost: list[tuple[int, int]] = attrs.field(factory=list)
    removed: int = 0
    problems: list[str] = attrs.field(factory=list)

    @property
    def matched(self) -> int:
        """Messages in the stream that the table's filters match."""
        return sum(self.counts.values()) + self.gap_count

    @property
    def is_good(self) -> bool:
        """Whether nothing is missing, expired, lost or done twice."""
        return not (self.gap_count or self.expired or self.lost or self.problems)

    def note(self, seq: int, found: Class) -> None:
        """Counts a matching message; sequences come in order."""
        if found != "gap":
            self.counts[found] += 1
            return
        self.gap_count += 1
        if self.gaps and self.gaps[-1][1] == seq - 1:
            self.gaps[-1] = self.gaps[-1][0], seq
        elif len(self.gaps) < RANGES_SHOWN:
            self.gaps.append((seq, seq))


def classify(seq: int, subject: str, known: Known) -> Class:
    """Finds the one class of a matching message."""
    bits = known.segments.get(ledger.segment_of(seq))
    if bits is not None and ledger.has(bits, seq):
        return "applied"
    if seq in known.dead:
        return "dead"
    if seq in known.waiting:
        return "pending"
    since = [first for pattern, first in known.since.items() if matches(pattern, subject)]
    if since and seq < min(since):
        return "skipped"
    return "pending" if seq > known.floor_seq else "gap"


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
    if stream is None:
        raise BrokerError(f"stream {spec.stream} is not there")
    end = stream["state"]["last_seq"]
    last = end if last_seq is None else min(last_seq, end)
    server = await consumer_info(broker, spec.stream, spec.durable)
    known = read_known(path, spec)
    if spec.is_shared and server:
        known = attrs.evolve(known, floor_seq=max(known.floor_seq, server["ack_floor"]["stream_seq"]))
    report = Report(durable=spec.durable, stream=spec.stream, first_seq=first_seq, last_seq=last)
    async with contextlib.aclosing(_matching(broker, spec, first_seq, last)) as found:
        async for seq, subject in found:
            report.note(seq, classify(seq, subject, known))
    _add_findings(report, known, stream["state"]["first_seq"])
    unread = known.floor_seq + 1, stream["state"]["first_seq"] - 1
    if known.floor_seq and unread[0] <= unread[1] and end > known.floor_seq and unread not in report.expired:
        report.expired.append(unread)  # no worker has attached since
    report.problems += await _missing_letters(broker, spec, known)
    return report


def _add_findings(report: Report, known: Known, stream_first_seq: int) -> None:
    """Adds what the store says by itself."""
    if known.again_count:
        report.problems.append(f"{known.again_count} messages were applied twice")
    for first, last, what in known.gone:
        if last >= report.first_seq and first <= max(report.last_seq, stream_first_seq):
            (report.expired if what == "expired" else report.lost).append((first, last))
    for segment, bits in known.segments.items():
        if segment <= ledger.segment_of(stream_first_seq):
            report.removed += sum(report.first_seq <= seq < stream_first_seq for seq in ledger.seqs(segment, bits))


async def _matching(
    broker: Broker, spec: ConsumerSpec, first_seq: int, last_seq: int
) -> AsyncGenerator[tuple[int, str], None]:
    """Sequence and subject of each message in the stream that the filters match, in order."""
    config = {
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": max(1, first_seq),
        "filter_subjects": list(spec.subjects),
        "ack_policy": "none",
        "headers_only": True,
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": 30 * NANOSECONDS,
    }
    created = await broker.api(f"CONSUMER.CREATE.{spec.stream}", {"stream_name": spec.stream, "config": config})
    name, count = created["name"], created["num_pending"]
    try:
        async with contextlib.aclosing(broker.read(spec.stream, name, count, silent_s=SILENT_S)) as messages:
            async for message, _ in messages:
                if message.seq > last_seq:
                    return
                yield message.seq, message.subject
    finally:
        await broker.send(f"{API_PREFIX}CONSUMER.DELETE.{spec.stream}.{name}")


async def _missing_letters(broker: Broker, spec: ConsumerSpec, known: Known) -> list[str]:
    """Messages given up whose dead letters are neither stored nor on their way."""
    if not known.dead:
        return []
    pattern = f"{DEAD_LETTER_PREFIX}{spec.stream}.>"
    info = await broker.api(f"STREAM.INFO.{DEAD_LETTERS}", {"subjects_filter": pattern})
    there = (info["state"].get("subjects") or {}).keys()
    on_their_way = {tuple(row_id.split(":")[:3]) for row_id in known.unsent}
    return [
        f"message {seq} was given up by {handler}, and its dead letter is nowhere"
        for seq, (handler, _) in known.dead.items()
        if f"{DEAD_LETTER_PREFIX}{spec.stream}.{handler}.{seq}" not in there
        and (handler, spec.stream, str(seq)) not in on_their_way
    ]


def read_known(path: Path, spec: ConsumerSpec) -> Known:
    """Reads what the store knows of a durable, all of one moment.

    Raises:
        StoreError: the store can't be read.
    """
    if not path.exists():
        return Known()
    connection = connect_readonly(path)
    try:
        connection.execute("begin")
        return _known(connection, spec)
    except sqlite3.Error as error:
        raise translate(path, error) from error
    finally:
        connection.close()


def _known(connection: sqlite3.Connection, spec: ConsumerSpec) -> Known:
    def select(columns: str, table: str) -> Iterator[Any]:
        return connection.execute(f"select {columns} from {table} where durable = ?", (spec.durable,))

    floor = next(select("seq", "floors"), (0,))[0]
    found = list(select("segment, bits, again", "ledger"))
    waiting = {seq for table in ("parked", "tried") for (seq,) in select("seq", table)}
    dead = {seq: (handler, state) for seq, handler, state in select("seq, handler, state", "dead")}
    return Known(
        floor_seq=floor,
        since=dict(select("subject, seq", "since")),
        segments={segment: bits for segment, bits, _ in found},
        again_count=sum(again for _, _, again in found),
        dead={seq: facts for seq, facts in dead.items() if facts[1] != "applied"},
        waiting=frozenset(waiting),
        gone=list(select("first_seq, last_seq, what", "gone")),
        unsent=frozenset(row_id for (row_id,) in connection.execute("select id from outbox")),
    )
