"""``POST /generate``: a tip for a user, whole or as server-sent events.

The route reads the body and the deadline, watches whether its client is still there, and frames events;
app/generating.py has the tip made. A client that leaves ends the call of its model. An event stream begins once the
request is known to be valid, so what is wrong with one is answered as for any other.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated, Protocol, TypeVar

import attrs
from aiohttp import web
from msgspec import Meta

from app.bodies import read_body
from app.deadlines import DEADLINE_HEADER, MAX_DEADLINE_MS, read_deadline_s
from app.generating import Event, GenerateAnswer, GenerateRequest, Making
from app.middleware import REQUEST_ID
from app.operations import Answer, Body, Operation, Parameter
from models.profile_schema import ProfileFeatures

T = TypeVar("T")

DEADLINE_MS = 20_000
HEARTBEAT_S = 10.0
LOOK_S = 0.25
"""How often a client that is waited for is looked at."""


@attrs.frozen(kw_only=True)
class GenerateBody(GenerateRequest):
    """The body, as the document describes it."""

    profile_features: ProfileFeatures | None = None  # type: ignore[assignment]  # it is decoded by itself


_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}
_STREAM_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Generates(Protocol):
    """Whoever makes tips."""

    def begin(self, body: bytes, *, request_id: str, began: float, deadline_s: float) -> Making:
        """Takes a request; raises RequestError and PromptUnknown for one that does not fit."""

    async def answer(self, making: Making) -> bytes:
        """The answer's JSON."""

    def stream(self, making: Making) -> AsyncGenerator[Event, None]:
        """The answer's events."""


def generate_routes(generating: Generates) -> web.RouteTableDef:
    """The route ``/generate``."""
    routes = web.RouteTableDef()

    @routes.post("/generate")
    async def generate(request: web.Request) -> web.StreamResponse:
        began = time.monotonic()
        deadline_s = read_deadline_s(request.headers.get(DEADLINE_HEADER), default_ms=DEADLINE_MS)
        body = await read_body(request)
        making = generating.begin(body, request_id=request[REQUEST_ID], began=began, deadline_s=deadline_s)
        if making.asked.stream:
            return await send_events(request, generating.stream(making))
        answer = await _while_there(request, generating.answer(making))
        return web.Response(body=answer, headers=_HEADERS)

    return routes


async def _while_there(
    request: web.Request,
    making: Awaitable[T],
    *,
    beat: Callable[[], Awaitable[None]] | None = None,
    beat_s: float = HEARTBEAT_S,
) -> T:
    """Waits for a result while the client is there.

    Args:
        beat: called whenever ``beat_s`` have passed.

    Raises:
        ConnectionResetError: it has left; what was waited for is cancelled, and has ended.
    """
    task, loop = asyncio.ensure_future(making), asyncio.get_running_loop()
    quiet_since = loop.time()
    try:
        while not (await asyncio.wait({task}, timeout=LOOK_S))[0]:
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the client has left")
            if beat and loop.time() - quiet_since >= beat_s:
                quiet_since = loop.time()
                await beat()
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def send_events(
    request: web.Request, events: AsyncGenerator[Event, None], *, heartbeat_s: float = HEARTBEAT_S
) -> web.StreamResponse:
    """Sends events as they come, and a comment when none has come for ``heartbeat_s``."""
    response = web.StreamResponse(headers=_STREAM_HEADERS | {"X-Request-Id": request[REQUEST_ID]})

    async def beat() -> None:
        await response.write(b": still at it\n\n")

    async with contextlib.aclosing(events):
        await response.prepare(request)
        while event := await _while_there(request, anext(events, None), beat=beat, beat_s=heartbeat_s):
            await response.write(b"event: %s\ndata: %s\n\n" % (event.name.encode(), event.data))
        await response.write_eof()
    return response


OPERATIONS = (
    Operation(
        method="POST",
        path="/generate",
        tag="tips",
        summary="Writes a tip for a user",
        description=(
            "A valid request is always answered with a tip: by the model, the fallback model, or a template made here; "
            "`fallback`, `model` and `degraded_reason` say which. With `stream` it is server-sent events: `tip` with a "
            "`delta` of the text, at most one `replace` with the `tip` that takes its place, and `done` with the whole "
            "answer, which is authoritative."
        ),
        parameters=(
            Parameter(
                name=DEADLINE_HEADER,
                where="header",
                type=Annotated[int, Meta(ge=1, le=MAX_DEADLINE_MS)],
                description=f"Milliseconds that the caller waits; {DEADLINE_MS} without it.",
                is_required=False,
            ),
        ),
        body=Body(
            type=GenerateBody,
            example={
                "user_id": "u-1",
                "signals": ["completed 3 tasks this morning"],
                "tip_kind": "focus",
                "profile_features": {"current_streak_days": 4},
            },
        ),
        answers=(
            Answer(
                description="A tip that has passed the variant's checks.",
                type=GenerateAnswer,
                example={
                    "request_id": "r-1",
                    "tip_id": "t-1",
                    "tip": "Keep your streak of 4 days with the smallest task on your list.",
                    "prompt_version": "v1",
                    "model": "tips",
                    "usage": {"prompt_tokens": 210, "completion_tokens": 18},
                    "usage_estimated": False,
                    "cost_usd": 0.0001,
                    "cached": False,
                    "fallback": "none",
                    "degraded_reason": None,
                    "logged": True,
                },
            ),
            Answer(
                description="The same as events, when `stream` is true.",
                media_type="text/event-stream",
            ),
        ),
        errors={
            400: f"The body is no JSON, or ends early; or {DEADLINE_HEADER} is not in its range.",
            408: "The body did not arrive in time.",
            415: "The Content-Type is not application/json.",
            422: "A field is missing or does not fit, or the prompt version is not served; the detail names it.",
        },
    ),
)
