"""One request: what is sent, what is trusted, and how each failure of a network is called."""

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
import trustme
from harness import HOST, free_port, wait_until
from llm_kit import TEXT, FakeModel, Reply

from models.errors import GatewayError
from prompts.wire import Wire, WireConfig

KEY = "sk-very-secret"


def asking(model: str = "m", **more: object) -> bytes:
    """The body of a request."""
    return json.dumps({"model": model, **more}).encode()


async def read(config: WireConfig, body: bytes = b"{}") -> bytes:
    """Asks once and reads the whole answer."""
    async with Wire(config) as wire, wire.ask(body) as pieces:
        return await pieces.read()


async def failure(config: WireConfig, body: bytes = b"{}") -> GatewayError:
    """Asks once, in vain."""
    with pytest.raises(GatewayError) as caught:
        await read(config, body)
    return caught.value


@contextlib.asynccontextmanager
async def peer(answer: bytes, *, tls: ssl.SSLContext | None = None, is_held: bool = False) -> AsyncIterator[WireConfig]:
    """A server that sends these bytes to whoever asks, and then hangs up, or holds the line."""
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            if is_held:
                await reader.read()
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(serve, HOST, 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        yield WireConfig(url=f"http{'s' if tls else ''}://{HOST}:{port}", api_key=KEY)
        for task in filter(None, serving):
            task.cancel()
        await asyncio.gather(*filter(None, serving))


@pytest.mark.parametrize("base", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_config_finds_the_endpoint(base: str) -> None:
    """The base may be written in each of the usual ways."""
    assert WireConfig(url=base).endpoint == "http://h:1/v1/chat/completions"


def test_config_shows_no_key() -> None:
    """A configuration that is logged by accident does not show its key."""
    assert KEY not in repr(WireConfig(url="http://h", api_key=KEY))


async def test_wire_sends_the_body_and_the_key() -> None:
    """The body goes out as it is, with the key as a bearer token, and no compression is asked for."""
    async with FakeModel() as model:
        answer = await read(WireConfig(url=model.url, api_key=KEY), asking(a=1))
    [seen] = model.seen
    assert json.loads(answer)["choices"][0]["message"]["content"] == TEXT
    assert (seen.body, seen.headers["Authorization"]) == ({"model": "m", "a": 1}, f"Bearer {KEY}")
    assert (seen.headers["Accept-Encoding"], seen.headers["Content-Type"]) == ("identity", "application/json")


async def test_wire_without_a_key_sends_none() -> None:
    """An open gateway gets no header of authorization."""
    async with FakeModel() as model:
        await read(WireConfig(url=model.url), asking())
    assert "Authorization" not in model.seen[0].headers


async def test_wire_keeps_its_connection() -> None:
    """Answers that were read to their end leave the connection to the next request, streams as well."""
    async with FakeModel() as model, Wire(WireConfig(url=model.url)) as wire:
        for is_stream in (False, True, False):
            async with wire.ask(asking(stream=is_stream)) as pieces:
                await pieces.read()
                await pieces.finish()
    assert len({seen.peer for seen in model.seen}) == 1


async def test_wire_trusts_no_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names is not used."""
    monkeypatch.setenv("HTTP_PROXY", f"http://{HOST}:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://{HOST}:{free_port()}")
    async with FakeModel() as model:
        assert await read(WireConfig(url=model.url), asking())


async def test_wire_follows_no_redirect() -> None:
    """Another address is never gone to, for the key would go there."""
    async with FakeModel() as other, FakeModel(m=[Reply(status=307, headers={"Location": other.url})]) as model:
        error = await failure(WireConfig(url=model.url, api_key=KEY), asking())
    assert (error.reason, error.detail, other.seen) == ("refused", "status 307", [])


async def test_wire_says_why_it_was_refused() -> None:
    """The status and the kind of error are told, and not the message, which quotes the key."""
    body = json.dumps({"error": {"type": "auth_error", "message": f"{KEY} is wrong"}}).encode()
    async with FakeModel(m=[Reply(status=401, body=body)]) as model:
        error = await failure(WireConfig(url=model.url, api_key=KEY), asking())
    assert (error.reason, error.detail) == ("refused", "status 401, auth_error")


@pytest.mark.parametrize(("word", "key"), [("a_secret_key", "secret"), ("secret", "a_secret_key")])
async def test_wire_never_repeats_its_key_as_a_reason(word: str, key: str) -> None:
    """A kind of error that holds the key, or a part of it, is not told."""
    body = json.dumps({"error": {"type": word}}).encode()
    async with FakeModel(m=[Reply(status=400, body=body)]) as model:
        assert (await failure(WireConfig(url=model.url, api_key=key), asking())).detail == "status 400"


@pytest.mark.parametrize("name", ["Retry-After", "llm_provider-retry-after"])
async def test_wire_hears_when_to_come_again(name: str) -> None:
    """What a full gateway or its provider asks for goes with the error."""
    async with FakeModel(m=[Reply(status=429, headers={name: "3"})]) as model:
        error = await failure(WireConfig(url=model.url), asking())
    assert (error.reason, error.may_retry, error.retry_after_s) == ("rate_limited", True, 3.0)


async def test_wire_needs_no_body_to_be_refused() -> None:
    """A refusal that breaks off, or is too long, is known by its status."""
    async with peer(b"HTTP/1.1 502 Bad\r\nContent-Length: 9\r\n\r\nx") as config:
        assert (await failure(config)).detail == "status 502"
        assert (await failure(attrs.evolve(config, max_answer_bytes=1))).detail == "status 502"


async def test_wire_is_refused_where_nobody_listens() -> None:
    """No server: the reason is the system's, and it may be tried again."""
    error = await failure(WireConfig(url=f"http://{HOST}:{free_port()}"))
    assert (error.reason, error.detail, error.may_retry) == ("connect", "Connection refused", True)


async def test_wire_gives_a_connection_up() -> None:
    """A server that takes no more connections is no server."""
    with socket.socket() as full:
        full.bind((HOST, 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(2)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex((HOST, port))
        error = await failure(WireConfig(url=f"http://{HOST}:{port}", connect_timeout_s=0.05))
        for filler in fillers:
            filler.close()
    assert (error.reason, error.detail, error.may_retry) == ("connect", "no connection in time", True)


async def test_wire_refuses_a_certificate_of_nobody() -> None:
    """A server that can't prove who it is gets no key, and is not asked again."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert(HOST).configure_cert(tls)
    async with peer(b"", tls=tls) as config:
        error = await failure(config)
    assert (error.reason, error.detail, error.may_retry) == ("connect", "its certificate is not accepted", False)


async def test_wire_waits_so_long_for_an_answer_to_begin() -> None:
    """A server that says nothing is left, and sees that it was."""
    async with FakeModel(m=[Reply(stall="before")]) as model:
        error = await failure(WireConfig(url=model.url, first_byte_timeout_s=0.3), asking())
        assert (error.reason, error.may_retry) == ("timeout", False)
        assert error.detail == "no answer began within 0.3 s"
        await wait_until(lambda: model.endings("left"))


async def test_wire_waits_so_long_between_bytes() -> None:
    """An answer that stops in the middle is left."""
    async with FakeModel(m=[Reply(stall=2)]) as model:
        error = await failure(WireConfig(url=model.url, between_bytes_timeout_s=0.05), asking(stream=True))
        assert (error.reason, error.detail) == ("timeout", "the answer stopped coming for 0.05 s")
        await wait_until(lambda: model.endings("left"))


async def test_wire_tells_an_end_before_the_answer_from_one_within() -> None:
    """A connection that ends before the answer may be tried again; one that ends within it may not."""
    async with peer(b"") as config:
        error = await failure(config)
    assert (error.reason, error.detail, error.may_retry) == ("cut", "the connection ended before an answer", True)
    async with peer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx") as config:
        error = await failure(config)
    assert (error.reason, error.may_retry) == ("cut", False)


async def test_wire_refuses_what_is_no_http() -> None:
    """Another protocol is a bad answer, whose error leads to no request and no key."""
    async with peer(b"SSH-2.0-x\r\n\r\n") as config:
        error = await failure(config)
    assert (error.reason, error.detail, error.__cause__) == ("bad_answer", "what came is no HTTP answer", None)
    assert error.__suppress_context__


async def test_wire_reads_no_more_than_allowed() -> None:
    """An answer without an end is cut off at the limit."""
    async with peer(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000, is_held=True) as config:
        error = await failure(attrs.evolve(config, max_answer_bytes=1000))
    assert (error.reason, error.detail) == ("bad_answer", "the answer is longer than 1000 bytes")


async def test_wire_unpacks_nothing() -> None:
    """A compressed answer, which may be any size unpacked, is refused."""
    async with FakeModel(m=[Reply(headers={"Content-Encoding": "gzip"}, body=b"x")]) as model:
        error = await failure(WireConfig(url=model.url), asking())
    assert (error.reason, error.detail) == ("bad_answer", "the answer is compressed, which was not asked for")
    packed = gzip.compress(b'{"error": {"type": "word"}}')
    async with FakeModel(m=[Reply(status=400, headers={"Content-Encoding": "gzip"}, body=packed)]) as model:
        assert (await failure(WireConfig(url=model.url), asking())).detail == "status 400"


async def test_wire_waits_but_a_moment_for_the_end() -> None:
    """A server that holds the line after the last byte, or hangs up on it, keeps nobody."""
    for is_held in (True, False):
        answer = peer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", is_held=is_held)
        async with answer as config, Wire(config) as wire, wire.ask(b"{}") as pieces:
            assert await pieces.next() == b"x"
            await pieces.finish()


async def test_wire_closes_what_is_left() -> None:
    """Leaving an answer in the middle closes its connection."""
    async with FakeModel(m=[Reply(stall=1)]) as model, Wire(WireConfig(url=model.url)) as wire:
        async with wire.ask(asking(stream=True)) as pieces:
            assert await pieces.next()
        await wait_until(lambda: model.endings("left"))


@pytest.mark.parametrize("limits", [{"connect_timeout_s": 0}, {"max_answer_bytes": 0}, {"first_byte_timeout_s": -1}])
def test_config_refuses_limits_that_let_nothing_through(limits: dict[str, Any]) -> None:
    """A limit of nothing is a mistake, named by its field."""
    with pytest.raises(ValueError, match=f"{next(iter(limits))}: expected a number from"):
        WireConfig(url="http://h", **limits)


async def test_wire_says_that_a_name_is_not_known() -> None:
    """A host that does not exist is no connection, which the system puts into words."""
    error = await failure(WireConfig(url="http://no-such-host.invalid"))
    assert (error.reason, error.may_retry) == ("connect", True)
    assert error.detail not in ("", "no connection")
