"""``POST /score`` as a route: deadline, limits and statuses; what is answered is app/scoring.py's business."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import attrs
import pytest
from aiohttp import ClientSession, web

from app.middleware import answer_errors, carry_request_id
from app.views.score import MAX_IN_FLIGHT, score_routes
from models.errors import RequestError


@attrs.define
class FakeScoring:
    """Answers once it may, and keeps what it was asked."""

    may_answer: asyncio.Event = attrs.field(factory=asyncio.Event)
    asked: list[tuple[bytes, str, float]] = attrs.field(factory=list)

    async def answer(self, body: bytes, *, request_id: str, deadline: float) -> bytes:
        """An answer that echoes the body."""
        self.asked.append((body, request_id, deadline - time.monotonic()))
        await self.may_answer.wait()
        return body


@contextlib.asynccontextmanager
async def running(scoring: FakeScoring, *, limit_bytes: int = 2**20) -> AsyncIterator[ClientSession]:
    """A server with the route."""
    app = web.Application(middlewares=[carry_request_id, answer_errors], client_max_size=limit_bytes)
    app.add_routes(score_routes(scoring))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            yield session
    finally:
        await runner.cleanup()


async def test_the_route_hands_on_body_id_and_deadline() -> None:
    """The request's id and deadline come from its headers, and the answer is no thing to be cached."""
    scoring = FakeScoring()
    scoring.may_answer.set()
    headers = {"X-Request-Id": "r-7", "X-Deadline-Ms": "60000"}
    async with running(scoring) as session, session.post("/score", json={"a": 1}, headers=headers) as response:
        assert (response.status, await response.json()) == (200, {"a": 1})
        assert (response.headers["Cache-Control"], response.headers["X-Request-Id"]) == ("no-store", "r-7")
    [(body, request_id, left_s)] = scoring.asked
    assert (body, request_id) == (b'{"a": 1}', "r-7")
    assert 40 < left_s <= 60


async def test_too_many_requests_at_once_are_refused_unread() -> None:
    """503 with Retry-After, while those that were let in are answered; afterwards there is room again."""
    scoring = FakeScoring()

    async def post(session: ClientSession) -> tuple[int, str | None]:
        async with session.post("/score", json={}) as response:
            return response.status, response.headers.get("Retry-After")

    async with running(scoring) as session:
        session.connector._limit = 0  # type: ignore[union-attr]  # no limit: each request gets a connection
        waiting = [asyncio.create_task(post(session)) for _ in range(MAX_IN_FLIGHT)]
        while len(scoring.asked) < MAX_IN_FLIGHT:
            await asyncio.sleep(0)
        assert await post(session) == (503, "1")
        scoring.may_answer.set()
        assert set(await asyncio.gather(*waiting)) == {(200, None)}
        assert await post(session) == (200, None)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        pytest.param({"X-Deadline-Ms": "soon"}, b"{}", 400, id="deadline"),
        pytest.param({"Content-Type": "text/plain"}, b"{}", 415, id="type"),
        pytest.param({}, b"x" * 2_000, 413, id="length"),
    ],
)
async def test_what_is_refused_unread_leaves_its_place(headers: dict[str, str], body: bytes, status: int) -> None:
    """No answer is looked for, and however often that happens, the next request finds room."""
    scoring = FakeScoring()
    scoring.may_answer.set()
    sent = {"Content-Type": "application/json"} | headers
    async with running(scoring, limit_bytes=1_000) as session:
        for _ in range(MAX_IN_FLIGHT + 1):
            async with session.post("/score", data=body, headers=sent) as response:
                assert response.status == status
        assert scoring.asked == []
        async with session.post("/score", json={}) as response:
            assert response.status == 200


async def test_a_request_without_an_id_gets_one() -> None:
    """The id that is minted is that of the answer's header and the one that the service is given."""
    scoring = FakeScoring()
    scoring.may_answer.set()
    async with running(scoring) as session:
        for _ in range(2):
            async with session.post("/score", json={}) as response:
                assert response.headers["X-Request-Id"] == scoring.asked[-1][1]
    assert len({request_id for _, request_id, _ in scoring.asked}) == 2


async def test_a_flaw_that_the_service_finds_is_answered_with_its_status() -> None:
    """422 with the path that it names, and the place is free again."""

    class Refusing(FakeScoring):
        async def answer(self, body: bytes, *, request_id: str, deadline: float) -> bytes:
            raise RequestError(422, "user_id: missing")

    async with running(Refusing()) as session:
        for _ in range(MAX_IN_FLIGHT + 1):
            async with session.post("/score", json={}) as response:
                assert (response.status, (await response.json())["detail"]) == (422, "user_id: missing")
