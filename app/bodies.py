"""Bodies of requests: read whole within limits, decoded, and refused by path.

This module owns what is asked of every body: JSON by its content type, at most ``BODY_LIMIT_BYTES`` (the application's
``client_max_size``), sent within ``BODY_S``. What a body may hold is the business of the type that it is decoded into.
"""

import asyncio
import re
from collections.abc import Callable
from typing import TypeVar

import msgspec
from aiohttp import web

from app.operations import JSON
from models.errors import PayloadError, RequestError

T = TypeVar("T")
SourceT = TypeVar("SourceT")

BODY_S = 10.0
"""Seconds in which a body must have arrived; a sender that takes longer holds a place that others need."""


async def read_body(request: web.Request, *, within_s: float = BODY_S) -> bytes:
    """Reads a JSON body.

    Raises:
        RequestError: 415 for another content type.
        HTTPRequestTimeout: 408; it has not arrived in time, and the connection is closed.
        HTTPRequestEntityTooLarge: 413; it is longer than the application takes, or says so before it is read.
    """
    if request.content_type != JSON:
        got = request.content_type if "Content-Type" in request.headers else "no Content-Type"
        raise RequestError(415, f"Content-Type: expected {JSON}, got {got[:100]}")
    limit, length = request.client_max_size, request.content_length
    if length is not None and length > limit:
        raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=length)
    if request.content.is_eof():  # all of it is here already, and a timer would cost more than reading it
        return await request.read()
    try:
        async with asyncio.timeout(within_s):
            return await request.read()
    except TimeoutError as error:
        request.protocol.close()  # once the answer is out: what may still come is no next request
        text = f"the body did not arrive within {within_s:g} s"
        raise web.HTTPRequestTimeout(text=text, headers={"Connection": "close"}) from error


def decode_body(body: SourceT, decode: Callable[[SourceT], T]) -> T:
    """Decodes a body.

    Raises:
        RequestError: 400 when it is no JSON, 422 with the path of the field that does not fit.
    """
    try:
        return decode(body)
    except PayloadError as error:
        is_json = error.__cause__ is None or isinstance(error.__cause__, msgspec.ValidationError)
        detail = re.sub("^payload: ", "body: ", error.reason)
        raise RequestError(422 if is_json else 400, detail) from error


async def read_json_body(request: web.Request, decode: Callable[[bytes], T]) -> T:
    """Reads a JSON body and decodes it; raises what both do."""
    return decode_body(await read_body(request), decode)
