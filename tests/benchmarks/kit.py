"""Measures the test kit: whole tests on the real server, and ``run_handler`` beside a bare call of the handler.

Usage: python tests/benchmarks/kit.py [COUNT]
"""

import asyncio
import sys
import time

import attrs

from models.codec import encode_json
from state.tables import Table
from streams.context import Context, Scope
from streams.message import Message
from streams.subjects import SubjectTable
from streams.testing import live_app, run_handler

TEST_COUNT = 500
CALL_COUNT = 20_000
SUBJECT = "signals.streak.broken"


@attrs.frozen(kw_only=True)
class StreakBroken:
    user_id: str
    days: int


@attrs.frozen(kw_only=True)
class Streak:
    broken_count: int = 0


STREAKS = Table("streaks", Streak)
subjects = SubjectTable("streaks", tables=[STREAKS])


@subjects.on(SUBJECT)
async def streak_broken(event: StreakBroken, ctx: Context) -> None:
    """Reads a row, writes a row and publishes an event."""
    row = ctx.get(STREAKS, event.user_id) or Streak()
    ctx.put(STREAKS, event.user_id, attrs.evolve(row, broken_count=row.broken_count + 1))
    ctx.publish("signals.nudge.due", {"user_id": event.user_id})


async def one_test() -> None:
    """What a test does: start, publish, quiet, look, stop."""
    async with live_app(subjects) as app:
        await app.publish(SUBJECT, {"user_id": "ada", "days": 3})
        await app.quiet()
        assert app.row(STREAKS, "ada") == Streak(broken_count=1)


def measure_tests(count: int) -> float:
    """Seconds that so many tests take one after the other, each in an event loop of its own."""
    started = time.perf_counter()
    for _ in range(count):
        asyncio.run(one_test())
    return time.perf_counter() - started


async def bare_call_s(count: int) -> float:
    """Seconds that one call of the handler takes with a context that is made for it, and nothing else."""
    stored = encode_json(Streak(broken_count=2))
    scope = Scope(
        name="streaks",
        tables={"streaks": STREAKS},
        fetch=lambda table, key: stored,
        waiting={},
        publishable=lambda subject: True,
        max_payload_bytes=lambda: 1_000_000,
    )
    event, message = StreakBroken(user_id="ada", days=3), Message("SIGNALS", SUBJECT, b"", None, 1, 1, 1)
    started = time.perf_counter()
    for _ in range(count):
        await streak_broken(event, Context(message, "ada", scope))
    return (time.perf_counter() - started) / count


async def run_handler_s(count: int) -> float:
    """Seconds that one ``run_handler`` takes."""
    event, state = {"user_id": "ada", "days": 3}, {STREAKS: {"ada": Streak(broken_count=2)}}
    started = time.perf_counter()
    for _ in range(count):
        await run_handler(streak_broken, event, state=state)
    return (time.perf_counter() - started) / count


def main(count: int) -> None:
    """Prints both."""
    bare_s, ours_s = asyncio.run(bare_call_s(CALL_COUNT)), asyncio.run(run_handler_s(CALL_COUNT))
    took_s = measure_tests(count)
    print("\ntest kit")
    print(f"{f'{count} tests on a real nats-server':44}{took_s:>8.1f} s{took_s / count * 1000:>8.0f} ms each")
    print(f"{'run_handler':44}{ours_s * 1e6:>8.1f} us{ours_s / bare_s:>7.1f}x the bare call of the handler")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else TEST_COUNT)
