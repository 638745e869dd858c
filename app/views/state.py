"""Committed rows over HTTP.

A key is data and never a path: it may hold slashes, NUL, any Unicode. aiohttp decodes a path leniently (a stray ``%zz``
stays, a byte that is no UTF-8 stays encoded), which would let two paths mean one key; so the key is decoded here, from
the last segment as it was sent. Reading is the reader's business (state/).
"""

import re
import urllib.parse
from collections.abc import Collection
from typing import Protocol

import attrs
import msgspec
from aiohttp import web

from app.operations import Answer, Operation, Parameter
from models.errors import RequestError
from state.store import StoredRow

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class StateReader(Protocol):
    """Whoever reads committed rows."""

    def table_names(self) -> Collection[str]:
        """The tables there are."""

    async def fetch_row(self, table: str, key: str) -> StoredRow | None:
        """Reads one row of a known table, or None.

        Raises:
            StoreError: the store can't be read; the answer is 503.
        """


def decode_key(raw: str) -> str:
    """Decodes a path segment as it was sent.

    Raises:
        RequestError: 400; an escape is no hexadecimal byte, or the bytes are no UTF-8.
    """
    if bad := _BAD_ESCAPE.search(raw):
        place = bad.start()
        raise RequestError(400, f"key: expected two hexadecimal digits after % at character {place} (% itself is %25)")
    try:
        return urllib.parse.unquote_to_bytes(raw.encode("utf-8", "surrogateescape")).decode()
    except UnicodeDecodeError as error:
        raise RequestError(400, f"key: expected percent-encoded UTF-8, but byte {error.start} is not") from error


def state_routes(reader: StateReader) -> web.RouteTableDef:
    """The route ``/state/{table}/{key}``: one committed row and the message that wrote it last."""
    routes = web.RouteTableDef()

    # The patterns let braces through, which aiohttp's default pattern refuses; an encoded slash stays encoded here.
    @routes.get("/state/{table:[^/]+}/{key:[^/]*}")
    async def show_row(request: web.Request) -> web.Response:
        table = request.match_info["table"]
        tables = reader.table_names()
        if table not in tables:
            raise RequestError(404, f"there is no such table; the tables are: {', '.join(sorted(tables)) or 'none'}")
        key = decode_key(request.rel_url.raw_path.rpartition("/")[2])
        row = await reader.fetch_row(table, key)
        if row is None:
            raise RequestError(404, f'the table "{table}" has no row of this key')
        body = msgspec.json.encode(attrs.asdict(row, recurse=False))
        return web.Response(body=body, headers={"Cache-Control": "no-store"}, content_type="application/json")

    return routes


OPERATIONS = (
    Operation(
        method="GET",
        path="/state/{table}/{key}",
        tag="state",
        summary="Reads one committed row",
        description="The row, and the message that wrote it last. `python -m app handlers` lists the tables.",
        parameters=(
            Parameter(name="table", description="A table that a handler declares.", example="user_sync"),
            Parameter(name="key", description="Any text, percent-encoded UTF-8; a slash is %2F.", example="u-1"),
        ),
        answers=(
            Answer(
                description="The row as it was last committed.",
                type=StoredRow,
                example={
                    "table": "user_sync",
                    "key": "u-1",
                    "row": {
                        "providers": {"todo": {"synced_at": "2026-01-02T03:04:05Z", "task_count": 3, "cursor": None}},
                        "last_event_id": None,
                        "stream_seq": 7,
                        "updated_at": "2026-01-02T03:04:06Z",
                    },
                    "stream": "SIGNALS",
                    "stream_seq": 7,
                },
                headers={"Cache-Control": "no-store: the next message may change the row."},
            ),
        ),
        errors={
            400: "The key is no percent-encoded UTF-8.",
            404: "There is no such table, or it has no row of this key.",
            503: "The store can't be used at the moment; `/health` says why.",
        },
    ),
)
