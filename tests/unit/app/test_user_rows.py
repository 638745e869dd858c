"""The rows that features read: typed for features, as they were stored for the log."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_kit import commit
from streams_kit import make_change

from app.user_rows import NO_ROWS, UserRowReader
from models.errors import StoreError
from models.rows import UserSync
from state.sqlite import SqliteStore

TYPES = {"user_sync": UserSync}
ROW = b'{"providers":{"todo":{"synced_at":"2026-03-01T09:00:00Z","task_count":3}},"stream_seq":1}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "state.db"


@pytest.fixture
def reader(path: Path) -> Iterator[UserRowReader]:
    """A reader of the store."""
    reader = UserRowReader(path)
    yield reader
    reader.close()


@contextlib.contextmanager
def stored(path: Path, *rows: tuple[str, bytes]) -> Iterator[SqliteStore]:
    """A store with these rows of user_sync, each written by a message of its own."""
    store = SqliteStore(path)
    try:
        for seq, (key, row) in enumerate(rows, 1):
            commit(store, make_change(seq, puts=[("user_sync", key, row)]))
        yield store
    finally:
        store.close()


def test_rows_are_typed_and_kept_as_they_were_stored(reader: UserRowReader, path: Path) -> None:
    """Features get the record; the log gets the JSON, with the message that wrote it."""
    with stored(path, ("bob", b"{}"), ("ana", ROW)):
        found = reader.fetch("ana", TYPES)
    row = found.rows["user_sync"]
    assert isinstance(row, UserSync)
    assert row.providers["todo"].task_count == 3
    read = found.read["user_sync"]
    assert (read.stream, read.seq, bytes(read.row)) == ("SIGNALS", 2, ROW)


def test_a_user_without_a_row_has_none(reader: UserRowReader, path: Path) -> None:
    """A table without a row of the user is left out, and one that nobody asks for is not read."""
    with stored(path, ("ana", ROW)):
        assert reader.fetch("eve", TYPES) == NO_ROWS
        assert reader.fetch("ana", {}) == NO_ROWS


def test_before_there_is_a_store_there_are_no_rows(reader: UserRowReader, path: Path) -> None:
    """A worker that scores before its store exists reads it once it does, and makes none itself."""
    assert reader.fetch("ana", TYPES) == NO_ROWS
    assert not path.exists()
    with stored(path, ("ana", ROW)):
        assert "user_sync" in reader.fetch("ana", TYPES).rows


def test_a_row_that_does_not_fit_is_named(reader: UserRowReader, path: Path) -> None:
    """A row of another class than the feature's is an error of the store, with table and field."""
    with (
        stored(path, ("ana", b'{"providers": 7}')),
        pytest.raises(StoreError, match=r"table user_sync: a row does not fit its class \(providers: expected object"),
    ):
        reader.fetch("ana", TYPES)


def test_a_store_that_can_not_be_read_is_an_error(reader: UserRowReader, path: Path) -> None:
    """What lies there is no database: whoever scores says that the rows are missing."""
    path.write_bytes(b"no database at all, and long enough to be one" * 100)
    with pytest.raises(StoreError):
        reader.fetch("ana", TYPES)
