"""``POST /score``: scores a user's candidates.

The route reads the body and the deadline; app/scoring.py answers. More requests at once than ``MAX_IN_FLIGHT`` are
refused with 503 and Retry-After before they are read: nothing honest can be said of a request that is not even known.
"""

import time
from typing import Annotated, Literal, Protocol

import attrs
import msgspec
from aiohttp import web
from msgspec import Meta

from app.bodies import read_body
from app.deadlines import DEADLINE_HEADER, MAX_DEADLINE_MS, read_deadline_s
from app.middleware import REQUEST_ID
from app.operations import Answer, Body, Operation, Parameter
from models.codec import ID_PATTERN, between
from models.features import FEATURES, ScoreContext
from models.profile_schema import ProfileFeatures
from models.scoring import MAX_CANDIDATES

DEADLINE_MS = 40
MAX_IN_FLIGHT = 512
BODY_S = 2.0
"""Seconds in which a body must have arrived: whoever sends more slowly holds a place that others wait for."""

_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}


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
        deadline = time.monotonic() + read_deadline_s(request.headers.get(DEADLINE_HEADER), default_ms=DEADLINE_MS)
        if in_flight >= MAX_IN_FLIGHT:
            raise web.HTTPServiceUnavailable(
                text=f"{MAX_IN_FLIGHT} requests are being answered", headers={"Retry-After": "1"}
            )
        in_flight += 1
        try:
            body = await read_body(request, within_s=BODY_S)
            answer = await scoring.answer(body, request_id=request[REQUEST_ID], deadline=deadline)
        finally:
            in_flight -= 1
        return web.Response(body=answer, headers=_HEADERS)

    return routes


# What follows is for the OpenAPI document alone: models/scoring.py decodes, app/scoring.py encodes.
_Id = Annotated[str, Meta(pattern=f"^{ID_PATTERN}$")]
_CandidateFeatures = msgspec.defstruct(
    "CandidateFeatures",
    [
        (feature.name, Annotated[float | None, Meta(description=f"{feature.meaning} ({feature.unit})")], None)
        for feature in FEATURES.values()
        if feature.source == "candidate"
    ],
    namespace={"__doc__": "What a model may read of a candidate; null and an absent name are both a missing value."},
)
_Candidate = msgspec.defstruct(
    "Candidate",
    [("id", _Id), ("features", _CandidateFeatures)],
    namespace={"__doc__": "One thing to be scored. Each id comes once in a request."},
)
_ScoreBody = msgspec.defstruct(
    "ScoreBody",
    [
        ("user_id", _Id),
        (
            "candidates",
            Annotated[
                list[_Candidate],  # type: ignore[valid-type]  # made at run time
                Meta(min_length=1, max_length=MAX_CANDIDATES),
            ],
        ),
        ("request_id", Annotated[_Id | None, Meta(description="Without it the request's X-Request-Id is used.")], None),
        ("profile_features", ProfileFeatures | None, None),
        ("context", ScoreContext | None, None),
    ],
    namespace={"__doc__": "A user, and what is to be scored for them. Unknown fields and features are ignored."},
)


@attrs.frozen(kw_only=True)
class CandidateScore:
    """The score of one candidate."""

    id: str
    score: float = attrs.field(validator=between(0, 1))


@attrs.frozen(kw_only=True)
class ScoreAnswer:
    """The scores, and how they came about.

    Args:
        model_version: null when no model answered.
        scores: in the order of the request.
        propensity: with which probability the policy gives this answer; null unless it was logged.
        degraded: a constant answered for the model, or something that it reads was not to be had.
        degraded_reason: why.
        logged: whether the decision log has the answer.
        simulated: the model has learned from a simulated world; no user was behind it.
    """

    request_id: str
    model_version: str | None
    scores: list[CandidateScore]
    policy: Literal["greedy"]
    propensity: float | None
    degraded: bool
    degraded_reason: str | None
    logged: bool
    simulated: bool


OPERATIONS = (
    Operation(
        method="POST",
        path="/score",
        tag="scoring",
        summary="Scores a user's candidates",
        description="Past the deadline, or without a model, a constant answers and `degraded` is true.",
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
            type=_ScoreBody,
            example={
                "user_id": "u-1",
                "candidates": [{"id": "tip-1", "features": {"tip_length_chars": 120}}, {"id": "tip-2", "features": {}}],
                "profile_features": {"completion_rate_7d": 0.5},
                "context": {"utc_offset_minutes": 60},
            },
        ),
        answers=(
            Answer(
                description="A score for each candidate.",
                type=ScoreAnswer,
                example={
                    "request_id": "r-1",
                    "model_version": "1",
                    "scores": [{"id": "tip-1", "score": 0.25}, {"id": "tip-2", "score": 0.125}],
                    "policy": "greedy",
                    "propensity": 1.0,
                    "degraded": False,
                    "degraded_reason": None,
                    "logged": True,
                    "simulated": False,
                },
            ),
        ),
        errors={
            400: f"The body is no JSON, or ends early; or {DEADLINE_HEADER} is not in its range.",
            408: "The body did not arrive in time.",
            415: "The Content-Type is not application/json.",
            422: "A field is missing or does not fit; the detail names its path.",
            503: f"{MAX_IN_FLIGHT} requests are being answered already.",
        },
    ),
)
