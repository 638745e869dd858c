"""``POST /score``: scores a user's candidates.

The route reads the body and the deadline; app/scoring.py answers. More requests at once than ``MAX_IN_FLIGHT`` are
refused with 503 and Retry-After before they are read: nothing honest can be said of a request that is not even known.
"""

import re
import time
from typing import Protocol

from aiohttp import web

from app.bodies import read_body
from app.middleware import REQUEST_ID
from models.errors import RequestError

DEADLINE_HEADER = "X-Deadline-Ms"
DEADLINE_MS = 40
MAX_DEADLINE_MS = 60_000
MAX_IN_FLIGHT = 512

_NO_STORE = {"Cache-Control": "no-store"}


class Answers(Protocol):
    """Whoever answers a request's body."""

    async def answer(self, body: bytes, *, request_id: str, deadline: float) -> bytes:
        """The answer's JSON; raises RequestError for a body that does not fit."""


def score_routes(scoring: Answers) -> web.RouteTableDef:
    """The route ``/score``."""
    routes = web.RouteTableDef()
    in_flight = 0

    @routes.post("/score")
    async def score(request: web.Request) -> web.Response:
        nonlocal in_flight
        deadline = time.monotonic() + read_deadline_s(request.headers.get(DEADLINE_HEADER))
        if in_flight >= MAX_IN_FLIGHT:
            raise web.HTTPServiceUnavailable(
                text=f"{MAX_IN_FLIGHT} requests are being answered", headers={"Retry-After": "1"}
            )
        in_flight += 1
        try:
            body = await read_body(request)
            answer = await scoring.answer(body, request_id=request[REQUEST_ID], deadline=deadline)
        finally:
            in_flight -= 1
        return web.Response(body=answer, content_type="application/json", headers=_NO_STORE)

    return routes


def read_deadline_s(header: str | None) -> float:
    """Reads the deadline that a caller sets, in seconds from now.

    Raises:
        RequestError: 400; it is no whole number of milliseconds from 1 to ``MAX_DEADLINE_MS``.
    """
    if header is None:
        return DEADLINE_MS / 1000
    if not re.fullmatch("[0-9]{1,5}", header) or not 1 <= int(header) <= MAX_DEADLINE_MS:
        raise RequestError(400, f"{DEADLINE_HEADER}: expected milliseconds from 1 to {MAX_DEADLINE_MS}, got {header!r}")
    return int(header) / 1000
