"""``POST /feedback``: the reward of a tip, stored in JetStream before the answer.

The view appends an event and counts nothing: streams/handlers/feedback.py does, and only the first reward of a tip
counts. So a client that got no answer, or a 503, sends the same again until it gets its 202.
"""

import datetime as dt
import hashlib
from typing import Protocol

import attrs
from aiohttp import web

from app.bodies import read_json_body
from app.operations import Answer, Body, Operation
from models.codec import aware, between, decoder_for, encode_json, identifier
from models.errors import BrokerUnavailable
from models.events import TipRewarded
from streams.broker import Broker
from streams.handlers.feedback import reward_key
from streams.lookup import MSG_ID

SUBJECT = "feedback.tip.rewarded"
STORE_S = 3.0
"""Seconds in which JetStream has to have stored the event."""

_ID_BYTES = 16


@attrs.frozen(kw_only=True)
class FeedbackRequest:
    """What a recommender says of a tip; ``occurred_at`` is now unless given."""

    user_id: str = attrs.field(validator=identifier)
    tip_id: str = attrs.field(validator=identifier)
    request_id: str = attrs.field(validator=identifier)
    reward: float = attrs.field(validator=between(0, 1))
    prompt_version: str | None = attrs.field(default=None, validator=identifier)
    model_version: str | None = attrs.field(default=None, validator=identifier)
    occurred_at: dt.datetime | None = attrs.field(default=None, validator=aware)


@attrs.frozen(kw_only=True)
class FeedbackStored:
    """The answer: JetStream has the event at ``stream_seq``, now or since an earlier request for the same tip."""

    request_id: str
    tip_id: str
    stored: bool
    stream_seq: int


class BrokerSource(Protocol):
    """Whoever has the connection to NATS."""

    @property
    def broker(self) -> Broker | None:
        """The connection; None when NATS is disabled, and until the start has come to it."""


def message_id(event: TipRewarded) -> str:
    """The id under which the stream keeps the event once: a hash, for ids of users are no business of headers."""
    return f"feedback:{hashlib.sha256(reward_key(event).encode()).digest()[:_ID_BYTES].hex()}"


def feedback_routes(source: BrokerSource) -> web.RouteTableDef:
    """The route ``/feedback``."""
    routes = web.RouteTableDef()
    decode = decoder_for(FeedbackRequest)

    @routes.post("/feedback")
    async def take_feedback(request: web.Request) -> web.Response:
        """Stores the reward of a tip; the first one of a tip counts."""
        given = await read_json_body(request, decode)
        event = TipRewarded(**attrs.asdict(given) | {"occurred_at": given.occurred_at or dt.datetime.now(dt.UTC)})
        seq = await _store(source.broker, event)
        stored = FeedbackStored(request_id=given.request_id, tip_id=given.tip_id, stored=True, stream_seq=seq)
        return web.Response(status=202, body=encode_json(attrs.asdict(stored)), content_type="application/json")

    return routes


async def _store(broker: Broker | None, event: TipRewarded) -> int:
    """Publishes the event and returns its sequence.

    Raises:
        BrokerError: it is not known to be stored; the answer is 503.
    """
    if broker is None or not broker.is_connected:  # publishing would wait for a connection
        raise BrokerUnavailable("feedback: there is no connection to NATS")
    headers = {MSG_ID: message_id(event)}
    return (await broker.publish(SUBJECT, encode_json(event), headers, timeout_s=STORE_S)).seq


OPERATIONS = (
    Operation(
        method="POST",
        path="/feedback",
        tag="tips",
        summary="Stores the reward of a tip",
        description=(
            "Answered once JetStream has stored it. The first reward of a `request_id` and `tip_id` counts, for ever; "
            "a client that got no answer sends the same again. A `request_id` that nobody knows is accepted."
        ),
        body=Body(
            type=FeedbackRequest,
            example={"user_id": "u-1", "tip_id": "t-1", "request_id": "r-1", "reward": 1.0, "prompt_version": "v1"},
        ),
        answers=(
            Answer(
                status=202,
                description="It is stored, now or since an earlier request for the same tip.",
                type=FeedbackStored,
                example={"request_id": "r-1", "tip_id": "t-1", "stored": True, "stream_seq": 7},
            ),
        ),
        errors={
            400: "The body is no JSON, or ends early.",
            408: "The body did not arrive in time.",
            415: "The Content-Type is not application/json.",
            422: "A field is missing or does not fit; the detail names its path.",
            503: "NATS is disabled or does not answer: send the same again later.",
        },
    ),
)
