"""How events of a tip are framed, and what is sent while none comes."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from aiohttp import ClientPayloadError, web
from aiohttp.test_utils import TestClient, TestServer

from app.generating import Event
from app.middleware import carry_request_id
from app.views.generate import send_events

EVENTS = [Event(name="tip", data=b'{"delta":"a"}'), Event(name="done", data=b"{}")]


async def test_a_quiet_stream_is_kept_alive_by_comments() -> None:
    """A proxy that ends quiet connections sees something, and a client of events ignores it."""
    gate = asyncio.Event()

    async def events() -> AsyncGenerator[Event, None]:
        yield EVENTS[0]
        await gate.wait()
        yield EVENTS[1]

    async def stream(request: web.Request) -> web.StreamResponse:
        return await send_events(request, events(), heartbeat_s=0.1)

    app = web.Application(middlewares=[carry_request_id])
    app.router.add_get("/", stream)
    async with TestClient(TestServer(app)) as client, client.get("/", headers={"X-Request-Id": "r-1"}) as response:
        assert (response.headers["X-Request-Id"], response.headers["X-Accel-Buffering"]) == ("r-1", "no")
        assert await response.content.readuntil(b"\n\n") == b'event: tip\ndata: {"delta":"a"}\n\n'
        assert await response.content.readuntil(b"\n\n") == b": still at it\n\n"
        gate.set()
        assert (await response.content.read()).endswith(b"event: done\ndata: {}\n\n")


async def test_events_end_with_an_error_of_theirs() -> None:
    """A generator that fails is closed, and the connection ends without a done event."""
    is_closed = []

    async def events() -> AsyncGenerator[Event, None]:
        try:
            yield EVENTS[0]
            raise LookupError("a mistake")
        finally:
            is_closed.append(True)

    async def stream(request: web.Request) -> web.StreamResponse:
        try:
            return await send_events(request, events())
        except LookupError:
            request.protocol.force_close()
            raise web.HTTPInternalServerError from None

    app = web.Application(middlewares=[carry_request_id])
    app.router.add_get("/", stream)
    async with TestClient(TestServer(app)) as client, client.get("/") as response:
        with pytest.raises(ClientPayloadError, match="not completed"):
            await response.content.read()
    assert is_closed == [True]
