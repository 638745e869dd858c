"""A plugin of another package: counts broken streaks, shows them, and beats once a second."""

import attrs
from aiohttp import web

from app import fetch_row
from streams import Context, Policy, SubjectTable, Table, Tick


@attrs.frozen(kw_only=True)
class StreakBroken:
    """A user has missed a day."""

    user_id: str
    days: int


@attrs.frozen(kw_only=True)
class Streak:
    """How often a user's streak was broken, and the longest one."""

    broken_count: int = 0
    longest_days: int = 0


@attrs.frozen(kw_only=True)
class Beat:
    """How often the timer has fired."""

    count: int = 0


STREAKS = Table("streaks", Streak)
BEATS = Table("streak_beats", Beat, kind="counters")
subjects = SubjectTable("streaks", tables=[STREAKS])
ticks = SubjectTable("streak_ticks", tables=[BEATS])
routes = web.RouteTableDef()


@subjects.on("signals.streak.broken", policy=Policy(max_deliver=3, backoff_s=(0.1,)))
async def streak_broken(event: StreakBroken, ctx: Context) -> None:
    """Keeps the user's longest streak, and asks for a nudge."""
    row = ctx.get(STREAKS, event.user_id) or Streak()
    longest = max(row.longest_days, event.days)
    ctx.put(STREAKS, event.user_id, Streak(broken_count=row.broken_count + 1, longest_days=longest))
    ctx.publish("signals.nudge.due", {"user_id": event.user_id})


@ticks.timer(every_s=1)
async def beat(tick: Tick, ctx: Context) -> None:
    """Counts the seconds in which some worker ran."""
    ctx.add(BEATS, "all", "count", 1)


@routes.get("/streaks/{user_id}")
async def show_streak(request: web.Request) -> web.Response:
    """The streak of a user; zeros for one who never broke any."""
    row = await fetch_row(request, STREAKS, request.match_info["user_id"])
    return web.json_response(attrs.asdict(row or Streak()))
