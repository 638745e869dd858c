"""A small server that speaks OpenAI's chat completions and misbehaves as a test asks: a model that costs nothing.

It stands where the gateway stands in unit tests, and behind the real gateway in tests/gateway. What it does is chosen
by the name of the model that is asked for: a list of replies, taken one after another, of which the last one repeats.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import attrs
from aiohttp import web
from harness import HOST

Json = dict[str, Any]

TEXT = "Plan three tasks before nine."
USAGE: Json = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
END = "end"


@attrs.frozen(kw_only=True)
class Reply:
    """What is answered once.

    Args:
        text: the answer; in a stream each word is a delta of its own.
        usage: as it is put into the body, whatever it is; None leaves it out.
        body: sent instead of an answer, byte by byte as given; in a stream, instead of the events.
        stall: stops for good "before" anything is sent, or after that many deltas of a stream.
        cut: closes the connection "before" anything is sent, or after that many deltas (END: after the last one).
        hold: waits for this event before anything is sent.
        pause: waits for the gate after that many deltas, and then goes on.
        gate: the event that a pause, and what stalls or cuts, waits for.
        changes: replaces fields of the body, or of each chunk.
    """

    status: int = 200
    text: str | None = TEXT
    usage: object = attrs.field(factory=lambda: dict(USAGE))
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes | None = None
    stall: str | int | None = None
    cut: str | int | None = None
    hold: asyncio.Event | None = None
    pause: str | int | None = None
    gate: asyncio.Event | None = None
    finish: str | None = "stop"
    is_ended: bool = True
    changes: Mapping[str, object] = attrs.field(factory=dict)


@attrs.define
class Seen:
    """A request that arrived; ``ending`` is None while it is answered, and "left" when its client went away."""

    body: Json
    headers: Mapping[str, str]
    peer: object = None
    deltas: int = 0
    ending: str | None = None


class FakeModel:
    """The server; an async context manager. ``script`` says what each model does, any other answers well."""

    def __init__(self, port: int = 0, /, **script: list[Reply]) -> None:
        self._port = port
        self.script = {name: list(replies) for name, replies in script.items()}
        self.seen: list[Seen] = []
        self.url = ""
        application = web.Application(client_max_size=10_000_000)
        application.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)

    def endings(self, ending: str | None) -> list[Seen]:
        """The requests that ended like that."""
        return [seen for seen in self.seen if seen.ending == ending]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        peer = request.transport and request.transport.get_extra_info("peername")
        seen = Seen(body=body, headers=dict(request.headers), peer=peer)
        self.seen.append(seen)
        replies = self.script.get(body["model"], [Reply()])
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        try:
            return await self._reply(request, reply, seen)
        except (asyncio.CancelledError, ConnectionError):
            seen.ending = seen.ending or "left"
            raise

    async def _reply(self, request: web.Request, reply: Reply, seen: Seen) -> web.StreamResponse:
        if reply.hold is not None:
            await reply.hold.wait()
        await _misbehave(request, reply, "before", seen)
        if reply.status == 200 and seen.body.get("stream"):
            return await self._stream(request, reply, seen)
        body = reply.body if reply.body is not None else json.dumps(_whole(reply, seen.body)).encode()
        seen.ending = "answered"
        return web.Response(status=reply.status, body=body, headers=reply.headers, content_type="application/json")

    async def _stream(self, request: web.Request, reply: Reply, seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **reply.headers})
        await response.prepare(request)
        send = _sender(response)
        if reply.body is not None:
            await response.write(reply.body)
        for word in _words(reply.text) if reply.body is None else ():
            await _misbehave(request, reply, seen.deltas, seen)
            await send(_chunk(reply, seen.body, {"content": word}))
            seen.deltas += 1
        await _misbehave(request, reply, seen.deltas, seen)
        if reply.body is None:
            await send(_chunk(reply, seen.body, {}, finish=reply.finish))
            if reply.usage is not None and seen.body.get("stream_options", {}).get("include_usage"):
                await send(_chunk(reply, seen.body, None, usage=reply.usage))
            if reply.is_ended:
                await response.write(b"data: [DONE]\n\n")
        await _misbehave(request, reply, END, seen)
        seen.ending = "answered"
        return response

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, self._port)
        await site.start()
        self.url = f"http://{HOST}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        await self._runner.cleanup()


async def _misbehave(request: web.Request, reply: Reply, moment: str | int, seen: Seen) -> None:
    if reply.gate is not None and moment in (reply.stall, reply.cut, reply.pause):
        await reply.gate.wait()
    if reply.stall == moment:
        await asyncio.Event().wait()
    if reply.cut == moment:
        seen.ending = "cut"
        assert request.transport is not None
        request.transport.close()  # what was written before is still sent
        await asyncio.Event().wait()


def _sender(response: web.StreamResponse) -> Callable[[Json], Any]:
    return lambda chunk: response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


def _words(text: str | None) -> list[str]:
    return [f"{' ' if position else ''}{word}" for position, word in enumerate((text or "").split(" ")) if word]


def _whole(reply: Reply, asked: Json) -> Json:
    message = {"role": "assistant", "content": reply.text}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish}
    body = {"id": "c1", "object": "chat.completion", "created": 1, "model": asked["model"], "choices": [choice]}
    return body | ({} if reply.usage is None else {"usage": reply.usage}) | dict(reply.changes)


def _chunk(reply: Reply, asked: Json, delta: Json | None, *, finish: str | None = None, usage: object = None) -> Json:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": asked["model"], "choices": choices}
    return body | {"usage": usage} | dict(reply.changes)
