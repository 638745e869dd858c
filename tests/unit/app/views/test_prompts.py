"""``GET /prompts/analytics`` through a real server."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from streams_kit import make_change

from app.middleware import answer_errors, carry_request_id
from app.views.prompts import prompts_routes
from state.sqlite import SqliteStore

Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[Client]:
    """The route over a store that a test may make."""
    app = web.Application(middlewares=[carry_request_id, answer_errors])
    app.add_routes(prompts_routes(tmp_path / "state.db"))
    async with TestClient(TestServer(app)) as client:
        yield client


async def ask(http: Client, query: str = "") -> tuple[int, Any]:
    """Status and document."""
    async with http.get(f"/prompts/analytics{query}") as answer:
        return answer.status, await answer.json(content_type=None)


async def test_analytics_show_the_variants_of_the_days(http: Client, tmp_path: Path) -> None:
    """The report is that of the days in the query, of each variant with its interval, fresh at each request."""
    store = SqliteStore(tmp_path / "state.db")
    for seq, (day, accepted) in enumerate((("2026-03-01", 1), ("2026-03-02", 0)), 1):
        counts = {"count": 1, "accepted": accepted, "reward_millionths": accepted * 1_000_000}
        change = make_change(seq, adds=[("prompt_reward_days", f"{day}/v1", name, n) for name, n in counts.items()])
        store.commit([change], [], marks=[change], sent=[])
    store.close()
    status, report = await ask(http, "?from=2026-03-01&to=2026-03-01")
    assert (status, report["since"], report["until"], report["best"]) == (200, "2026-03-01", "2026-03-01", "v1")
    [one] = report["variants"]
    assert (one["version"], one["acceptance"], one["rewards"]) == ("v1", 1.0, 1)
    assert 0 < one["interval"]["low"] < one["interval"]["high"] == 1
    assert (await ask(http))[1]["variants"][0]["acceptance"] == 0.5


async def test_analytics_of_nothing_are_no_error(http: Client) -> None:
    """Before anything was counted there are no variants, and the days are open."""
    status, report = await ask(http)
    assert (status, report["variants"], report["since"], report["best"]) == (200, [], None, None)


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        pytest.param("?from=yesterday", "from: expected a day like 2026-03-01, got 'yesterday'", id="word"),
        pytest.param("?to=2026-02-30", "to: expected a day like 2026-03-01, got '2026-02-30'", id="no-such-day"),
        pytest.param("?to=2026-W09-1", "to: expected a day like 2026-03-01, got '2026-W09-1'", id="week"),
        pytest.param("?from=20260301", "from: expected a day like 2026-03-01, got '20260301'", id="no-hyphens"),
        pytest.param("?from=", "from: expected a day like 2026-03-01, got ''", id="empty"),
        pytest.param(
            "?from=2026-03-02&to=2026-03-01", "from: expected a day up to 2026-03-01, got 2026-03-02", id="reversed"
        ),
    ],
)
async def test_analytics_refuse_what_is_no_day(http: Client, query: str, detail: str) -> None:
    """The parameter is named with what would be accepted."""
    status, problem = await ask(http, query)
    assert (status, problem["detail"]) == (400, detail)


async def test_analytics_of_a_store_that_can_not_be_read_are_503(http: Client, tmp_path: Path) -> None:
    """A damaged store is said, without its path."""
    (tmp_path / "state.db").write_bytes(b"no database" * 100)
    status, problem = await ask(http)
    assert status == 503 and str(tmp_path) not in problem["detail"]
