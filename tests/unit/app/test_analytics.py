"""The report as it is read from a store, over HTTP and on the command line."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from click.testing import CliRunner
from store_kit import commit
from streams_kit import make_change

from app.analytics import PAGE, read_report
from app.cli.group import CliEnv, cli
from app.middleware import answer_errors
from app.views.prompts import prompts_routes
from models.errors import ReportError
from state.sqlite import SqliteStore
from state.store import store_path


def fill(folder: Path) -> Path:
    """A store with two variants over three days, and more rows than a page has."""
    path = store_path(folder)
    store = SqliteStore(path)
    adds = []
    for day in ("2026-03-01", "2026-03-02", "2026-03-03"):
        for version, accepted in (("v1", 30), ("v2", 90)):
            key = f"{day}/{version}"
            adds += [("prompt_days", key, "impressions", 200), ("prompt_days", key, "impression_thousandths", 200_000)]
            adds += [("prompt_reward_days", key, "count", 100), ("prompt_reward_days", key, "accepted", accepted)]
        adds.append(("reward_days", day, "count", 201))
    adds += [("prompt_days", f"2026-02-01/x{number}", "cached", 1) for number in range(PAGE + 5)]
    commit(store, make_change(1, adds=adds))
    store.close()
    return path


def test_report_is_of_the_days_asked_for(tmp_path: Path) -> None:
    """Both ends are included; rewards that name no variant are those of the same days."""
    report = read_report(fill(tmp_path), since=dt.date(2026, 3, 2), until=dt.date(2026, 3, 3))
    assert [(one.version, one.impressions, one.accepted) for one in report.variants] == [
        ("v2", 400, 180),
        ("v1", 400, 60),
    ]
    assert (report.best, report.is_apart, report.unattributed) == ("v2", True, 2)


def test_report_without_an_end_has_every_day(tmp_path: Path) -> None:
    """More rows than one page has are all read."""
    report = read_report(fill(tmp_path))
    assert len(report.variants) == 2 + PAGE + 5
    assert report.variants[0].impressions == 600


def test_report_before_there_is_a_store_is_empty(tmp_path: Path) -> None:
    """Nothing was counted, and no store is made."""
    assert read_report(store_path(tmp_path)).variants == ()
    assert list(tmp_path.iterdir()) == []


async def get(folder: Path, query: str) -> tuple[int, Any]:
    """The route's answer."""
    app = web.Application(middlewares=[answer_errors])
    app.add_routes(prompts_routes(store_path(folder)))
    async with TestClient(TestServer(app)) as client, client.get(f"/prompts/analytics{query}") as response:
        return response.status, await response.json(content_type=None)


async def test_route_shows_the_report(tmp_path: Path) -> None:
    """As JSON, with days of the query."""
    fill(tmp_path)
    status, found = await get(tmp_path, "?from=2026-03-01&to=2026-03-01")
    assert (status, found["best"], found["since"], len(found["variants"])) == (200, "v2", "2026-03-01", 2)
    assert found["variants"][0]["interval"]["low"] < 0.45 < found["variants"][0]["interval"]["high"]  # 90 of 200


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("?from=yesterday", "from: expected a day like 2026-03-01, got 'yesterday'"),
        ("?to=20260301", "to: expected a day like 2026-03-01, got '20260301'"),
        ("?from=2026-03-02&to=2026-03-01", "from: expected a day up to 2026-03-01, got 2026-03-02"),
    ],
    ids=["no-day", "other-form", "upside-down"],
)
async def test_route_refuses_days_that_are_none(tmp_path: Path, query: str, detail: str) -> None:
    """400 names the parameter."""
    status, problem = await get(tmp_path, query)
    assert (status, problem["detail"]) == (400, detail)


def report(folder: Path, *arguments: str) -> Any:
    """Runs the command."""
    env = CliEnv({"STATE_DIR": str(folder)})
    return CliRunner().invoke(cli, ["prompts", "report", *arguments], obj=env)


def test_command_prints_a_line_a_variant_and_a_sentence(tmp_path: Path) -> None:
    """The best one stands first, and in words."""
    fill(tmp_path)
    lines = report(tmp_path, "--from", "2026-03-01").output.splitlines()
    assert lines[0].startswith("v2\t45.0%\t")
    assert lines[1].startswith("v1\t15.0%\t")
    assert lines[2].startswith("v2 is best: 45.0% of 600 impressions accepted")
    assert lines[3] == "3 rewards name no variant."


def test_command_prints_json(tmp_path: Path) -> None:
    """For other programs."""
    fill(tmp_path)
    found = json.loads(report(tmp_path, "--from", "2026-03-01", "--to", "2026-03-03", "--json").output)
    assert (found["best"], found["denominator"]) == ("v2", "impressions")


def test_command_draws_the_report(tmp_path: Path) -> None:
    """A PNG, also of nothing at all."""
    fill(tmp_path)
    for name, since in (("some", "2026-03-01"), ("none", "2027-01-01")):
        result = report(tmp_path, "--from", since, "--png", str(tmp_path / f"{name}.png"))
        assert result.exit_code == 0, result.output
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_command_says_when_a_drawing_can_not_be_written(tmp_path: Path) -> None:
    """One error that names the file."""
    result = report(tmp_path, "--png", str(tmp_path / "no" / "such.png"))
    assert isinstance(result.exception, ReportError)
    assert "such.png can't be written (No such file or directory)" in str(result.exception)


def test_command_refuses_days_upside_down(tmp_path: Path) -> None:
    """Exit code 2, as for any bad option."""
    result = report(tmp_path, "--from", "2026-03-02", "--to", "2026-03-01")
    assert (result.exit_code, "expected a day up to 2026-03-01" in result.output) == (2, True)
