"""The watchdog of the event loop: what counts as a standstill, what it names, and what it shows afterwards."""

import asyncio
import re
import time

import pytest
from harness import wait_until
from streams_kit import Anything, make_handler

from streams.context import Context
from streams.watchdog import SHOWN_S, TICK_S, PatientClock, Watchdog, where_of


async def handle(event: Anything, ctx: Context) -> None:
    """A handler of this file."""


HANDLER = make_handler("signals.slow", function=handle)


@pytest.mark.parametrize(
    ("elapsed_s", "busy_s", "expected_s"),
    [(TICK_S, 0.0, TICK_S), (30.0, 0.1, TICK_S), (30.0, 29.0, 30.0)],
    ids=["asleep in a call", "stopped or suspended", "busy in C code"],
)
def test_clock_counts_the_time_in_which_the_process_ran(elapsed_s: float, busy_s: float, expected_s: float) -> None:
    """A tick that comes late is no standstill, unless the processor worked for this process meanwhile."""
    clock = PatientClock()
    clock.tick(elapsed_s, busy_s)
    assert clock.blocked_s == expected_s


def stand_still(caplog: pytest.LogCaptureFixture) -> None:
    """Keeps the loop from turning until the watchdog has said so, however seldom its thread gets a processor."""
    records = caplog.records
    while not records:
        time.sleep(0.05)


def test_where_is_the_innermost_line_of_the_handlers_file() -> None:
    """What the handler calls is less telling than the line that called it; without a handler, the last line is."""
    frames = [("/a/run.py", 1, "run"), (__file__, 7, "handle"), ("/lib/socket.py", 9, "recv")]
    assert where_of(frames, HANDLER) == "test_watchdog.py:7 in handle"
    assert where_of(frames, None) == "socket.py:9 in recv"
    assert where_of([], HANDLER) == "its line is not known"


async def test_watchdog_names_the_handler_while_the_loop_stands(caplog: pytest.LogCaptureFixture) -> None:
    """It says so once while the standstill lasts, and that the loop turns again, and shows it for a minute."""
    watchdog = Watchdog(lambda task: HANDLER)
    with watchdog.watching():
        stand_still(caplog)
        during = [record.getMessage() for record in caplog.records]
        await wait_until(lambda: watchdog.trouble(time.monotonic()), what="the standstill is shown")
    assert during == ["the event loop stands still"]
    shown = watchdog.trouble(time.monotonic()) or ""
    assert re.fullmatch(
        r"the event loop stood still for \d+\.\d s in signals\.slow \(test_watchdog\.py:\d+ in stand_still\)", shown
    )
    assert watchdog.trouble(time.monotonic() + SHOWN_S + 1) is None
    assert [record.getMessage() for record in caplog.records] == [*during, "the event loop turns again"]


async def test_watchdog_says_when_no_handler_is_to_blame(caplog: pytest.LogCaptureFixture) -> None:
    """A standstill outside of handlers has a line and a stack too, without any value."""
    watchdog = Watchdog(lambda task: None)
    with watchdog.watching():
        stand_still(caplog)
        await wait_until(lambda: watchdog.trouble(time.monotonic()), what="the standstill is shown")
    assert "outside of handlers (test_watchdog.py:" in (watchdog.trouble(time.monotonic()) or "")
    fields = caplog.records[0].__dict__["fields"]
    assert fields["handler"] is None and fields["frames"][-1] == fields["where"]


async def test_watchdog_ends_in_the_middle_of_a_standstill(caplog: pytest.LogCaptureFixture) -> None:
    """A stop does not wait for the loop to answer, which it can't do before the stop is over."""
    watchdog = Watchdog(lambda task: HANDLER)
    with watchdog.watching():
        stand_still(caplog)
    assert "signals.slow" in (watchdog.trouble(time.monotonic()) or "")
    await asyncio.sleep(0)
