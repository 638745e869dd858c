"""The worker's health over HTTP: the whole truth, and the two probes of an orchestrator.

Nothing is judged here: streams/health.py decides what is ok, degraded or down.
"""

from typing import Protocol

import attrs
import msgspec
from aiohttp import web

from app.operations import Answer, Operation
from streams.health import DecisionHealth, Health, ModelHealth, NatsHealth, PromptHealth, StateHealth, Status

_NO_STORE = {"Cache-Control": "no-store"}
_NEVER_KEPT = {"Cache-Control": "no-store: the answer is of this instant."}


class HealthSource(Protocol):
    """Whoever knows the worker's health; called on the loop, so it must not wait."""

    def health(self) -> Health:
        """The newest judgement."""


@attrs.frozen(kw_only=True)
class HealthAnswer:
    """How the worker is, as a whole and part by part.

    Args:
        reasons: a sentence for each thing that is not ok.
        model: null where no models are looked for.
        prompts: null until the variants are read.
        decisions: how the log of the decisions is.
    """

    status: Status
    reasons: list[str]
    nats: NatsHealth
    model: ModelHealth | None
    prompts: PromptHealth | None
    state: StateHealth
    decisions: DecisionHealth


@attrs.frozen(kw_only=True)
class ProbeAnswer:
    """What a probe is told."""

    status: Status


def encode_health(health: Health) -> bytes:
    """Encodes the answer of ``/health``; fields and their order are those of the records.

    msgspec alone would write the fields of an attrs class in alphabetical order.
    """
    answer = HealthAnswer(
        status=health.status,
        reasons=health.reasons,
        nats=health.nats,
        model=health.model,
        prompts=health.prompts,
        state=health.state,
        decisions=health.decisions,
    )
    return msgspec.json.encode(attrs.asdict(answer))


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


_EXAMPLE = Health(
    status="down",
    reasons=["NATS does not answer"],
    nats=NatsHealth(enabled=True, mode="external", connected=False),
    state=StateHealth(),
    prompts=PromptHealth(versions=["v1", "v2", "v3"], default=["v1"]),
)

OPERATIONS = (
    Operation(
        method="GET",
        path="/health",
        tag="health",
        summary="Tells how the worker is",
        description="Always 200 while the process answers: the status is in the document.",
        answers=(
            Answer(
                description="The newest judgement, at most a few seconds old.",
                type=HealthAnswer,
                example=msgspec.json.decode(encode_health(_EXAMPLE)),
                headers=_NEVER_KEPT,
            ),
        ),
    ),
    Operation(
        method="GET",
        path="/health/live",
        tag="health",
        summary="Tells that the process answers",
        description="For an orchestrator's liveness probe; nothing else is looked at.",
        answers=(Answer(description="It does.", type=ProbeAnswer, example={"status": "ok"}, headers=_NEVER_KEPT),),
        is_open=True,
    ),
    Operation(
        method="GET",
        path="/health/ready",
        tag="health",
        summary="Tells whether the worker is ready for requests",
        description="For an orchestrator's readiness probe.",
        answers=(
            Answer(
                description="It is ok or degraded.", type=ProbeAnswer, example={"status": "ok"}, headers=_NEVER_KEPT
            ),
            Answer(
                status=503,
                description="It is down; `/health` says why.",
                type=ProbeAnswer,
                example={"status": "down"},
                headers=_NEVER_KEPT,
            ),
        ),
        is_open=True,
    ),
)
