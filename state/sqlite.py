"""The default store: one SQLite database in STATE_DIR, in WAL mode with ``synchronous=FULL``.

Three connections, one for each who reads or writes: ``SqliteStore`` has the writer (used by the commit thread alone)
and the loop's reader; views open a ``SqliteReader`` of their own. Statements that write many rows name them all at
once, so that the interpreter lock changes hands once a statement and not once a row.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from models.codec import encode_json
from models.errors import StoreError, StoreFenced
from state.schema import connect_readonly, create_database, examine_database, translate
from state.store import Change, Failure, Floor, Loaded, OutboxRow, ParkedLane, ParkedMessage, StoredRow

_CHUNKS = (256, 32, 4, 1)
_PARKED = ("durable", "seq", "ts", "lane", "subject", "payload", "due", "since", "failures", "attempts")

RowKey = tuple[str, str]


def _chunks(rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, list[Any]]]:
    """Cuts rows into a few fixed sizes, each flattened, so that every statement is compiled once."""
    start = 0
    for size in _CHUNKS:
        while len(rows) - start >= size:
            yield size, [value for row in rows[start : start + size] for value in row]
            start += size


class SqliteReader:
    """Reads committed rows through a connection of its own; for views and commands."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = connect_readonly(path)

    def fetch_row(self, table: str, key: str) -> StoredRow | None:
        """Reads one row.

        Raises:
            StoreError: the database can't be read.
        """
        return next(self._select("where table_name = ? and key = ?", (table, key)), None)

    def list_rows(self, table: str, *, after: str | None = None, limit: int = 100) -> list[StoredRow]:
        """Reads rows of a table by key, those after ``after`` only."""
        if after is None:
            return list(self._select("where table_name = ? order by key limit ?", (table, limit)))
        return list(self._select("where table_name = ? and key > ? order by key limit ?", (table, after, limit)))

    def count_rows(self) -> dict[str, int]:
        """Counts the rows of each table that has any."""
        try:
            found = self._connection.execute("select table_name, count(*) from rows group by table_name").fetchall()
        except sqlite3.Error as error:
            raise translate(self._path, error) from error
        return dict(found)

    def _select(self, where: str, values: Sequence[object]) -> Iterator[StoredRow]:
        query = f"select table_name, key, row, stream, seq from rows {where}"
        try:
            found = self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise translate(self._path, error) from error
        for table, key, row, stream, seq in found:
            yield StoredRow(table=table, key=key, row=msgspec.json.decode(row), stream=stream, stream_seq=seq)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


class SqliteStore:
    """The store of a worker that owns STATE_DIR; a new one fences every older one.

    Args:
        path: the database; made when missing.

    Raises:
        StoreCorrupt, StoreNewer: it was left as it is.
        StoreUnwritable: it can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        create_database(path)
        self.store_id = examine_database(path)
        try:
            self._writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
            self._writer.execute("pragma synchronous = full")
            self._writer.execute("update owner set epoch = epoch + 1")
            self.epoch: int = self._writer.execute("select epoch from owner").fetchone()[0]
            self.was_unclean = self._begin()
        except sqlite3.Error as error:
            raise translate(path, error) from error
        self._reader = connect_readonly(path)

    def _begin(self) -> bool:
        """Notes that a process is at work; tells whether the last one ended without saying so.

        Whatever such a process was running alone when it ended has one more crash on its account.
        """
        ended = self._writer.execute("select value from meta where name = 'ended'").fetchone()
        was_unclean = ended is None or ended[0] != "clean"
        if was_unclean:
            self._writer.execute("update started set crashes = crashes + 1, is_running = 0 where is_running = 1")
        self._writer.execute("replace into meta values ('ended', 'not yet')")
        return was_unclean

    def end_clean(self) -> None:
        """Notes that this process ends in order."""
        try:
            self._writer.execute("update started set is_running = 0 where is_running = 1")
            self._writer.execute("replace into meta values ('ended', 'clean')")
        except sqlite3.Error as error:
            raise translate(self.path, error) from error

    def note_start(self, durable: str, seq: int) -> None:
        """As state.store.Store."""
        query = "insert into started values (?, ?, 0, 1) on conflict (durable, seq) do update set is_running = 1"
        try:
            self._writer.execute("begin immediate")
            self._check_epoch()
            self._writer.execute(query, (durable, seq))
            self._writer.execute("commit")
        except sqlite3.Error as error:
            raise translate(self.path, error) from error
        finally:
            self._roll_back()

    def claim(self, prefix: str) -> None:
        """Binds the store to the durables' prefix under which its rows came about, for good.

        Raises:
            StoreError: it is bound to another one; read under a second one, every message would be applied twice.
        """
        try:
            self._writer.execute("insert or ignore into meta values ('durable_prefix', ?)", (prefix,))
            bound = self._writer.execute("select value from meta where name = 'durable_prefix'").fetchone()[0]
        except sqlite3.Error as error:
            raise translate(self.path, error) from error
        if bound != prefix:
            raise StoreError(
                self.path,
                f"was filled under NATS_DURABLE_PREFIX {bound!r}, not {prefix!r}: every message would be applied "
                "twice. Set that prefix again, or an empty STATE_DIR",
            )

    def commit(
        self, changes: Sequence[Change], floors: Sequence[Floor], *, marks: Sequence[Change], sent: Sequence[int]
    ) -> None:
        """As state.store.Store: all of it in one transaction, or an error and nothing; an empty one writes as well."""
        try:
            self._writer.execute("begin immediate")
            self._check_epoch()
            self._write_rows(changes)
            self._write_waiting(changes)
            self._write_positions(floors, marks)
            if sent:
                self._writer.executemany("delete from outbox where n = ?", [(n,) for n in sent])
            if not (changes or floors or sent):
                self._probe()
            self._writer.execute("commit")
        except sqlite3.Error as error:
            raise translate(self.path, error) from error
        except (ValueError, TypeError, OverflowError) as error:  # a value that SQLite or JSON can't hold
            raise StoreError(self.path, f"a change can't be stored ({error})") from error
        finally:
            self._roll_back()

    def _roll_back(self) -> None:
        """Ends a transaction that did not reach its commit; SQLite has already ended it after some errors."""
        if self._writer.in_transaction:
            self._writer.execute("rollback")

    def _check_epoch(self) -> None:
        if self._writer.execute("select epoch from owner").fetchone()[0] != self.epoch:
            raise StoreFenced(self.path, "another process has taken this store over; this one stops writing")

    def _probe(self) -> None:
        """Has a commit without content write a page (an update to an equal value writes none) to prove the disk."""
        query = "insert into meta values ('probes', '1') on conflict do update set value = value + 1"
        self._writer.execute(query)

    def _write_rows(self, changes: Sequence[Change]) -> None:
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
            stored: dict[str, int] = msgspec.json.decode(self._select_row(self._writer, table, key) or b"{}")
            for field, n in fields.items():
                stored[field] = stored.get(field, 0) + n
            rows[table, key] = (encode_json(stored), *rows[table, key][1:])
        puts = [(t, k, row.decode(), stream, seq) for (t, k), (row, stream, seq) in rows.items() if row is not None]
        for size, values in _chunks(puts):
            self._writer.execute(f"replace into rows values {_placeholders(5, size)}", values)
        if len(puts) < len(rows):
            deleted = [key for key, (row, _, _) in rows.items() if row is None]
            self._writer.executemany("delete from rows where table_name = ? and key = ?", deleted)

    def _write_waiting(self, changes: Sequence[Change]) -> None:
        """Writes parked messages, failures and outgoing events; removes those that have ended."""
        for change in changes:
            if change.failure:
                self._writer.execute(
                    "insert into failures values (?, ?, ?, ?)",
                    (change.durable, change.seq, change.failure.at, change.failure.error),
                )
            if change.parked:
                values = [getattr(change.parked, column) for column in _PARKED]
                self._writer.execute(f"replace into parked values {_placeholders(len(values), 1)}", values)
            if change.was_noted:
                where = (change.durable, change.seq)
                self._writer.execute("delete from started where durable = ? and seq = ?", where)
            if change.unparked:
                for table in ("parked", "failures"):
                    where = (change.durable, change.seq)
                    self._writer.execute(f"delete from {table} where durable = ? and seq = ?", where)
        events = [
            (row.n, row.id, row.lane, row.subject, row.payload, encode_json(row.headers).decode(), row.created)
            for change in changes
            for row in change.outbox
        ]
        for size, values in _chunks(events):
            self._writer.execute(f"insert into outbox values {_placeholders(7, size)}", values)

    def _write_positions(self, floors: Sequence[Floor], marks: Sequence[Change]) -> None:
        for size, values in _chunks([(change.durable, change.seq, change.ts) for change in marks]):
            self._writer.execute(f"replace into marks values {_placeholders(3, size)}", values)
        for floor in floors:
            self._writer.execute(
                "replace into floors values (?, ?, ?, ?, ?)",
                (floor.durable, floor.stream, floor.created, floor.seq, floor.ts),
            )
            self._writer.execute("delete from marks where durable = ? and seq <= ?", (floor.durable, floor.seq))

    def load(self, durable: str) -> Loaded:
        """As state.store.Store."""
        run = self._query
        floors = run("select durable, stream, created, seq, ts from floors where durable = ?", durable)
        lanes = run("select lane, min(seq), count(*), due from parked where durable = ? group by lane", durable)
        return Loaded(
            floor=next((Floor(durable=d, stream=s, created=c, seq=n, ts=ts) for d, s, c, n, ts in floors), None),
            marks=dict(run("select seq, ts from marks where durable = ?", durable)),
            lanes={lane: ParkedLane(due=due, count=count) for lane, _, count, due in lanes},
            was_unclean=self.was_unclean,
            crashes=dict(run("select seq, crashes from started where durable = ? and crashes > 0", durable)),
        )

    def fetch_row(self, table: str, key: str) -> bytes | None:
        """As state.store.Store."""
        try:
            return self._select_row(self._reader, table, key)
        except sqlite3.Error as error:
            raise translate(self.path, error) from error

    @staticmethod
    def _select_row(connection: sqlite3.Connection, table: str, key: str) -> bytes | None:
        query = "select cast(row as blob) from rows where table_name = ? and key = ?"
        found = connection.execute(query, (table, key)).fetchone()
        return found[0] if found else None

    def fetch_parked(self, durable: str, lane: str) -> ParkedMessage | None:
        """As state.store.Store."""
        query = f"select {', '.join(_PARKED)} from parked where durable = ? and lane = ? order by seq limit 1"
        for found in self._query(query, durable, lane):
            message = dict(zip(_PARKED, found, strict=True))
            journal = "select at, error from failures where durable = ? and seq = ? order by at"
            failures = self._query(journal, durable, message["seq"])
            return ParkedMessage(**message, journal=tuple(Failure(at=at, error=error) for at, error in failures))
        return None

    def fetch_outbox(self) -> list[OutboxRow]:
        """As state.store.Store."""
        columns = "n, id, lane, subject, payload, headers, created"
        found = self._query(f"select {columns} from outbox order by n")
        return [
            OutboxRow(n=n, id=i, lane=lane, subject=s, payload=p, headers=msgspec.json.decode(h), created=c)
            for n, i, lane, s, p, h, c in found
        ]

    def _query(self, query: str, *values: object) -> list[Any]:
        try:
            return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise translate(self.path, error) from error

    def close(self) -> None:
        """Closes both connections; the last one out folds the log into the database."""
        self._reader.close()
        self._writer.close()


def _placeholders(columns: int, rows: int) -> str:
    one = "(" + ", ".join("?" * columns) + ")"
    return ", ".join([one] * rows)
