"""Committed rows for views, read by a thread of their own."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from streams_kit import make_change

from app.rows import RowReader
from models.errors import StoreError
from state.sqlite import SqliteStore
from state.store import StoredRow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "state.db"


@pytest.fixture
def reader(path: Path) -> Iterator[RowReader]:
    """A reader of two declared tables."""
    reader = RowReader(path, ["user_sync", "days"])
    yield reader
    reader.close()


def _commit(store: SqliteStore, seq: int, row: bytes) -> None:
    change = make_change(seq, puts=[("days", "mon/../\x00", row)])
    store.commit([change], [], marks=[change], sent=[])


def test_reader_names_the_declared_tables(reader: RowReader) -> None:
    """The declared tables are named in order, whether there are rows or not."""
    assert list(reader.table_names()) == ["days", "user_sync"]


async def test_reader_before_there_is_a_store_finds_nothing(reader: RowReader, path: Path) -> None:
    """Without a store there are no rows, reading makes no file, and a store made later is read."""
    assert await reader.fetch_row("days", "mon/../\x00") is None
    assert not path.exists()
    store = SqliteStore(path)
    _commit(store, 1, b'{"n":1}')
    row = StoredRow(table="days", key="mon/../\x00", row={"n": 1}, stream="SIGNALS", stream_seq=1)
    assert await reader.fetch_row("days", "mon/../\x00") == row
    store.close()


async def test_reader_sees_what_is_committed_meanwhile(reader: RowReader, path: Path) -> None:
    """A row is read as it is now, through the same reader."""
    store = SqliteStore(path)
    seen = []
    for seq, row in enumerate((b'{"n":1}', b'{"n":2}'), 1):
        _commit(store, seq, row)
        found = await reader.fetch_row("days", "mon/../\x00")
        seen.append(found and (found.row, found.stream_seq))
    assert seen == [({"n": 1}, 1), ({"n": 2}, 2)]
    assert await reader.fetch_row("days", "tue") is None
    store.close()


async def test_reader_serves_many_at_once(reader: RowReader, path: Path) -> None:
    """Requests at the same time all get their row."""
    store = SqliteStore(path)
    _commit(store, 1, b"{}")
    rows = await asyncio.gather(*(reader.fetch_row("days", "mon/../\x00") for _ in range(20)))
    assert all(row and row.row == {} for row in rows)
    store.close()


async def test_reader_of_a_damaged_store_is_a_store_error(reader: RowReader, path: Path) -> None:
    """What can't be read is an error of the store, and the file stays as it is."""
    path.write_bytes(b"not a database" * 500)
    with pytest.raises(StoreError, match="is damaged"):
        await reader.fetch_row("days", "mon")
    assert path.read_bytes() == b"not a database" * 500


async def test_reader_of_what_is_no_file_is_a_store_error(reader: RowReader, path: Path) -> None:
    """What can't even be opened is an error of the store too."""
    path.mkdir()
    with pytest.raises(StoreError, match="can't be read or written"):
        await reader.fetch_row("days", "mon")


async def test_reader_closed_leaves_no_thread(path: Path) -> None:
    """Closing ends the thread and lets the database go; a reader that was never used closes as well."""
    RowReader(path, []).close()
    SqliteStore(path).close()
    reader = RowReader(path, ["days"])
    await reader.fetch_row("days", "mon")
    assert any(thread.name.startswith("rows") for thread in threading.enumerate())
    reader.close()
    assert not any(thread.name.startswith("rows") for thread in threading.enumerate())
