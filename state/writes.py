"""The statements of one commit, on a connection whose transaction the caller begins and ends.

Statements that write many rows name them all at once, so that the interpreter lock changes hands once a statement and
not once a row.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

import msgspec

from models.codec import encode_json
from state import ledger
from state.store import Change, Floor, Place

CHUNKS = (256, 32, 4, 1)
PARKED = ("durable", "seq", "ts", "lane", "subject", "payload", "due", "since", "failures", "attempts", "is_redriven")

RowKey = tuple[str, str]


def chunks(rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, list[Any]]]:
    """Cuts rows into a few fixed sizes, each flattened, so that every statement is compiled once."""
    start = 0
    for size in CHUNKS:
        while len(rows) - start >= size:
            yield size, [value for row in rows[start : start + size] for value in row]
            start += size


def placeholders(columns: int, rows: int) -> str:
    """The question marks of a statement that names ``rows`` rows."""
    one = "(" + ", ".join("?" * columns) + ")"
    return ", ".join([one] * rows)


def find_done(writer: sqlite3.Connection, changes: Sequence[Change]) -> Set[Place]:
    """The shared changes whose messages another process has given an outcome."""
    done: set[Place] = set()
    by_durable: dict[str, list[int]] = {}
    for change in changes:
        if change.is_shared and not (change.unparked or change.is_redriven):
            by_durable.setdefault(change.durable, []).append(change.seq)
    for durable, seqs in by_durable.items():
        floor = writer.execute("select seq from floors where durable = ?", (durable,)).fetchone()
        done |= {(durable, seq) for seq in seqs if floor and seq <= floor[0]}
        for size, values in chunks([(seq,) for seq in seqs]):
            query = f"select seq from marks where durable = ? and seq in ({', '.join('?' * size)})"
            done |= {(durable, seq) for (seq,) in writer.execute(query, (durable, *values))}
    return done


def is_over(writer: sqlite3.Connection, durable: str, seq: int) -> bool:
    """Whether a message has its last outcome: another process may have been faster than this one's note of a start."""
    values = {"durable": durable, "seq": seq}
    query = (
        "select (exists (select 1 from marks where durable = :durable and seq = :seq)"
        " or exists (select 1 from floors where durable = :durable and seq >= :seq))"
        " and not exists (select 1 from parked where durable = :durable and seq = :seq)"
        " and not exists (select 1 from dead where durable = :durable and seq = :seq and state = 'dead')"
    )
    return bool(writer.execute(query, values).fetchone()[0])


def take_back_notes(writer: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Removes the notes of starts, also of messages that had their outcome already.

    A note of a shared message may be another process's, which this one need not have seen.
    """
    noted = [(change.durable, change.seq) for change in changes if change.was_noted or change.is_shared]
    if not noted or not writer.execute("select exists (select 1 from started)").fetchone()[0]:
        return
    writer.executemany("delete from started where durable = ? and seq = ?", noted)


def write_rows(writer: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Writes the last state of each row, with the sums of counters."""
    rows: dict[RowKey, tuple[bytes | None, str, int]] = {}
    sums: dict[RowKey, dict[str, int]] = {}
    for change in changes:
        for table, key, row in change.puts:
            rows[table, key] = (row, change.stream, change.seq)
        for table, key, field, n in change.adds:
            fields = sums.setdefault((table, key), {})
            fields[field] = fields.get(field, 0) + n
            rows[table, key] = (None, change.stream, change.seq)
    for (table, key), fields in sums.items():
        stored: dict[str, int] = msgspec.json.decode(select_row(writer, table, key) or b"{}")
        for field, n in fields.items():
            stored[field] = stored.get(field, 0) + n
        rows[table, key] = (encode_json(stored), *rows[table, key][1:])
    puts = [(t, k, row.decode(), stream, seq) for (t, k), (row, stream, seq) in rows.items() if row is not None]
    for size, values in chunks(puts):
        writer.execute(f"replace into rows values {placeholders(5, size)}", values)
    if len(puts) < len(rows):
        deleted = [key for key, (row, _, _) in rows.items() if row is None]
        writer.executemany("delete from rows where table_name = ? and key = ?", deleted)


def select_row(connection: sqlite3.Connection, table: str, key: str) -> bytes | None:
    """Reads a row as JSON, or None."""
    query = "select cast(row as blob) from rows where table_name = ? and key = ?"
    found = connection.execute(query, (table, key)).fetchone()
    return found[0] if found else None


def write_ledger(writer: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Sets the bits of what was applied."""
    applied: dict[tuple[str, int], list[int]] = {}
    for change in changes:
        if change.is_applied:
            applied.setdefault((change.durable, ledger.segment_of(change.seq)), []).append(change.seq)
    for (durable, segment), seqs in applied.items():
        query = "select bits, again from ledger where durable = ? and segment = ?"
        bits, again = writer.execute(query, (durable, segment)).fetchone() or (None, 0)
        marked, repeated = ledger.mark(bits, seqs)
        values = (durable, segment, marked, again + repeated)
        writer.execute("replace into ledger values (?, ?, ?, ?)", values)


def write_waiting(writer: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Writes what is not over: parked and tried messages, dead letters, failures, outgoing events; removes what is."""
    for change in changes:
        where = (change.durable, change.seq)
        if change.failure:
            values = (*where, change.failure.at, change.failure.error)
            writer.execute("insert into failures values (?, ?, ?, ?)", values)
        if change.parked:
            parked = [getattr(change.parked, column) for column in PARKED]
            writer.execute(f"replace into parked values {placeholders(len(parked), 1)}", parked)
        if change.tried:
            tried = change.tried
            writer.execute(
                "replace into tried values (?, ?, ?, ?, ?, ?)",
                (*where, tried.due, tried.since, tried.failures, tried.attempts),
            )
        for table in _over(change):
            writer.execute(f"delete from {table} where durable = ? and seq = ?", where)
        if change.peeks:
            peeks = [(*where, n, *_as_text(peek)) for n, peek in enumerate(change.peeks)]
            writer.executemany("replace into peeks values (?, ?, ?, ?, ?, ?)", peeks)
    take_back_notes(writer, changes)
    write_dead(writer, changes)
    write_outbox(writer, changes)


def _over(change: Change) -> tuple[str, ...]:
    """The tables in which a message no longer waits after this change."""
    if change.unparked:
        return ("parked", "failures")
    if not change.is_shared or change.tried:
        return ()
    return ("tried",) if change.parked else ("tried", "failures")


def _as_text(peek: tuple[str, str, bytes | None]) -> tuple[str, str, str | None]:
    name, key, value = peek
    return name, key, None if value is None else value.decode()


def write_dead(writer: sqlite3.Connection, changes: Iterable[Change]) -> None:
    """Writes who was given up, and what became of those that were tried once more."""
    for change in changes:
        where = (change.durable, change.seq)
        if change.is_redriven and not change.parked:
            dead = change.dead
            state, error = ("dead", dead.error) if dead else ("applied", None)
            writer.execute(
                "update dead set state = ?, redrives = redrives + 1, error = coalesce(?, error), resolved_at = ?"
                " where durable = ? and seq = ?",
                (state, error, None if dead else time.time(), *where),
            )
        elif change.dead:
            dead = change.dead
            values = (*where, change.ts, dead.handler, dead.at, dead.error, dead.state, dead.redrives, None, dead.note)
            writer.execute(f"replace into dead values {placeholders(len(values), 1)}", values)


def write_outbox(writer: sqlite3.Connection, changes: Iterable[Change]) -> None:
    """Appends outgoing events in order."""
    events = [
        (row.id, row.lane, row.subject, row.payload, encode_json(row.headers).decode(), row.created)
        for change in changes
        for row in change.outbox
    ]
    for size, values in chunks(events):
        columns = "id, lane, subject, payload, headers, created"
        writer.execute(f"insert into outbox ({columns}) values {placeholders(6, size)}", values)


def write_positions(writer: sqlite3.Connection, floors: Sequence[Floor], marks: Sequence[Change]) -> None:
    """Writes floors, and marks above them; what a floor covers needs no mark."""
    for size, values in chunks([(change.durable, change.seq, change.ts) for change in marks]):
        writer.execute(f"replace into marks values {placeholders(3, size)}", values)
    for floor in floors:
        writer.execute(
            "insert into floors values (?, ?, ?, ?, ?) on conflict (durable) do update"
            " set seq = excluded.seq, ts = excluded.ts where excluded.seq > seq",  # of two who share, one is behind
            (floor.durable, floor.stream, floor.created, floor.seq, floor.ts),
        )
        writer.execute("delete from marks where durable = ? and seq <= ?", (floor.durable, floor.seq))
        writer.execute("delete from tried where durable = ? and seq <= ?", (floor.durable, floor.seq))
