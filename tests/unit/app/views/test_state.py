"""``/state/{table}/{key}``: keys are data, sent raw over a real socket."""

import json
import urllib.parse
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import attrs
import pytest
from aiohttp import ClientSession, web
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from app.metrics import Metrics
from app.middleware import LINE_LIMIT_BYTES, middlewares
from app.views.state import decode_key, state_routes
from models.codec import is_id
from models.errors import RequestError, StoreUnwritable
from state.store import StoredRow
from streams.health import Health, NatsHealth, StateHealth

KEYS = [
    pytest.param("u-1", id="plain"),
    pytest.param("../../etc/passwd", id="path"),
    pytest.param("..", id="dots"),
    pytest.param("/", id="slash"),
    pytest.param("a\x00b", id="nul"),
    pytest.param("a\r\nX-Evil: 1", id="newline"),
    pytest.param("😀 ñ ‮", id="unicode"),
    pytest.param("100%41%2F", id="looks-encoded"),
    pytest.param("{key}?a=b#c&d;e+f", id="reserved"),
    pytest.param('"\\', id="quotes"),
    pytest.param("é" * 5_000, id="10-kB"),
    pytest.param("\x01" * 10_000, id="10-kB-all-escaped"),
]


@attrs.define(kw_only=True)
class FakeReader:
    """A store whose rows echo the key they are asked for; it has no row for ``absent``, and can fail."""

    error: Exception | None = None

    def table_names(self) -> Collection[str]:
        """Two tables, out of order."""
        return ("user_sync", "rewards")

    async def fetch_row(self, table: str, key: str) -> StoredRow | None:
        """A row made from the key."""
        if self.error:
            raise self.error
        if key == "absent":
            return None
        return StoredRow(table=table, key=key, row={"z": [1, None], "a": "ñ"}, stream="SIGNALS", stream_seq=7)


class FakeSource:
    """A worker in good health."""

    def health(self) -> Health:
        """All is well."""
        nats = NatsHealth(enabled=False, mode="disabled", connected=False)
        return Health(status="ok", reasons=[], nats=nats, state=StateHealth())


@attrs.frozen(kw_only=True)
class Server:
    """A listening server with the application's own limits and middlewares."""

    reader: FakeReader
    port: int
    session: ClientSession

    async def get(self, encoded_path: str) -> tuple[int, dict[str, object]]:
        """Asks for a path exactly as written; the answer's status and document."""
        url = URL(f"http://127.0.0.1:{self.port}{encoded_path}", encoded=True)
        async with self.session.get(url, max_line_size=LINE_LIMIT_BYTES) as response:
            return response.status, await response.json(content_type=None)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """The route on a free port."""
    reader = FakeReader()
    app = web.Application(middlewares=middlewares(observer=Metrics(FakeSource()), tokens=[]))
    app.add_routes(state_routes(reader))
    runner = web.AppRunner(app, access_log=None, max_line_size=LINE_LIMIT_BYTES)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with ClientSession() as session:
        yield Server(reader=reader, port=runner.addresses[0][1], session=session)
    await runner.cleanup()


def encode(key: str) -> str:
    """Percent-encodes every byte that need not stay, slashes included."""
    return urllib.parse.quote(key, safe="")


async def test_state_answers_exactly_the_contract(server: Server) -> None:
    """A row comes with its table, key and the message that wrote it last, in that order."""
    status, document = await server.get("/state/user_sync/u-1")
    row = {"z": [1, None], "a": "ñ"}
    expected = {"table": "user_sync", "key": "u-1", "row": row, "stream": "SIGNALS", "stream_seq": 7}
    assert (status, json.dumps(document)) == (200, json.dumps(expected))


@pytest.mark.parametrize("key", KEYS)
async def test_state_key_is_data(server: Server, key: str) -> None:
    """Whatever a key holds, it reaches the store unchanged."""
    status, document = await server.get(f"/state/user_sync/{encode(key)}")
    assert (status, document["key"]) == (200, key)


@pytest.mark.parametrize("key", ["u-1", "😀/\x00"], ids=["plain", "odd"])
async def test_state_key_may_escape_more_than_it_must(server: Server, key: str) -> None:
    """Two spellings of a key, upper or lower case hexadecimals, mean the same key."""
    escaped = "".join(f"%{byte:02x}" for byte in key.encode())
    status, document = await server.get(f"/state/user_sync/{escaped}")
    assert (status, document["key"]) == (200, key)


async def test_state_key_may_be_empty(server: Server) -> None:
    """An empty key is a key."""
    status, document = await server.get("/state/user_sync/")
    assert (status, document["key"]) == (200, "")


async def test_state_ignores_the_query(server: Server) -> None:
    """What follows a question mark is no part of the key."""
    status, document = await server.get("/state/user_sync/u-1?x=%2F")
    assert (status, document["key"]) == (200, "u-1")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("ab%zz", "at character 2"),
        ("%", "at character 0"),
        ("%4", "at character 0"),
        ("%FF", "byte 0 is not"),
        ("a%C3", "byte 1 is not"),
        ("%ED%B3%BF", "byte 0 is not"),
        ("%C0%AF", "byte 0 is not"),
    ],
    ids=["no-hex", "bare", "cut", "not-utf8", "cut-utf8", "surrogate", "overlong-slash"],
)
async def test_state_key_badly_encoded_is_refused(server: Server, raw: str, words: str) -> None:
    """A key that is no percent-encoded UTF-8 answers 400 and says where."""
    status, document = await server.get(f"/state/user_sync/{raw}")
    assert status == 400
    assert words in str(document["detail"])


async def test_state_of_an_unknown_table_names_the_known_ones(server: Server) -> None:
    """404 for a table that is not there lists those that are, sorted."""
    status, document = await server.get("/state/%2e%2e/u-1")
    assert (status, document["detail"]) == (404, "there is no such table; the tables are: rewards, user_sync")


async def test_state_of_an_unknown_key_is_404_with_a_request_id(server: Server) -> None:
    """404 for a row that is not there names its table, and the document carries the request's id."""
    status, document = await server.get("/state/user_sync/absent")
    assert (status, document["detail"]) == (404, 'the table "user_sync" has no row of this key')
    assert is_id(str(document["request_id"]))


@pytest.mark.parametrize(
    "path", ["/state", "/state/user_sync", "/state/user_sync/a/b"], ids=["root", "table", "deeper"]
)
async def test_state_path_of_another_shape_is_404(server: Server, path: str) -> None:
    """A slash that is part of a key must be encoded; other paths are no route."""
    status, document = await server.get(path)
    assert (status, document["detail"]) == (404, "there is nothing at this path")


async def test_state_while_the_store_fails_is_503(server: Server) -> None:
    """A store that can't be read answers 503, and its path stays secret."""
    server.reader.error = StoreUnwritable(Path("/secret"), "disk full")
    status, document = await server.get("/state/user_sync/u-1")
    assert status == 503
    assert "secret" not in json.dumps(document)


@given(key=st.text(st.characters(exclude_categories=["Cs"])))
def test_decode_key_inverts_encoding(key: str) -> None:
    """Every text comes back from its encoded form."""
    assert decode_key(encode(key)) == key


def test_decode_key_takes_raw_utf8() -> None:
    """A client that sends UTF-8 without escapes means what it sends."""
    assert decode_key("ñ😀") == "ñ😀"


def test_decode_key_refuses_a_raw_byte_that_is_no_utf8() -> None:
    """A byte that the server could not decode arrives as a surrogate, and is refused."""
    with pytest.raises(RequestError, match="byte 1 is not") as caught:
        decode_key("a\udcff")
    assert caught.value.status == 400
