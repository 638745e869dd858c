"""What is written when a person accepts that a stream has lost data, in the caller's transaction."""

import sqlite3
import time

from state import ledger
from state.store import Floor

_BY_SEQUENCE = ("marks", "tried", "failures", "dead", "peeks", "started")


def last_known(connection: sqlite3.Connection, durable: str) -> int:
    """The highest sequence of which the store knows an outcome."""
    found = [0]
    for table in ("floors", *_BY_SEQUENCE):
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
        writer.execute("replace into gone values (?, ?, ?, 'lost', ?)", (durable, cut + 1, last, time.time()))
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
