"""The default store: one SQLite database in STATE_DIR, in WAL mode with ``synchronous=FULL``.

Three connections, one for each who reads or writes: ``SqliteStore`` has the writer (used by the commit thread alone)
and the loop's reader; views open a ``SqliteReader`` of their own. The statements of a commit are in state/writes.py.
"""

import contextlib
import math
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import msgspec

from models.errors import StoreError, StoreFenced
from state import repair, writes
from state.schema import OF_DURABLES, connect_readonly, create_database, examine_database, translate
from state.store import (
    Change,
    DeadLetter,
    EncodedRow,
    Failure,
    Floor,
    Loaded,
    OutboxEntry,
    OutboxRow,
    ParkedLane,
    ParkedMessage,
    Place,
    Started,
    StoredRow,
    Tried,
)

_DEAD = ("handler", "at", "error", "ts", "state", "redrives", "resolved_at", "note")
_SELECT_DEAD = (
    f"select seq, {', '.join(_DEAD)},"
    " exists (select 1 from parked where parked.durable = dead.durable and parked.seq = dead.seq) from dead"
)


def _dead_letter(facts: Sequence[Any]) -> DeadLetter:
    """One row of ``_SELECT_DEAD`` after its sequence."""
    *values, is_waiting = facts
    return DeadLetter(**dict(zip(_DEAD, values, strict=True)), is_waiting=bool(is_waiting))


class SqliteReader:
    """Reads committed rows through a connection of its own; for views and commands.

    Args:
        busy_s: seconds to wait for a database that another process has locked whole.
    """

    def __init__(self, path: Path, *, busy_s: float = 5) -> None:
        self._path = path
        self._connection = connect_readonly(path, busy_s=busy_s)

    def fetch_row(self, table: str, key: str) -> StoredRow | None:
        """Reads one row.

        Raises:
            StoreError: the database can't be read.
        """
        return next(self._select("where table_name = ? and key = ?", (table, key)), None)

    def fetch_encoded(self, table: str, key: str) -> EncodedRow | None:
        """Reads one row as the JSON that is stored.

        Raises:
            StoreError: the database can't be read.
        """
        query = "select row, stream, seq from rows where table_name = ? and key = ?"
        try:
            found = self._connection.execute(query, (table, key)).fetchone()
        except sqlite3.Error as error:
            raise translate(self._path, error) from error
        return None if found is None else EncodedRow(row=found[0].encode(), stream=found[1], stream_seq=found[2])

    def list_rows(self, table: str, *, after: str | None = None, limit: int = 100) -> list[StoredRow]:
        """Reads rows of a table by key, those after ``after`` only."""
        if after is None:
            return list(self._select("where table_name = ? order by key limit ?", (table, limit)))
        return list(self._select("where table_name = ? and key > ? order by key limit ?", (table, after, limit)))

    def fetch_dead(self) -> dict[tuple[str, int], DeadLetter]:
        """Reads what is known of every message that was given up, by handler and sequence."""
        try:
            found = self._connection.execute(_SELECT_DEAD).fetchall()
        except sqlite3.Error as error:
            raise translate(self._path, error) from error
        letters = [(seq, _dead_letter(facts)) for seq, *facts in found]
        return {(letter.handler, seq): letter for seq, letter in letters}

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
    """The store of a worker process.

    The owner's fences every older owner; a shared one, for the tables that all workers of a STATE_DIR serve, fences
    nobody and is fenced by nobody.

    Args:
        path: the database; made when missing.
        runner: names this process in the notes of starts.
        alive: the names of all processes that live; whatever any other was running alone has one more crash on its
            account.

    Raises:
        StoreCorrupt, StoreNewer: it was left as it is.
        StoreUnwritable: it can't be written.
    """

    def __init__(
        self, path: Path, *, runner: str = "worker", alive: Collection[str] = (), is_owner: bool = True
    ) -> None:
        self.path = path
        self.is_owner = is_owner
        self._runner = runner
        create_database(path)
        self.store_id = examine_database(path, is_deep=is_owner)
        try:
            self._writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
            self._writer.execute("pragma synchronous = full")
            if is_owner:
                self._writer.execute("update owner set epoch = epoch + 1")
            self.epoch: int = self._writer.execute("select epoch from owner").fetchone()[0]
            self._note_crashes(alive)
            self.was_unclean = self._begin() if is_owner else False
        except sqlite3.Error as error:
            raise translate(path, error) from error
        self._reader = connect_readonly(path)

    def _note_crashes(self, alive: Collection[str]) -> None:
        names = ", ".join("?" * len(alive))
        query = f"update started set crashes = crashes + 1, runner = '' where runner != '' and runner not in ({names})"
        self._writer.execute(query, tuple(alive))

    def _begin(self) -> bool:
        """Notes that an owner is at work; tells whether the last one ended without saying so."""
        ended = self._writer.execute("select value from meta where name = 'ended'").fetchone()
        self._writer.execute("replace into meta values ('ended', 'not yet')")
        return ended is None or ended[0] != "clean"

    def end_clean(self) -> None:
        """Notes that this process ends in order: what it ran alone did not kill it."""
        try:
            self._writer.execute("update started set runner = '' where runner = ?", (self._runner,))
            if self.is_owner:
                self._writer.execute("replace into meta values ('ended', 'clean')")
        except sqlite3.Error as error:
            raise translate(self.path, error) from error

    def note_start(self, durable: str, seq: int, crashes: int) -> None:
        """As state.store.Store."""
        with self.transaction():
            if self.is_owner or not writes.is_over(self._writer, durable, seq):
                self._writer.execute("replace into started values (?, ?, ?, ?)", (durable, seq, crashes, self._runner))

    def note_since(self, durable: str, since: Mapping[str, int]) -> None:
        """As state.store.Store."""
        with self.transaction():
            rows = [(durable, subject, seq) for subject, seq in since.items()]
            self._writer.executemany("insert or ignore into since values (?, ?, ?)", rows)

    def note_gone(self, durable: str, first_seq: int, last_seq: int, what: str) -> None:
        """As state.store.Store."""
        with self.transaction():
            values = (durable, first_seq, last_seq, what, time.time())
            self._writer.execute("replace into gone values (?, ?, ?, ?, ?)", values)

    def move(self, old: str, new: str) -> bool:
        """Gives all that belongs to a durable to one that has nothing yet; False when there is nothing to do."""
        with self.transaction():
            known = dict(self._writer.execute("select durable, 1 from floors where durable in (?, ?)", (old, new)))
            if new in known or old not in known:
                return False
            for table in OF_DURABLES:
                self._writer.execute(f"update {table} set durable = ? where durable = ?", (new, old))
            return True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction of the owner, or of one of those who share; an error leaves nothing of it."""
        try:
            self._writer.execute("begin immediate")
            if self.is_owner:
                self._check_epoch()
            yield
            self._writer.execute("commit")
        except sqlite3.Error as error:
            raise translate(self.path, error) from error
        except (ValueError, TypeError, OverflowError) as error:  # a value that SQLite or JSON can't hold
            raise StoreError(self.path, f"a change can't be stored ({error})") from error
        finally:
            if self._writer.in_transaction:  # SQLite has ended it already after some errors
                self._writer.execute("rollback")

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
        self, changes: Sequence[Change], floors: Sequence[Floor], *, marks: Sequence[Change], sent: Sequence[str]
    ) -> Set[Place]:
        """As state.store.Store: all of it in one transaction, or an error and nothing; an empty one writes as well."""
        with self.transaction():
            done = writes.find_done(self._writer, changes)
            if done:
                writes.take_back_notes(self._writer, changes)
                changes = [change for change in changes if (change.durable, change.seq) not in done]
                marks = [change for change in marks if (change.durable, change.seq) not in done]
            writes.write_rows(self._writer, changes)
            writes.write_ledger(self._writer, changes)
            writes.write_waiting(self._writer, changes)
            writes.write_positions(self._writer, floors, marks)
            if sent:
                self._writer.executemany("delete from outbox where id = ?", [(row_id,) for row_id in sent])
            if not (changes or floors or sent):
                self._probe()
        return done

    def accept_loss(self, floor: Floor, cut: int) -> None:
        """Forgets what a stream has lost, since its sequences come again: everything above ``cut`` of one durable.

        Args:
            floor: where the durable stands from now on.
            cut: the last sequence that the stream still has as this store knows it.
        """
        with self.transaction():
            repair.accept_loss(self._writer, floor, cut)

    def replace_rows(self, tables: Sequence[str], source: Path) -> None:
        """Replaces the rows of whole tables by those of another database, in one transaction.

        Raises:
            StoreError: nothing was replaced.
        """
        try:
            self._writer.execute("attach ? as source", (str(source),))
        except sqlite3.Error as error:
            raise translate(source, error) from error
        try:
            with self.transaction():
                for table in tables:
                    self._writer.execute("delete from main.rows where table_name = ?", (table,))
                    self._writer.execute(
                        "insert into main.rows select table_name, key, row, stream, seq from source.rows"
                        " where table_name = ?",
                        (table,),
                    )
        finally:
            self._writer.execute("detach source")

    def drop_dead(self, durable: str, seq: int, note: str) -> None:
        """As state.store.Store."""
        query = (
            "update dead set state = 'dropped', resolved_at = ?, note = ?"
            " where durable = ? and seq = ? and state = 'dead'"
        )
        with self.transaction():
            self._writer.execute(query, (time.time(), note, durable, seq))

    def set_floor(self, floor: Floor) -> None:
        """As state.store.Store."""
        with self.transaction():
            writes.write_positions(self._writer, [floor], [])

    def _check_epoch(self) -> None:
        if self._writer.execute("select epoch from owner").fetchone()[0] != self.epoch:
            raise StoreFenced(self.path, "another process has taken this store over; this one stops writing")

    def _probe(self) -> None:
        """Has a commit without content write a page (an update to an equal value writes none) to prove the disk."""
        query = "insert into meta values ('probes', '1') on conflict do update set value = value + 1"
        self._writer.execute(query)

    def load(self, durable: str) -> Loaded:
        """As state.store.Store."""
        run = self._query
        floors = run("select durable, stream, created, seq, ts from floors where durable = ?", durable)
        return Loaded(
            floor=next((Floor(durable=d, stream=s, created=c, seq=n, ts=ts) for d, s, c, n, ts in floors), None),
            marks=dict(run("select seq, ts from marks where durable = ?", durable)),
            lanes=self.load_lanes(durable),
            was_unclean=self.was_unclean,
            crashes=dict(run("select seq, crashes from started where durable = ? and crashes > 0", durable)),
            since=dict(run("select subject, seq from since where durable = ?", durable)),
        )

    def load_lanes(self, durable: str) -> dict[str, ParkedLane]:
        """As state.store.Store."""
        query = "select lane, count(*), max(due) from parked where durable = ? group by lane"
        return {lane: ParkedLane(due=due, count=count) for lane, count, due in self._query(query, durable)}

    def fetch_row(self, table: str, key: str) -> bytes | None:
        """As state.store.Store."""
        try:
            return writes.select_row(self._reader, table, key)
        except sqlite3.Error as error:
            raise translate(self.path, error) from error

    def fetch_parked(self, durable: str, lane: str) -> ParkedMessage | None:
        """As state.store.Store."""
        columns = writes.PARKED
        query = f"select {', '.join(columns)} from parked where durable = ? and lane = ? order by seq limit 1"
        for found in self._query(query, durable, lane):
            message = dict(zip(columns, found, strict=True))
            message["is_redriven"] = bool(message["is_redriven"])
            return ParkedMessage(**message, journal=self._journal(durable, message["seq"]))
        return None

    def fetch_tried(self, durable: str, seq: int) -> Tried | None:
        """As state.store.Store."""
        query = "select due, since, failures, attempts from tried where durable = ? and seq = ?"
        for due, since, failures, attempts in self._query(query, durable, seq):
            journal = self._journal(durable, seq)
            return Tried(due=due, since=since, failures=failures, attempts=attempts, journal=journal)
        return None

    def _journal(self, durable: str, seq: int) -> tuple[Failure, ...]:
        query = "select at, error from failures where durable = ? and seq = ? order by at"
        return tuple(Failure(at=at, error=error) for at, error in self._query(query, durable, seq))

    def count_above(self, durable: str, table: str, stream: str, cut: int) -> repair.Above:
        """Counts what the store has of a durable above a sequence."""
        try:
            return repair.count_above(self._reader, durable, table, stream, cut)
        except sqlite3.Error as error:
            raise translate(self.path, error) from error

    def has_mark(self, durable: str, seq: int) -> bool:
        """As state.store.Store."""
        return bool(self._query("select 1 from marks where durable = ? and seq = ?", durable, seq))

    def fetch_started(self, durable: str, seq: int) -> Started | None:
        """As state.store.Store."""
        query = "select crashes, runner from started where durable = ? and seq = ?"
        return next((Started(crashes=n, runner=r) for n, r in self._query(query, durable, seq)), None)

    def count_tried(self, durable: str, now: float) -> int:
        """As state.store.Store."""
        return int(self._query("select count(*) from tried where durable = ? and due > ?", durable, now)[0][0])

    def fetch_dead(self, durable: str, seq: int) -> DeadLetter | None:
        """As state.store.Store."""
        for _, *facts in self._query(f"{_SELECT_DEAD} where durable = ? and seq = ?", durable, seq):
            return _dead_letter(facts)
        return None

    def fetch_outbox(self, *, before: float | None = None) -> list[OutboxEntry]:
        """As state.store.Store."""
        query = "select id, lane, subject, length(payload), created from outbox where created < ? order by n"
        found = self._query(query, before or math.inf)
        return [OutboxEntry(id=i, lane=lane, subject=s, size_bytes=n, created=c) for i, lane, s, n, c in found]

    def fetch_outbox_row(self, row_id: str) -> OutboxRow | None:
        """As state.store.Store."""
        query = "select id, lane, subject, payload, headers, created from outbox where id = ?"
        for i, lane, subject, payload, headers, created in self._query(query, row_id):
            said = msgspec.json.decode(headers)
            return OutboxRow(id=i, lane=lane, subject=subject, payload=payload, headers=said, created=created)
        return None

    def _query(self, query: str, *values: object) -> list[Any]:
        try:
            return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise translate(self.path, error) from error

    def close(self) -> None:
        """Closes both connections; the last one out folds the log into the database."""
        self._reader.close()
        self._writer.close()
