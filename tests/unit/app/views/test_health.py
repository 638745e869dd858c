"""``/health`` and the two probes, on a real aiohttp server."""

import datetime as dt
from collections.abc import Awaitable, Callable

import attrs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from app.views.health import health_routes
from streams.health import (
    ConsumerHealth,
    DecisionHealth,
    HandlerCounts,
    Health,
    NatsHealth,
    PromptHealth,
    StateHealth,
    Status,
)

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]

CONSUMER = ConsumerHealth(
    last_msg_ts=dt.datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=dt.UTC),
    processed=1,
    errors=2,
    dead_lettered=3,
    parked=4,
    pending=5,
    ack_pending=6,
    redelivered=7,
    lag_s=0.5,
    role="standby",
    status="degraded",
    reason="behind",
    handlers={"task_synced": HandlerCounts(processed=8, errors=9, dead_lettered=10)},
)
DECISIONS = DecisionHealth(
    status="degraded",
    reason="lost",
    rate=0.5,
    buffered=12,
    spooled=13,
    spool_bytes=14,
    published=15,
    sampled_out=16,
    dropped={"full": 17},
)
NATS = NatsHealth(
    enabled=True,
    mode="external",
    connected=True,
    rtt_ms=1.25,
    unhandled=11,
    consumers={"tipstream-signals": CONSUMER, "tipstream-new": ConsumerHealth()},
)
HEALTH = Health(
    status="degraded",
    reasons=["tipstream-signals: behind"],
    nats=NATS,
    state=StateHealth(),
    decisions=DECISIONS,
    prompts=PromptHealth(versions=["v1", "v2"], default=["v2"]),
)

EXPECTED = (
    '{"status":"degraded","reasons":["tipstream-signals: behind"],'
    '"nats":{"enabled":true,"mode":"external","connected":true,"rtt_ms":1.25,"unhandled":11,"consumers":{'
    '"tipstream-signals":{"last_msg_ts":"2026-01-02T03:04:05.600000Z","processed":1,"errors":2,"dead_lettered":3,'
    '"parked":4,"pending":5,"ack_pending":6,"redelivered":7,"lag_s":0.5,"role":"standby","status":"degraded",'
    '"reason":"behind","handlers":{"task_synced":{"processed":8,"errors":9,"dead_lettered":10}}},'
    '"tipstream-new":{"last_msg_ts":null,"processed":0,"errors":0,"dead_lettered":0,'
    '"parked":0,"pending":0,"ack_pending":0,"redelivered":0,"lag_s":null,"role":"owner","status":"ok",'
    '"reason":null,"handlers":{}}}},'
    '"model":null,"prompts":{"versions":["v1","v2"],"default":["v2"],"gateway":null},"state":{"status":"ok","reason":null},'
    '"decisions":{"status":"degraded","reason":"lost","rate":0.5,"buffered":12,"spooled":13,"spool_bytes":14,'
    '"published":15,"sampled_out":16,"dropped":{"full":17}}}'
)


@attrs.frozen(kw_only=True)
class FakeSource:
    """A worker with a given health."""

    now: Health

    def health(self) -> Health:
        """The given one."""
        return self.now


async def client_of(aiohttp_client: Client, health: Health) -> TestClient[web.Request, web.Application]:
    """A client of a server that shows this health."""
    app = web.Application()
    app.add_routes(health_routes(FakeSource(now=health)))
    return await aiohttp_client(app)


async def test_health_answers_exactly_the_contract(aiohttp_client: Client) -> None:
    """Every field is there under its name and in its order, instants in UTC, unknowns as null."""
    client = await client_of(aiohttp_client, HEALTH)
    response = await client.get("/health")
    assert (response.status, response.content_type) == (200, "application/json")
    assert await response.text() == EXPECTED


@pytest.mark.parametrize(
    ("path", "status", "answer"),
    [
        ("/health", "ok", 200),
        ("/health", "down", 200),
        ("/health/live", "down", 200),
        ("/health/ready", "ok", 200),
        ("/health/ready", "degraded", 200),
        ("/health/ready", "down", 503),
    ],
    ids=["health-ok", "health-down", "live-down", "ready-ok", "ready-degraded", "ready-down"],
)
async def test_health_route_answers_its_status(aiohttp_client: Client, path: str, status: Status, answer: int) -> None:
    """Only the readiness probe fails, and only while the worker is down; no cache may keep the answer."""
    client = await client_of(aiohttp_client, attrs.evolve(HEALTH, status=status))
    response = await client.get(path)
    assert response.status == answer
    assert response.headers["Cache-Control"] == "no-store"


async def test_probes_answer_with_a_status_and_no_reason(aiohttp_client: Client) -> None:
    """The probes are open to anyone, so they name the status alone."""
    client = await client_of(aiohttp_client, attrs.evolve(HEALTH, status="down"))
    assert await (await client.get("/health/live")).json() == {"status": "ok"}
    assert await (await client.get("/health/ready")).json() == {"status": "down"}


async def test_probe_takes_head(aiohttp_client: Client) -> None:
    """A load balancer may ask with HEAD."""
    client = await client_of(aiohttp_client, attrs.evolve(HEALTH, status="down"))
    assert (await client.head("/health/ready")).status == 503
