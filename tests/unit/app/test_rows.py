"""Committed rows for views, read by a thread of their own."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from streams_kit import make_change

from app.middleware import answer_errors
from app.rows import ROWS, RowReader, fetch_row
from models.errors import DeclarationError, StoreError
from state.sqlite import SqliteStore
from state.store import StoredRow
from state.tables import Table


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


@attrs.frozen(kw_only=True)
class Day:
    """A row of the table ``days``."""

    n: int = 0


DAYS = Table("days", Day)


@contextlib.asynccontextmanager
async def served(reader: RowReader, table: Table[Day], found: list[Day | None]) -> AsyncIterator[TestClient[Any, Any]]:
    """A client of an app whose one route reads a row of a table, as a plugin's route does."""

    async def show(request: web.Request) -> web.Response:
        found.append(await fetch_row(request, table, request.match_info["key"]))
        return web.Response()

    app = web.Application(middlewares=[answer_errors])
    app[ROWS] = reader
    app.router.add_get("/{key}", show)
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_route_of_a_plugin_reads_a_row_of_its_class(reader: RowReader, path: Path) -> None:
    """A committed row comes as the table's class, fields that it lacks as their defaults; None when there is none."""
    store = SqliteStore(path)
    changes = [make_change(seq, puts=[("days", f"d{seq}", row)]) for seq, row in enumerate((b'{"n":1}', b"{}"), 1)]
    store.commit(changes, [], marks=changes, sent=[])
    found: list[Day | None] = []
    async with served(reader, DAYS, found) as client:
        for key in ("d1", "d2", "d3"):
            assert (await client.get(f"/{key}")).status == 200
    store.close()
    assert found == [Day(n=1), Day(n=0), None]


async def test_route_of_a_plugin_answers_503_while_the_store_is_damaged(reader: RowReader, path: Path) -> None:
    """An error of the store is answered like that of the state view."""
    path.write_bytes(b"not a database" * 500)
    async with served(reader, DAYS, []) as client:
        answer = await client.get("/mon")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


async def test_route_of_a_plugin_may_not_read_a_table_that_nobody_owns(reader: RowReader) -> None:
    """A table that no subject table of the app owns would never have a row: that is a mistake, and logged as one."""
    app = web.Application()
    app[ROWS] = reader
    request = make_mocked_request("GET", "/mon", app=app)
    with pytest.raises(DeclarationError, match=r"^table 'dayz': expected one that a subject table of the app owns$"):
        await fetch_row(request, Table("dayz", Day), "mon")


def test_reader_takes_the_tables_later(path: Path) -> None:
    """The tables may be declared after the reader was made, since views are there before plugins."""
    reader = RowReader(path)
    reader.declare(["b", "a"])
    assert list(reader.table_names()) == ["a", "b"]
    reader.close()
