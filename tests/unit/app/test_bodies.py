"""Bodies of requests over a real socket: what is read, and how each flaw is answered."""

import asyncio
import contextlib
import gzip
import io
import json
from collections.abc import AsyncIterator

import attrs
import pytest
from aiohttp import ClientSession, web

from app.bodies import decode_body, read_body, read_json_body
from app.middleware import BODY_LIMIT_BYTES, answer_errors, carry_request_id
from models.codec import decoder_for
from models.errors import PayloadError, RequestError

WITHIN_S = 0.2


@attrs.frozen(kw_only=True)
class Greeting:
    """What is sent."""

    name: str


decode = decoder_for(Greeting)


@contextlib.asynccontextmanager
async def running(linger_s: float = 0.2) -> AsyncIterator[tuple[ClientSession, int]]:
    """A server that greets, and one route with little patience; a client's session and the port."""

    async def greet(request: web.Request) -> web.Response:
        greeting = await read_json_body(request, decode)
        return web.Response(text=greeting.name)

    async def hurry(request: web.Request) -> web.Response:
        return web.Response(body=await read_body(request, within_s=WITHIN_S))

    app = web.Application(middlewares=[carry_request_id, answer_errors], client_max_size=BODY_LIMIT_BYTES)
    app.add_routes([web.post("/greet", greet), web.post("/hurry", hurry)])
    runner = web.AppRunner(app, lingering_time=linger_s)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        async with ClientSession(f"http://127.0.0.1:{port}") as session:
            yield session, port
    finally:
        await runner.cleanup()


async def send(body: bytes, content_type: str | None = "application/json") -> tuple[int, str]:
    """The status of the answer, and its detail or text."""
    async with running() as (session, _):
        headers = {} if content_type is None else {"Content-Type": content_type}
        skip = () if content_type else ("Content-Type",)
        async with session.post("/greet", data=io.BytesIO(body), headers=headers, skip_auto_headers=skip) as response:
            text = await response.text()
            return response.status, json.loads(text)["detail"] if response.status >= 400 else text


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
async def test_a_body_that_fits_is_decoded(content_type: str) -> None:
    """However the content type is spelled."""
    assert await send(b'{"name": "Ada"}', content_type) == (200, "Ada")


@pytest.mark.parametrize(
    ("body", "content_type", "status", "detail"),
    [
        pytest.param(b"{}", "text/plain", 415, "Content-Type: expected application/json, got text/plain", id="type"),
        pytest.param(b"{}", None, 415, "Content-Type: expected application/json, got no Content-Type", id="no-type"),
        pytest.param(b"", "application/json", 400, "body: not valid JSON (Input data was truncated)", id="nothing"),
        pytest.param(b'{"name": 7}', "application/json", 422, "name: expected str, got int", id="wrong-dtype"),
        pytest.param(b"[]", "application/json", 422, "body: expected object, got array", id="whole"),
    ],
)
async def test_a_flaw_has_its_status(body: bytes, content_type: str | None, status: int, detail: str) -> None:
    """What is no JSON is 400, what does not fit is 422 by path, and another type is 415."""
    assert await send(body, content_type) == (status, detail)


async def test_a_body_of_five_megabytes_is_refused() -> None:
    """413, before it is read."""
    status, _ = await send(b'{"name": "' + b"x" * 5_000_000 + b'"}')
    assert status == 413


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        pytest.param(gzip.compress(b'{"name": "Ada"}'), 200, "Ada", id="packed"),
        pytest.param(gzip.compress(b'{"name": "' + b"x" * 5_000_000 + b'"}'), 413, "body size 2097152", id="bomb"),
        pytest.param(b"no gzip at all", 400, "not encoded as its headers say", id="not-packed"),
    ],
)
async def test_a_packed_body_is_measured_unpacked(body: bytes, status: int, text: str) -> None:
    """A few bytes that stand for megabytes are too long, and what is not packed as it says is no body."""
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with running() as (session, _), session.post("/greet", data=body, headers=headers) as response:
        assert (response.status, text in await response.text()) == (status, True)


async def raw(port: int, *pieces: bytes) -> bytes:
    """All that the server sends to a connection on which these bytes were sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    answer = await reader.read()  # until the server closes
    writer.close()
    return answer


async def test_a_body_without_an_end_is_refused_when_it_is_too_long() -> None:
    """One that is sent in chunks says no length; it is cut off at the limit all the same."""
    head = b"POST /greet HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    async with running() as (_, port):
        answer = await raw(port, head + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk, chunk, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_body_that_says_it_is_too_long_is_not_waited_for() -> None:
    """Its length alone is reason enough: nothing of it has to come."""
    head = b"POST /hurry HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999999\r\n\r\n"
    async with running() as (_, port):
        answer = await raw(port, head)
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_what_follows_a_slow_body_is_no_request() -> None:
    """The rest of the body, and a request behind it, are not answered: the connection has had its last answer."""
    head = b"POST /hurry HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    async with running(linger_s=1) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"{")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 408 ")
        writer.write(b"}" + head + b"{}")
        rest = await reader.read()
        writer.close()
    assert b"HTTP/1.1" not in rest


async def test_a_slow_sender_is_refused_and_left() -> None:
    """408 once the time is over, and the connection is closed: what comes later would be taken for a request."""
    head = b"POST /hurry HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    async with running() as (_, port):
        answer = await raw(port, head + b'{"name": ')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"Connection: close" in answer
    assert b"the body did not arrive within 0.2 s" in answer


def test_a_refusal_by_meaning_is_422() -> None:
    """A decoder that refuses what it has read names the path itself."""

    def refuse(body: bytes) -> None:
        raise PayloadError("candidates: expected 1 to 1000, got 0")

    with pytest.raises(RequestError) as caught:
        decode_body(b"{}", refuse)
    assert (caught.value.status, caught.value.detail) == (422, "candidates: expected 1 to 1000, got 0")
