"""What is written when a person accepts that a stream has lost data, in the caller's transaction."""

import sqlite3
import time

import attrs

from state import ledger
from state.store import Floor

_BY_SEQUENCE = ("marks", "tried", "failures", "dead", "peeks", "started")


@attrs.frozen(kw_only=True)
class Above:
    """What the store has of a durable above a sequence: the last one, and how many of each kind.

    Args:
        parked: messages that wait for their next attempt.
        unsent: events and dead letters that are not published yet.
    """

    last: int
    applied: int
    dead: int
    parked: int
    unsent: int


def count_above(connection: sqlite3.Connection, durable: str, table: str, stream: str, cut: int) -> Above:
    """Counts the outcomes above ``cut``, and what still waits of them."""

    def count(name: str) -> int:
        query = f"select count(*) from {name} where durable = ? and seq > ?"
        return int(connection.execute(query, (durable, cut)).fetchone()[0])

    query = "select segment, bits from ledger where durable = ? and segment >= ?"
    segments = connection.execute(query, (durable, ledger.segment_of(cut)))
    ids = [row_id.split(":") for (row_id,) in connection.execute("select id from outbox")]
    return Above(
        last=last_known(connection, durable),
        applied=sum(seq > cut for segment, bits in segments for seq in ledger.seqs(segment, bits)),
        dead=count("dead"),
        parked=count("parked"),
        unsent=sum(_is_above(parts, table, stream, cut) for parts in ids),
    )


def _is_above(parts: list[str], table: str, stream: str, cut: int) -> bool:
    """Whether an event, by the parts of its id, is of a message above ``cut``: handler, stream, sequence, …."""
    is_ours = len(parts) == 5 and parts[0].startswith(f"{table}.") and parts[1] == stream
    return is_ours and parts[2].isdigit() and int(parts[2]) > cut


def last_known(connection: sqlite3.Connection, durable: str) -> int:
    """The highest sequence of which the store knows an outcome."""
    found = [0]
    for table in ("floors", "parked", *_BY_SEQUENCE):
        found += [seq for (seq,) in connection.execute(f"select max(seq) from {table} where durable = ?", (durable,))]
    query = "select segment, bits from ledger where durable = ? order by segment desc limit 1"
    for segment, bits in connection.execute(query, (durable,)):
        found.append(max(ledger.seqs(segment, bits), default=0))
    return max(seq or 0 for seq in found)


def accept_loss(writer: sqlite3.Connection, floor: Floor, cut: int) -> None:
    """Forgets everything above ``cut`` of a durable, and notes the range as lost."""
    durable = floor.durable
    last = last_known(writer, durable)
    if last > cut:
        writer.execute(
            "insert into gone values (?, ?, ?, 'lost', ?) on conflict do update"
            " set last_seq = max(last_seq, excluded.last_seq), at = excluded.at",
            (durable, cut + 1, last, time.time()),
        )
    for table in _BY_SEQUENCE:
        writer.execute(f"delete from {table} where durable = ? and seq > ?", (durable, cut))
    segment = ledger.segment_of(cut)
    writer.execute("delete from ledger where durable = ? and segment > ?", (durable, segment))
    query = "select bits from ledger where durable = ? and segment = ?"
    for (bits,) in writer.execute(query, (durable, segment)).fetchall():
        kept = ledger.without_above(segment, bits, cut)
        writer.execute("update ledger set bits = ? where durable = ? and segment = ?", (kept, durable, segment))
    writer.execute("update since set seq = ? where durable = ? and seq > ?", (cut + 1, durable, cut + 1))
    values = (durable, floor.stream, floor.created, floor.seq, floor.ts)
    writer.execute("replace into floors values (?, ?, ?, ?, ?)", values)
