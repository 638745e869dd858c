"""``run_handler`` judges as the worker does, and says clearly when it is asked for something that does not fit."""

import asyncio
import datetime as dt
import os
from typing import Any

import attrs
import pytest

from models.errors import DeclarationError, Reject, Retry
from state.tables import Table
from streams.context import Context
from streams.policy import Policy
from streams.subjects import SubjectTable
from streams.testing import run_handler
from streams.ticks import Tick
from streams.verdict import History


@attrs.frozen(kw_only=True)
class Step:
    user_id: str
    n: int = 0


@attrs.frozen(kw_only=True)
class Walk:
    steps: int = 0


@attrs.frozen(kw_only=True)
class Day:
    count: int = 0


WALKS = Table("walks", Walk)
DAYS = Table("days", Day, kind="counters")
subjects = SubjectTable("steps", tables=[WALKS, DAYS])
alarms = SubjectTable("alarms", order="none", tables=[Table("alarm_days", Day, kind="counters")])
ADA = {"user_id": "ada", "n": 2}


@subjects.on("signals.step.made", policy=Policy(max_deliver=3, backoff_s=(1, 5), retry_for_s=60))
async def step_made(event: Step, ctx: Context) -> None:
    """Adds up; a negative number is refused, zero needs somebody who is away, a hundred fails."""
    if event.n < 0:
        raise Reject("backwards")
    if event.n == 0:
        raise Retry("the scale is away")
    if event.n == 1:
        raise Retry("not yet", delay_s=7)
    if event.n == 100:
        raise RuntimeError("too far")
    row = ctx.get(WALKS, event.user_id) or Walk()
    ctx.put(WALKS, event.user_id, Walk(steps=row.steps + event.n))
    ctx.add(DAYS, ctx.now.date().isoformat(), "count", 1)
    ctx.publish("signals.step.counted", Step(user_id=ctx.new_id(), n=row.steps))


@subjects.on("signals.forget.*")
async def forgotten(event: Step, ctx: Context) -> None:
    """Deletes the row, after a look at another one."""
    ctx.peek(DAYS, ctx.message.subject)
    ctx.delete(WALKS, event.user_id)


@subjects.on("signals.slow", policy=Policy(timeout_s=0.02))
async def slow(event: Step, ctx: Context) -> None:
    """Never ends by itself."""
    await asyncio.Event().wait()


@alarms.timer(every_s=60)
async def rung(event: Tick, ctx: Context) -> None:
    """Publishes bytes that are no JSON."""
    ctx.publish("signals.rung", b"\xff")


@subjects.on("signals.isolated", policy=Policy(isolate="process", backoff_s=(9,)))
async def isolated(event: Step, ctx: Context) -> None:
    """Fails, and says where."""
    raise RuntimeError(f"in {os.getpid()}")


async def never_declared(event: Step, ctx: Context) -> None:
    """Belongs to no table."""


async def test_run_handler_shows_what_a_handler_asks_for() -> None:
    """Rows, increments and events are there; the row was read from the state, whose next version is given too."""
    before = {WALKS: {"ada": Walk(steps=3)}}
    outcome = await run_handler(step_made, Step(user_id="ada", n=2), state=before)
    assert (outcome.verdict, outcome.key, outcome.error) == ("applied", "ada", None)
    assert outcome.writes == {(WALKS, "ada"): Walk(steps=5)}  # 3 + 2
    assert outcome.adds == [(DAYS, "2026-01-01", "count", 1)]
    assert [(subject, event["n"]) for subject, event in outcome.publishes] == [("signals.step.counted", 3)]
    assert outcome.state == {WALKS: {"ada": Walk(steps=5)}, DAYS: {"2026-01-01": Day(count=1)}}
    assert before == {WALKS: {"ada": Walk(steps=3)}}


async def test_run_handler_state_goes_on_to_the_next_event() -> None:
    """Sums in rows and in counters grow over a sequence of events."""
    first = await run_handler(step_made, ADA)
    second = await run_handler(step_made, ADA, state=first.state, seq=2)
    assert second.state == {WALKS: {"ada": Walk(steps=4)}, DAYS: {"2026-01-01": Day(count=2)}}
    assert first.publishes != second.publishes  # ids come from the sequence


async def test_run_handler_deletes_and_peeks() -> None:
    """A deleted row is None among the writes and gone from the state; a look at another table is listed."""
    outcome = await run_handler(forgotten, ADA, state={WALKS: {"ada": Walk()}}, subject="signals.forget.all")
    assert outcome.writes == {(WALKS, "ada"): None}
    assert outcome.state == {WALKS: {}}
    assert outcome.peeks == [("days", "signals.forget.all")]


@pytest.mark.parametrize(
    ("n", "failures", "expected"),
    [
        (-1, 0, ("dead", 0, True, "Reject: backwards")),
        (0, 9, ("parked", 5, False, "Retry: the scale is away")),
        (0, History(age_s=61), ("parked", 1, True, "Retry: the scale is away")),
        (1, 0, ("parked", 7, False, "Retry: not yet")),
        (100, 0, ("parked", 1, True, "RuntimeError: too far")),
        (100, 1, ("parked", 5, True, "RuntimeError: too far")),
        (100, 2, ("dead", 0, True, "RuntimeError: too far")),
    ],
    ids=["reject", "retry", "retry-too-long", "retry-delay", "first-failure", "second-failure", "last-failure"],
)
async def test_run_handler_judges_by_the_policy(n: int, failures: Any, expected: tuple[Any, ...]) -> None:
    """Verdict, delay without jitter and failure follow from the error and from earlier failures; nothing is written."""
    outcome = await run_handler(step_made, {"user_id": "ada", "n": n}, failures=failures)
    assert (outcome.verdict, outcome.delay_s, outcome.is_failure, outcome.error) == expected
    assert (outcome.writes, outcome.state) == ({}, {})
    assert outcome.where is not None and outcome.where.endswith("in step_made")


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({}, "PayloadError: user_id: missing"),
        (b'{"user_id": 1}', "PayloadError: user_id: expected str, got int"),
        (b"{", "PayloadError: payload: not valid JSON (Input data was truncated)"),
    ],
    ids=["missing", "mistyped", "no-json"],
)
async def test_run_handler_decodes_what_is_no_record(event: object, error: str) -> None:
    """A dict or bytes that do not fit the event type are a dead letter that names the field."""
    outcome = await run_handler(step_made, event)
    assert (outcome.verdict, outcome.error, outcome.key) == ("dead", error, "")


async def test_run_handler_ends_an_attempt_past_its_time() -> None:
    """A handler that runs longer than timeout_s is cancelled, which is a failure."""
    outcome = await run_handler(slow, ADA)
    assert (outcome.verdict, outcome.error) == ("parked", "TimeoutError: ran longer than 0.02 s")


async def test_run_handler_passes_a_cancellation_of_the_test_on() -> None:
    """Who cancels the test ends it; that is no verdict."""
    running = asyncio.create_task(run_handler(rung_never, ADA))
    await asyncio.sleep(0)
    running.cancel()
    assert isinstance((await asyncio.gather(running, return_exceptions=True))[0], asyncio.CancelledError)


@subjects.on("signals.never")
async def rung_never(event: Step, ctx: Context) -> None:
    """Waits for ever."""
    await asyncio.Event().wait()


async def test_run_handler_runs_an_isolated_handler_here() -> None:
    """A handler that wants a process of its own is judged the same, in the test's process."""
    outcome = await run_handler(isolated, ADA)
    assert (outcome.verdict, outcome.delay_s, outcome.error) == ("parked", 9, f"RuntimeError: in {os.getpid()}")


async def test_run_handler_takes_a_table_and_a_subject() -> None:
    """A table finds its handler by the subject; ``now`` and a timer's Tick are as a worker gives them."""
    at = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    outcome = await run_handler(alarms, Tick(name="alarms.rung", at=at), subject="timers.alarms.rung", now=at)
    assert outcome.publishes == [("signals.rung", b"\xff")]
    assert outcome.key == "1"  # without order each message has a lane of its own


@pytest.mark.parametrize(
    ("handler", "options", "problem"),
    [
        (never_declared, {}, "handler: expected a function that one table declares"),
        (subjects, {}, "subject: expected one that table 'steps' handles, got none"),
        (subjects, {"subject": "signals.other"}, "subject: table 'steps' has no handler for 'signals.other'"),
        (forgotten, {}, "subject: expected one that 'signals.forget.*' matches"),
        (step_made, {"subject": "signals.x"}, "subject: steps.step_made handles 'signals.step.made', got 'signals.x'"),
        (step_made, {"event": Walk()}, "event: expected a Step, a dict or bytes, got a Walk"),
        (step_made, {"event": {"n": object()}}, "event: expected a record, a dict or bytes"),
        (step_made, {"now": dt.datetime(2026, 1, 1)}, "now: expected an instant with a zone, got 2026-01-01"),
        (step_made, {"state": {"walks": {}}}, "state: expected the Table objects of the handlers, got 'walks'"),
        (step_made, {"state": {Table("walks", Walk): {}}}, "state: expected the Table objects of the handlers"),
        (step_made, {"state": {WALKS: {"ada": Day()}}}, "state: table 'walks', key 'ada': expected Walk records"),
    ],
    ids=["no-table", "no-subject", "foreign", "pattern", "other", "event", "json", "now", "name", "twin", "row"],
)
async def test_run_handler_names_what_does_not_fit(handler: Any, options: dict[str, Any], problem: str) -> None:
    """A wrong argument is one error that names it."""
    with pytest.raises(DeclarationError) as caught:
        await run_handler(handler, options.pop("event", ADA), **options)
    assert str(caught.value).startswith(f"run_handler: {problem}")


async def test_run_handler_asks_which_table_is_meant() -> None:
    """A function that two tables declare needs the table."""
    other = SubjectTable("others", tables=[Table("others", Walk)])
    third = SubjectTable("thirds", tables=[Table("thirds", Walk)])

    async def shared(event: Step, ctx: Context) -> None:
        ctx.put(other.tables[0], "ada", Walk())

    other.on("signals.shared")(shared)
    third.on("signals.shared")(shared)
    with pytest.raises(DeclarationError, match="the tables others, thirds have"):
        await run_handler(shared, ADA)
    assert (await run_handler(other, ADA, subject="signals.shared")).verdict == "applied"
    assert "'others' is not one of its tables" in str((await run_handler(third, ADA, subject="signals.shared")).error)


async def test_run_handler_refuses_a_subject_outside_every_stream() -> None:
    """A handler on a subject that no stream has would never run."""
    lost = SubjectTable("lost")

    async def handle(event: Step, ctx: Context) -> None:
        """Does nothing."""

    lost.on("elsewhere.step")(handle)
    with pytest.raises(DeclarationError, match=r"lost.handle: subject 'elsewhere.step': no stream has it"):
        await run_handler(handle, ADA)
