"""The rows of one user that features read, on the event loop.

A read of a committed row takes some microseconds of a connection that belongs to the loop, as the handlers' reads do;
a thread between would cost more than the read. Before there is a store there are no rows.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import msgspec

from models.codec import decoder_for
from models.decisions import RowRead
from models.errors import PayloadError, StoreError
from state.schema import has_database
from state.sqlite import SqliteReader

log = logging.getLogger(__name__)

BUSY_S = 0.01
"""Readers wait for nobody in WAL mode; while a database is locked whole, they must not hold the loop."""


@attrs.frozen(kw_only=True)
class UserRows:
    """What was read: the typed rows for features, and the same for the decision log."""

    rows: Mapping[str, object]
    read: dict[str, RowRead]


class RowProblems:
    """Logs why rows can't be read, once for each new reason: many requests a second meet the same one."""

    def __init__(self) -> None:
        self._last: str | None = None

    def note(self, error: StoreError) -> None:
        """Takes note of an error."""
        if error.problem != self._last:
            self._last = error.problem
            log.warning("rows can't be read", extra={"fields": {"error": error.problem}})


NO_ROWS = UserRows(rows={}, read={})


class UserRowReader:
    """Reads rows by the user's id.

    Args:
        path: the database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: SqliteReader | None = None
        self._decoders: dict[type, Any] = {}

    def fetch(self, user_id: str, row_types: Mapping[str, type]) -> UserRows:
        """Reads the user's row of each table; a table without one is left out.

        Args:
            row_types: the class of the rows, by table.

        Raises:
            StoreError: the store can't be read, or a row in it does not fit its class.
        """
        if self._reader is None:
            if not has_database(self._path):
                return NO_ROWS
            self._reader = SqliteReader(self._path, busy_s=BUSY_S)
        rows: dict[str, object] = {}
        read: dict[str, RowRead] = {}
        for table, row_type in row_types.items():
            found = self._reader.fetch_encoded(table, user_id)
            if found is None:
                continue
            try:
                rows[table] = self._decoder(row_type)(found.row)
            except PayloadError as error:
                raise StoreError(self._path, f"table {table}: a row does not fit its class ({error.reason})") from error
            read[table] = RowRead(stream=found.stream, seq=found.stream_seq, row=msgspec.Raw(found.row))
        return UserRows(rows=rows, read=read)

    def _decoder(self, row_type: type) -> Any:
        if row_type not in self._decoders:
            self._decoders[row_type] = decoder_for(row_type)
        return self._decoders[row_type]

    def close(self) -> None:
        """Closes the database."""
        if self._reader:
            self._reader.close()
