"""Rows that live as long as a replay: a database in a temporary folder, and the newest ones in memory.

The rows of a snapshot may be where it begins. What is written goes to the database in batches, so that memory stays
bounded however many rows there are. It knows of no positions and no events, and is thrown away at the end.
"""

import contextlib
import itertools
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from models.codec import encode_json
from models.errors import StoreUnwritable
from state.schema import connect_readonly, translate

FILE = "scratch.db"
LIMIT_COUNT = 5_000

Place = tuple[str, str]


class Scratch:
    """Rows by table and key; a context manager that removes everything on leaving.

    Raises:
        StoreUnwritable: on entering, or later: the temporary folder is full or can't be written.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._path = Path()
        self._connection: sqlite3.Connection
        self._new: dict[Place, tuple[bytes | None, str, int]] = {}
        self._counted: dict[Place, dict[str, int]] = {}

    def __enter__(self) -> Self:
        try:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tipstream-")))
            self._path = folder / FILE
            self._connection = sqlite3.connect(self._path, isolation_level=None)
            self._stack.callback(self._connection.close)
            self._connection.execute("pragma journal_mode = off")
            self._connection.execute("pragma synchronous = off")
            self._connection.execute(
                "create table rows (table_name text not null, key text not null, row text not null,"
                " stream text not null, seq integer not null, primary key (table_name, key)) without rowid"
            )
        except (OSError, sqlite3.Error) as error:
            self._stack.close()
            raise StoreUnwritable(Path(tempfile.gettempdir()), f"no scratch store can be made ({error})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def path(self) -> Path:
        """The database; rows that are still in memory get there by ``flush``."""
        return self._path

    @property
    def is_full(self) -> bool:
        """Whether it is time for a ``flush``."""
        return len(self._new) + len(self._counted) >= LIMIT_COUNT

    def load(self, store: Path, table: str) -> None:
        """Takes over the rows that a table has in another database of ours.

        Raises:
            StoreError: it can't be read.
            StoreUnwritable: the disk is full.
        """
        source = connect_readonly(store)
        try:
            query = "select table_name, key, row, stream, seq from rows where table_name = ?"
            found = source.execute(query, (table,))
            while rows := found.fetchmany(LIMIT_COUNT):
                self._write(rows)
        except sqlite3.Error as error:
            raise translate(store, error) from error
        finally:
            source.close()

    def take(self, table: str, rows: Iterable[tuple[str, bytes]]) -> None:
        """Takes over rows of a table as (key, JSON), on account of no message.

        Raises:
            StoreUnwritable: the disk is full.
        """
        given = iter(rows)
        while batch := [(table, key, row.decode(), "", 0) for key, row in itertools.islice(given, LIMIT_COUNT)]:
            self._write(batch)

    def fetch(self, table: str, key: str) -> bytes | None:
        """Reads a row as JSON, or None."""
        place = table, key
        if place in self._counted:
            return encode_json(self._counted[place])
        if place in self._new:
            return self._new[place][0]
        return self._stored(place)

    def put(self, place: Place, row: bytes | None, stream: str, seq: int) -> None:
        """Writes a row as JSON, or deletes it, on account of a message."""
        self._new[place] = row, stream, seq

    def add(self, place: Place, field: str, n: int, stream: str, seq: int) -> None:
        """Adds to a field of a counters row."""
        fields = self._counted.get(place)
        if fields is None:
            fields = self._counted[place] = msgspec.json.decode(self._stored(place) or b"{}", type=dict[str, int])
        fields[field] = fields.get(field, 0) + n
        self._new[place] = None, stream, seq

    def flush(self) -> None:
        """Writes to the database what is in memory.

        Raises:
            StoreUnwritable: the disk is full.
        """
        for place, fields in self._counted.items():
            self._new[place] = (encode_json(fields), *self._new[place][1:])
        puts = [
            (*place, row.decode(), stream, seq) for place, (row, stream, seq) in self._new.items() if row is not None
        ]
        self._write(puts, [place for place, (row, _, _) in self._new.items() if row is None])
        self._new.clear()
        self._counted.clear()

    def rows(self, table: str) -> Iterator[tuple[str, bytes]]:
        """Every row of a table as (key, JSON), by key, after a ``flush``."""
        query = "select key, cast(row as blob) from rows where table_name = ? order by key"
        yield from self._connection.execute(query, (table,))

    def _write(self, puts: Sequence[tuple[str, str, str, str, int]], deleted: Sequence[Place] = ()) -> None:
        try:
            self._connection.execute("begin")
            self._connection.executemany("replace into rows values (?, ?, ?, ?, ?)", puts)
            self._connection.executemany("delete from rows where table_name = ? and key = ?", deleted)
            self._connection.execute("commit")
        except sqlite3.Error as error:
            raise translate(self._path, error) from error

    def _stored(self, place: Place) -> bytes | None:
        query = "select cast(row as blob) from rows where table_name = ? and key = ?"
        found = self._connection.execute(query, place).fetchone()
        return found[0] if found else None
