"""The events of the chaos test, and the subject tables that handle them.

Every event carries its place among its user's events, so a row shows whether anything was applied twice, out of order
or not at all. Each applied event publishes one event of its own, which is counted in the stream, outside the worker.
"""

import asyncio
import os
import random

import attrs

from state.tables import Table
from streams import Context, Policy, Retry, SubjectTable

SUBJECT = "signals.chaos"
SPREAD_SUBJECT = "signals.spread"
SPREAD_USER = "spread"
OUTPUT = "feedback.chaos"
FATAL = ("poison", "hang", "kill")
MAX_DELIVER = 3


@attrs.frozen(kw_only=True)
class Blow:
    """One event; ``kind`` says what its handler does before it succeeds, if it does."""

    user_id: str
    n: int
    kind: str = "ok"


@attrs.frozen(kw_only=True)
class Trace:
    """What was applied for a user: how many, the highest place, and how often a lower one came after a higher one."""

    count: int = 0
    last: int = 0
    inversions: int = 0


@attrs.frozen(kw_only=True)
class Total:
    """What was applied in all, summed by increments from every lane."""

    count: int = 0


TRACES = Table("traces", Trace)
TOTALS = Table("totals", Total, kind="counters")
SPREAD_TOTALS = Table("spread_totals", Total, kind="counters")
POLICY = Policy(max_deliver=MAX_DELIVER, backoff_s=(0.1,), timeout_s=0.5)


async def strike(event: Blow) -> None:
    """Does what the event's kind says."""
    if event.kind == "kill":
        await asyncio.sleep(0.002)
        os._exit(9)
    if event.kind == "poison":
        raise ValueError("poison")
    if event.kind == "hang":
        await asyncio.sleep(3600)
    if event.kind == "flaky" and random.random() < 0.5:
        raise Retry(delay_s=0.1)
    if event.kind == "slow":
        await asyncio.sleep(0.02)


def chaos_tables() -> list[SubjectTable]:
    """The subject tables ``chaos``, in order per user, and ``spread``, without order and served by both workers."""
    table = SubjectTable("chaos", tables=[TRACES, TOTALS], ack_wait_s=3)
    spread = SubjectTable("spread", tables=[SPREAD_TOTALS], order="none", ack_wait_s=3)

    @table.on(SUBJECT, policy=POLICY)
    async def blow(event: Blow, ctx: Context) -> None:
        await strike(event)
        row = ctx.get(TRACES, event.user_id) or Trace()
        inversions = row.inversions + (event.n <= row.last)
        ctx.put(TRACES, event.user_id, Trace(count=row.count + 1, last=max(row.last, event.n), inversions=inversions))
        ctx.add(TOTALS, "all", "count", 1)
        ctx.publish(OUTPUT, {"user_id": event.user_id, "n": event.n})

    @spread.on(SPREAD_SUBJECT, policy=POLICY)
    async def gust(event: Blow, ctx: Context) -> None:
        await strike(event)
        ctx.add(SPREAD_TOTALS, "all", "count", 1)
        ctx.publish(OUTPUT, {"user_id": event.user_id, "n": event.n})

    return [table, spread]
