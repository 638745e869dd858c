"""The worker's health over HTTP: the whole truth, and the two probes of an orchestrator.

Nothing is judged here: streams/health.py decides what is ok, degraded or down.
"""

from typing import Protocol

import attrs
import msgspec
from aiohttp import web

from streams.health import Health

_NO_STORE = {"Cache-Control": "no-store"}


class HealthSource(Protocol):
    """Whoever knows the worker's health; called on the loop, so it must not wait."""

    def health(self) -> Health:
        """The newest judgement."""


def encode_health(health: Health) -> bytes:
    """Encodes the answer of ``/health``; below the top level, fields and their order are those of the records.

    msgspec alone would write the fields of an attrs class in alphabetical order.
    """
    facts = attrs.asdict(health)
    document = {"status": None, "reasons": None, "nats": None, "model": None, "prompts": None} | facts
    return msgspec.json.encode(document)


def health_routes(source: HealthSource) -> web.RouteTableDef:
    """Routes of ``/health`` (always 200), ``/health/live`` and ``/health/ready`` (503 while the worker is down)."""
    routes = web.RouteTableDef()

    @routes.get("/health")
    async def show_health(_: web.Request) -> web.Response:
        return _json(encode_health(source.health()))

    @routes.get("/health/live")
    async def show_live(_: web.Request) -> web.Response:
        return _json(b'{"status":"ok"}')

    @routes.get("/health/ready")
    async def show_ready(_: web.Request) -> web.Response:
        status = source.health().status
        return _json(msgspec.json.encode({"status": status}), status=503 if status == "down" else 200)

    return routes


def _json(body: bytes, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body, headers=_NO_STORE, content_type="application/json")
