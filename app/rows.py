"""Committed rows for HTTP views, read by a thread of their own, so that a slow disk delays no other answer."""

import asyncio
import concurrent.futures
import typing
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TypeVar

from aiohttp import web

from models.codec import encode_json
from models.errors import DeclarationError
from state.schema import has_database
from state.sqlite import SqliteReader
from state.store import StoredRow
from state.tables import Table

RowT = TypeVar("RowT")


class RowReader:
    """Reads rows of the declared tables; before there is a store, there are no rows.

    Args:
        path: the database.
        tables: the names of the tables that handlers declare.
    """

    def __init__(self, path: Path, tables: Iterable[str] = ()) -> None:
        self._path = path
        self._tables = sorted(tables)
        self._reader: SqliteReader | None = None
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rows")

    def declare(self, tables: Iterable[str]) -> None:
        """Sets the names of the tables that handlers declare."""
        self._tables = sorted(tables)

    def table_names(self) -> Collection[str]:
        """The declared tables."""
        return self._tables

    async def fetch_row(self, table: str, key: str) -> StoredRow | None:
        """Reads a row.

        Raises:
            StoreError: the database can't be read.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._fetch, table, key)

    def _fetch(self, table: str, key: str) -> StoredRow | None:
        if self._reader is None:
            if not has_database(self._path):
                return None
            self._reader = SqliteReader(self._path)
        return self._reader.fetch_row(table, key)

    def close(self) -> None:
        """Ends the thread and closes the database."""
        self._executor.shutdown(wait=True)
        if self._reader:
            self._reader.close()


ROWS = web.AppKey("rows", RowReader)


async def fetch_row(request: web.Request, table: Table[RowT], key: str) -> RowT | None:
    """Reads a committed row for a plugin's route; None when there is none.

    Raises:
        StoreError: the store can't be read; the answer is 503.
        PayloadError: the row does not fit its class any more.
        DeclarationError: no subject table of the app owns the table, so it could never have a row.
    """
    reader = request.config_dict[ROWS]
    if table.name not in reader.table_names():
        raise DeclarationError(f"table {table.name!r}", "expected one that a subject table of the app owns")
    found = await reader.fetch_row(table.name, key)
    return None if found is None else typing.cast(RowT, table.decode(encode_json(found.row)))
