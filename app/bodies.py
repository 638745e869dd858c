"""Bodies of requests: read whole within limits, decoded, and refused by path.

This module owns what is asked of every body: JSON by its content type, at most ``BODY_LIMIT_BYTES`` (the application's
``client_max_size``), sent within ``BODY_S``. What a body may hold is the business of the type that it is decoded into.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec
from aiohttp import web

from models.errors import PayloadError, RequestError

T = TypeVar("T")
SourceT = TypeVar("SourceT")

BODY_S = 10.0
"""Seconds in which a body must have arrived; a sender that takes longer holds a place that others need."""


async def read_body(request: web.Request, *, within_s: float = BODY_S) -> bytes:
    """Reads a JSON body.

    Raises:
        RequestError: 415 for another content type, 408 when it does not arrive in time.
        HTTPRequestEntityTooLarge: 413.
    """
    if request.content_type != "application/json":
        raise RequestError(415, f"Content-Type: expected application/json, got {request.content_type[:80]!r}")
    try:
        async with asyncio.timeout(within_s):
            return await request.read()
    except TimeoutError as error:
        raise RequestError(408, f"the body did not arrive within {within_s:g} s") from error


def decode_body(body: SourceT, decode: Callable[[SourceT], T]) -> T:
    """Decodes a body.

    Raises:
        RequestError: 400 when it is no JSON, 422 with the path of the field that does not fit.
    """
    try:
        return decode(body)
    except PayloadError as error:
        is_json = error.__cause__ is None or isinstance(error.__cause__, msgspec.ValidationError)
        detail = (
            error.reason.replace("payload: ", "body: ", 1) if error.reason.startswith("payload: ") else error.reason
        )
        raise RequestError(422 if is_json else 400, detail) from error
