"""A stand-in for an LLM gateway: streams a tip, its first word after a while, with a pause between the words.

Usage: llm_upstream.py PORT FIRST_S PAUSE_S
"""

import asyncio
import json
import sys

import uvloop
from aiohttp import web

WORDS = "Pick one small task and finish it today , then rest .".split()


def make_app(first_s: float, pause_s: float) -> web.Application:
    """The application."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        await asyncio.sleep(first_s)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in WORDS:
            await response.write(_chunk({"choices": [{"index": 0, "delta": {"content": f" {word}"}}]}))
            await asyncio.sleep(pause_s)
        await response.write(_chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        usage = {"prompt_tokens": 100, "completion_tokens": len(WORDS), "total_tokens": 100 + len(WORDS)}
        await response.write(_chunk({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/health", lambda _: _ok())
    return app


async def _ok() -> web.Response:
    return web.Response(text="ok")


def _chunk(fields: dict[str, object]) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "model": "tips", "created": 1} | fields
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


if __name__ == "__main__":
    port, first, pause = sys.argv[1:]
    uvloop.install()
    web.run_app(make_app(float(first), float(pause)), host="127.0.0.1", port=int(port), access_log=None, print=None)
