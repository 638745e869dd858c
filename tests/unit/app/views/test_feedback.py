"""``POST /feedback``: what is refused by path before anything is published, and what is published."""

import contextlib
import datetime as dt
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
from aiohttp import ClientSession, web
from harness import NatsServer
from hypothesis import given, settings
from hypothesis import strategies as st
from service_kit import client

from app.middleware import BODY_LIMIT_BYTES, answer_errors, carry_request_id
from app.views.feedback import FeedbackRequest, feedback_routes, message_id
from models.codec import decoder_for
from models.errors import PayloadError
from models.events import TipRewarded
from streams.broker import Broker

GIVEN: dict[str, Any] = {"user_id": "ada", "tip_id": "t", "request_id": "r", "reward": 1}
decode_event = decoder_for(TipRewarded)


@attrs.frozen
class Source:
    """What has the connection, or has none."""

    broker: Broker | None = None


@contextlib.asynccontextmanager
async def running(broker: Broker | None = None) -> AsyncIterator[ClientSession]:
    """The route on a real server; a session of a client's."""
    app = web.Application(middlewares=[carry_request_id, answer_errors], client_max_size=BODY_LIMIT_BYTES)
    app.add_routes(feedback_routes(Source(broker)))
    runner = web.AppRunner(app, lingering_time=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            yield session
    finally:
        await runner.cleanup()


async def refused(body: object, content_type: str = "application/json") -> tuple[int, str]:
    """Status and detail of the answer to a body, without NATS."""
    data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    headers = {"Content-Type": content_type}
    async with running() as session, session.post("/feedback", data=data, headers=headers) as answer:
        return answer.status, (await answer.json(content_type=None))["detail"]


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        pytest.param({"reward": 1.01}, "reward: expected a number from 0 to 1, got 1.01", id="above-1"),
        pytest.param({"reward": -0.01}, "reward: expected a number from 0 to 1, got -0.01", id="below-0"),
        pytest.param({"reward": "1"}, "reward: expected float, got str", id="text"),
        pytest.param({"reward": None}, "reward: expected float, got null", id="no-reward"),
        pytest.param({"user_id": ""}, "user_id: ", id="empty-user"),
        pytest.param({"tip_id": "a b"}, "tip_id: ", id="blank-in-tip"),
        pytest.param({"request_id": "x" * 129}, "request_id: ", id="long-request"),
        pytest.param({"request_id": "x\n"}, "request_id: ", id="line-feed-at-the-end"),
        pytest.param({"prompt_version": "v1/../v2"}, "prompt_version: ", id="slash-in-prompt"),
        pytest.param({"model_version": 7}, "model_version: expected str | null, got int", id="model-number"),
        pytest.param({"occurred_at": "2026-03-01T09:00:00"}, "occurred_at: expected an instant with", id="naive"),
    ],
)
async def test_feedback_names_the_field_that_does_not_fit(change: dict[str, Any], detail: str) -> None:
    """A value that no reward has is 422 with its path."""
    status, found = await refused(GIVEN | change)
    assert (status, found[: len(detail)]) == (422, detail)


@pytest.mark.parametrize("name", ["user_id", "tip_id", "request_id", "reward"])
async def test_feedback_names_the_field_that_is_missing(name: str) -> None:
    """Without one of the four there is nothing to count."""
    rest = {key: value for key, value in GIVEN.items() if key != name}
    assert await refused(rest) == (422, f"{name}: missing")


async def test_feedback_takes_json_alone() -> None:
    """No JSON is 400, another content type 415, and a body beyond the limit 413."""
    assert (await refused(b"{"))[0] == 400
    assert (await refused(GIVEN, "text/plain"))[0] == 415
    assert (await refused(b" " * (BODY_LIMIT_BYTES + 1)))[0] == 413


async def test_feedback_without_a_connection_is_503() -> None:
    """With NATS disabled, or before the start has come to it, the client is told when to try again."""
    async with running() as session, session.post("/feedback", json=GIVEN) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


async def test_feedback_does_not_wait_for_a_connection(unused_tcp_port: int, caplog: pytest.LogCaptureFixture) -> None:
    """While NATS can't be reached nothing is handed to the client library, which would keep it to send it later."""
    async with (
        Broker([f"nats://127.0.0.1:{unused_tcp_port}"], name="test") as broker,
        running(broker) as session,
        session.post("/feedback", json=GIVEN) as answer,
    ):
        assert answer.status == 503
    assert "feedback: there is no connection to NATS" in caplog.text


async def test_feedback_before_there_is_a_stream_is_503(nats_server: NatsServer) -> None:
    """A server that nobody has given the stream stores nothing, and no answer says that it did."""
    async with Broker([nats_server.url], name="test") as broker:
        await broker.connected.wait()
        async with running(broker) as session, session.post("/feedback", json=GIVEN) as answer:
            assert answer.status == 503


async def test_feedback_is_published_with_the_time_it_came_at(nats_server: NatsServer) -> None:
    """All that is given is in the event; an instant that is not given is now, and unknown fields are left out."""
    async with client(nats_server.url) as nc, Broker([nats_server.url], name="test") as broker:
        await nc.jetstream().add_stream(name="FEEDBACK", subjects=["feedback.>"])
        await broker.connected.wait()
        before = dt.datetime.now(dt.UTC)
        async with running(broker) as session, session.post("/feedback", json=GIVEN | {"more": 1}) as answer:
            assert answer.status == 202
        message = await nc.jetstream().get_msg("FEEDBACK", 1)
    event = decode_event(message.data or b"")
    assert before <= event.occurred_at <= dt.datetime.now(dt.UTC)
    assert event == TipRewarded(**GIVEN, occurred_at=event.occurred_at)


def id_of(request: str, tip: str) -> str:
    """The message id of a tip's reward."""
    return message_id(
        TipRewarded(**GIVEN | {"request_id": request, "tip_id": tip}, occurred_at=dt.datetime.now(dt.UTC))
    )


ID = st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True)


@settings(deadline=None)
@given(ID, ID, ID, ID)
def test_message_id_is_of_one_request_and_tip(request: str, tip: str, other_request: str, other_tip: str) -> None:
    """Two are equal only when both ids are; it is short and holds nothing of either."""
    first, second = id_of(request, tip), id_of(other_request, other_tip)
    assert (first == second) == ((request, tip) == (other_request, other_tip))
    assert len(first) == len("feedback:") + 32  # 16 bytes of the hash


def test_message_id_keeps_colons_apart() -> None:
    """A colon in an id is no border between the two."""
    assert id_of("a:b", "c") != id_of("a", "b:c")


@settings(deadline=None)
@given(ID, ID, st.floats(0, 1))
def test_feedback_request_takes_every_id_and_reward(user: str, version: str, reward: float) -> None:
    """Whatever has the form of an id, and every reward from 0 to 1, is taken as it is."""
    body = json.dumps(GIVEN | {"user_id": user, "prompt_version": version, "reward": reward}).encode()
    found = decoder_for(FeedbackRequest)(body)
    assert (found.user_id, found.prompt_version, found.reward) == (user, version, reward)


@settings(deadline=None)
@given(st.text(max_size=140))
def test_feedback_request_takes_no_other_id(text: str) -> None:
    """Any other text is refused with its field, a line feed at the end included."""
    is_id = 1 <= len(text) <= 128 and text.isascii() and all(c.isalnum() or c in "._:-" for c in text)
    try:
        decoder_for(FeedbackRequest)(json.dumps(GIVEN | {"tip_id": text}).encode())
    except PayloadError as error:
        assert not is_id and error.reason.startswith("tip_id: expected")
    else:
        assert is_id
