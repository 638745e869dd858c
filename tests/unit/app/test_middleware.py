"""The middlewares on a real aiohttp server: ids, measurement, errors, tokens, limits."""

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import attrs
import pytest
from aiohttp import ClientError, web
from aiohttp.test_utils import TestClient, make_mocked_request
from harness import wait_until

from app.middleware import (
    BODY_LIMIT_BYTES,
    REQUEST_ID,
    answer_errors,
    carry_request_id,
    find_token,
    middlewares,
)
from app.settings_values import ApiToken
from models.codec import is_id
from models.errors import RequestError, StoreUnwritable

Client = TestClient[web.Request, web.Application]
Server = Callable[[web.Application], Awaitable[Client]]

ALL = ApiToken(name="all", token="t-all", scopes=frozenset())
HEALTH_ONLY = ApiToken(name="probe", token="t-health", scopes=frozenset({"health"}))
ODD = ApiToken(name="odd", token="t-ñ-😀", scopes=frozenset())


@attrs.define(kw_only=True)
class Recorder:
    """Notes what was measured, as (method, route, status)."""

    seen: list[tuple[str, str, int]] = attrs.field(factory=list)

    def observe_request(self, *, method: str, route: str, status: int, duration_s: float) -> None:
        """Keeps all but the time, which must not be negative."""
        assert duration_s >= 0
        self.seen.append((method, route, status))


@attrs.define(kw_only=True)
class World:
    """A server with the middlewares and a few views; ``error`` is what ``/fail`` raises."""

    error: Exception = attrs.field(factory=lambda: ValueError("the secret text"))
    recorder: Recorder = attrs.field(factory=Recorder)
    is_reading: bool = False

    def app(self, *, tokens: list[ApiToken]) -> web.Application:
        """The application."""
        chain = middlewares(observer=self.recorder, tokens=tokens)
        app = web.Application(middlewares=chain, client_max_size=BODY_LIMIT_BYTES)
        for path in ("/health", "/health/live", "/health/ready", "/state/{table}/{key}"):
            app.router.add_get(path, self.show_id)
        app.router.add_get("/fail", self.fail)
        app.router.add_get("/broken-stream", self.break_stream)
        app.router.add_get("/moved", self.move)
        app.router.add_post("/body", self.read_body)
        return app

    async def show_id(self, request: web.Request) -> web.Response:
        """Answers with the request's id."""
        return web.Response(text=request[REQUEST_ID])

    async def fail(self, _: web.Request) -> web.Response:
        """Raises the error."""
        raise self.error

    async def break_stream(self, request: web.Request) -> web.StreamResponse:
        """Sends the first bytes of an answer, then raises the error."""
        response = web.StreamResponse(headers={"X-Request-Id": request[REQUEST_ID]})
        await response.prepare(request)
        await response.write(b"begun")
        raise self.error

    async def move(self, _: web.Request) -> web.Response:
        """Redirects by exception, as aiohttp's users do."""
        raise web.HTTPFound("/health")

    async def read_body(self, request: web.Request) -> web.Response:
        """Answers with the size of the body."""
        self.is_reading = True
        return web.Response(text=str(len(await request.read())))


@pytest.fixture
def world() -> World:
    """A fresh one."""
    return World()


@pytest.fixture
async def client(world: World, aiohttp_client: Server) -> AsyncIterator[Client]:
    """A client of a server without tokens."""
    yield await aiohttp_client(world.app(tokens=[]))


@pytest.fixture
async def guarded(world: World, aiohttp_client: Server) -> AsyncIterator[Client]:
    """A client of a server with tokens."""
    yield await aiohttp_client(world.app(tokens=[ALL, HEALTH_ONLY, ODD]))


@pytest.fixture
async def port(world: World) -> AsyncIterator[int]:
    """The port of a server as the application runs it; aiohttp's test server cancels views when clients leave."""
    runner = web.AppRunner(world.app(tokens=[]), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


async def test_request_id_is_taken_over_when_valid(client: Client) -> None:
    """The caller's id reaches the view and comes back."""
    response = await client.get("/health", headers={"X-Request-Id": "abc:1.2_3-4"})
    assert (response.headers["X-Request-Id"], await response.text()) == ("abc:1.2_3-4", "abc:1.2_3-4")


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129], ids=["absent", "empty", "space", "too-long"])
async def test_request_id_is_minted_otherwise(client: Client, given: str | None) -> None:
    """Without a valid id the request gets a new one, in view and answer alike."""
    response = await client.get("/health", headers={} if given is None else {"X-Request-Id": given})
    minted = response.headers["X-Request-Id"]
    assert minted != given and is_id(minted) and len(minted) == 36
    assert await response.text() == minted


@pytest.mark.parametrize("path", ["/fail", "/nowhere", "/moved"], ids=["unknown-error", "404", "redirect"])
async def test_request_id_is_echoed_by_errors_too(client: Client, path: str) -> None:
    """Whatever goes wrong, the answer names its request."""
    response = await client.get(path, headers={"X-Request-Id": "r-1"}, allow_redirects=False)
    assert response.headers["X-Request-Id"] == "r-1"


async def test_request_id_leaves_a_prepared_response_alone() -> None:
    """A response whose headers have left keeps them."""

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    response = await carry_request_id(make_mocked_request("GET", "/"), stream)
    assert "X-Request-Id" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/state/t/secret-key", ("GET", "/state/{table}/{key}", 200)),
        ("GET", "/nowhere/secret-key", ("GET", "unmatched", 404)),
        ("DELETE", "/health", ("DELETE", "unmatched", 405)),
        ("GET", "/fail", ("GET", "/fail", 500)),
        ("HEAD", "/health/live", ("HEAD", "/health/live", 200)),
    ],
    ids=["template", "no-route", "no-method", "error", "head"],
)
async def test_request_is_measured_by_route_template(
    client: Client, world: World, method: str, path: str, expected: tuple[str, str, int]
) -> None:
    """A path never becomes a label; unmatched requests share one, errors count with their status."""
    await client.request(method, path)
    assert world.recorder.seen == [expected]


async def test_unknown_error_is_logged_whole_under_the_id_it_answers(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """500 tells an id and nothing of the error; the log has the error, its traceback and the ids."""
    response = await client.get("/fail", headers={"X-Request-Id": "r-1"})
    document = await response.json(content_type="application/problem+json")
    assert (response.status, document["request_id"]) == (500, "r-1")
    assert "secret" not in await response.text()
    (record,) = caplog.records
    assert f"error_id={document['error_id']} request_id=r-1" in record.getMessage()
    assert record.exc_info is not None and str(record.exc_info[1]) == "the secret text"


async def test_known_error_is_answered_and_not_logged(
    client: Client, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A caller's mistake is the caller's to read, not the operator's."""
    world.error = RequestError(422, "prompt_version: unknown")
    response = await client.get("/fail")
    document = await response.json(content_type="application/problem+json")
    assert (response.status, document["detail"]) == (422, "prompt_version: unknown")
    assert caplog.records == []


async def test_store_error_is_answered_503_and_logged_in_a_line(
    client: Client, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller is asked to come back, the operator reads the reason without a traceback."""
    world.error = StoreUnwritable(Path("state.db"), "disk full")
    response = await client.get("/fail")
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)
    assert "disk full" in record.getMessage()


async def test_method_that_is_not_allowed_keeps_the_allow_header(client: Client) -> None:
    """405 says which methods the path takes."""
    response = await client.delete("/health")
    assert (response.status, response.content_type) == (405, "application/problem+json")
    assert response.headers["Allow"] == "GET,HEAD"


async def test_redirect_by_exception_stays_a_redirect(client: Client) -> None:
    """An exception below 400 is no problem."""
    response = await client.get("/moved", allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (302, "/health")
    assert response.content_type == "text/plain"


@pytest.mark.parametrize(
    ("size", "status"), [(BODY_LIMIT_BYTES - 1, 200), (BODY_LIMIT_BYTES + 1, 413)], ids=["under", "over"]
)
async def test_body_limit_is_enforced_and_named(client: Client, size: int, status: int) -> None:
    """A body beyond the limit of 2 MiB answers 413, and the document names the limit."""
    response = await client.post("/body", data=io.BytesIO(b"x" * size))
    assert response.status == status
    assert status == 200 or "2097152" in (await response.json(content_type="application/problem+json"))["detail"]


async def test_body_encoded_otherwise_than_said_is_400(client: Client) -> None:
    """A body that does not decode as its headers say is the caller's mistake."""
    headers = {"Content-Encoding": "deflate"}
    response = await client.post("/body", data=b"this is not deflated", headers=headers)
    assert (response.status, response.content_type) == (400, "application/problem+json")


async def test_client_that_leaves_is_no_error(port: int, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that ends within the body is counted as 499, and nothing is logged."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nfirst bytes")
    await wait_until(lambda: world.is_reading, timeout_s=5)
    writer.close()
    await wait_until(lambda: world.recorder.seen == [("POST", "/body", 499)], timeout_s=5)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_connection_error_of_a_dependency_is_an_error(
    client: Client, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The same class from our own side, while the client waits, answers 500 and is logged."""
    world.error = ConnectionResetError("the gateway hung up")
    assert (await client.get("/fail")).status == 500
    assert len(caplog.records) == 1


async def test_error_within_a_response_cuts_the_connection(
    client: Client, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What is sent can't be unsent: the reader sees a broken answer, the log one error, the histogram a 500."""
    response = await client.get("/broken-stream")
    with pytest.raises(ClientError):
        await response.read()
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    assert world.recorder.seen == [("GET", "/broken-stream", 500)]


async def test_cancellation_passes() -> None:
    """Shutting down is no error to answer."""

    async def cancelled(_: web.Request) -> web.StreamResponse:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await answer_errors(make_mocked_request("GET", "/"), cancelled)


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"], ids=["live", "ready"])
async def test_probes_need_no_token(guarded: Client, path: str) -> None:
    """An orchestrator has no token."""
    assert (await guarded.get(path)).status == 200


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, 'Bearer realm="tipstream"'),
        (bearer("t-wrong"), 'Bearer realm="tipstream", error="invalid_token"'),
        (bearer("t-al"), 'Bearer realm="tipstream", error="invalid_token"'),
        (bearer(""), 'Bearer realm="tipstream", error="invalid_token"'),
        ({"Authorization": "Basic t-all"}, 'Bearer realm="tipstream", error="invalid_token"'),
    ],
    ids=["none", "wrong", "prefix", "empty", "other-scheme"],
)
@pytest.mark.parametrize("path", ["/health", "/state/t/k", "/nowhere"], ids=["health", "state", "unmatched"])
async def test_route_without_a_known_token_is_401(
    guarded: Client, path: str, headers: dict[str, str], challenge: str
) -> None:
    """Every other path, those that don't exist included, asks for a token."""
    response = await guarded.get(path, headers=headers)
    assert (response.status, response.content_type) == (401, "application/problem+json")
    assert response.headers["WWW-Authenticate"] == challenge


@pytest.mark.parametrize(
    ("token", "path", "status"),
    [
        ("t-all", "/health", 200),
        ("t-all", "/state/t/k", 200),
        ("t-health", "/health", 200),
        ("t-health", "/%68ealth", 200),
        ("t-health", "/state/t/k", 403),
        ("t-health", "/%73tate/health/k", 403),
        ("t-health", "/nowhere", 404),
        ("t-ñ-😀", "/health", 200),
    ],
    ids=["all-health", "all-state", "own", "own-escaped", "other", "other-escaped", "unmatched", "not-ascii"],
)
async def test_token_opens_the_routes_of_its_scopes(guarded: Client, token: str, path: str, status: int) -> None:
    """No scopes open everything, a scope opens the routes of its first segment, however the path is written."""
    assert (await guarded.get(path, headers=bearer(token))).status == status


async def test_token_without_the_scope_is_told_which(guarded: Client) -> None:
    """403 names the token and the scope it lacks, in document and header, and never the secret."""
    response = await guarded.get("/state/t/k", headers=bearer("t-health"))
    text = await response.text()
    assert 'the token \\"probe\\" does not have the scope \\"state\\"' in text and "t-health" not in text
    assert response.headers["WWW-Authenticate"].endswith('error="insufficient_scope", scope="state"')


@pytest.mark.parametrize(
    ("authorization", "name"),
    [("Bearer t-all", "all"), ("bearer t-all", "all"), ("Bearer t-health ", "probe"), ("Bearer \udcff", None)],
    ids=["exact", "lower-case", "second-of-the-list", "undecodable"],
)
def test_find_token_reads_the_header(authorization: str, name: str | None) -> None:
    """The scheme's case does not matter, the place in the list neither, and odd bytes are just wrong."""
    found = find_token([ALL, HEALTH_ONLY], authorization)
    assert (found.name if found else None) == name
