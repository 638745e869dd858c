"""``GET /prompts/analytics``: how the prompt variants do, from the counts of answers and rewards.

Nothing is counted here: streams/handlers/ does, app/analytics.py reads, models/rewards.py makes the report.
"""

import asyncio
import datetime as dt
from pathlib import Path

import attrs
import msgspec
from aiohttp import web

from app.analytics import read_report
from app.operations import Answer, Operation, Parameter
from models.errors import RequestError
from models.rewards import RewardReport

_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}


def prompts_routes(store: Path) -> web.RouteTableDef:
    """The route ``/prompts/analytics``."""
    routes = web.RouteTableDef()

    @routes.get("/prompts/analytics")
    async def show_analytics(request: web.Request) -> web.Response:
        since, until = (read_day(request.query.get(name), name) for name in ("from", "to"))
        if since and until and since > until:
            raise RequestError(400, f"from: expected a day up to {until.isoformat()}, got {since.isoformat()}")
        report = await asyncio.to_thread(read_report, store, since=since, until=until)
        return web.Response(body=msgspec.json.encode(attrs.asdict(report)), headers=_HEADERS)

    return routes


def read_day(text: str | None, name: str) -> dt.date | None:
    """Reads a day (UTC) of the query.

    Raises:
        RequestError: 400; it is none.
    """
    if text is None:
        return None
    try:
        day = dt.date.fromisoformat(text)
        if day.isoformat() != text:  # a week's day, or one without hyphens
            raise ValueError("another form")
        return day
    except ValueError as error:
        raise RequestError(400, f"{name}: expected a day like 2026-03-01, got {text[:40]!r}") from error


_DAY = "Days are those of UTC, both ends included."
OPERATIONS = (
    Operation(
        method="GET",
        path="/prompts/analytics",
        tag="tips",
        summary="Shows how the prompt variants do",
        description=(
            "Impressions, rewards and acceptance by variant, the best one first. The intervals hold all at once and at "
            "every look from the same first day, so a comparison may be watched daily and ended at any time. A reward "
            "counts on the day it occurred, not its tip's, and one still to come counts as none: let the days be many "
            f"more than a reward takes, and a new variant run as long. {_DAY}"
        ),
        parameters=tuple(
            Parameter(name=name, where="query", type=dt.date, description=text, example=day, is_required=False)
            for name, text, day in (("from", "The first day.", "2026-03-01"), ("to", "The last day.", "2026-03-07"))
        ),
        answers=(Answer(description="The report.", type=RewardReport, example=None),),
        errors={400: "A day can't be read, or the first one is after the last.", 503: "The store can't be read."},
    ),
)
