"""Every ending of a handler becomes a verdict; only the worker's own stop passes through."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import attrs
import isolated_handlers
import pytest
from consume_kit import NOTES, Note, Step, ended, item_of, runner_of, steps
from harness import wait_until
from streams_kit import make_message, make_scope

from models.errors import DeclarationError, Reject, Retry
from streams.context import Context
from streams.policy import Policy
from streams.runner import Item, Runner, Slot
from streams.subjects import SubjectTable
from streams.verdict import History, Verdict

Function = Callable[[Step, Context], Awaitable[None]]
QUARTER = Policy(backoff_s=(10,), max_deliver=2)


def raising(error: BaseException) -> Function:
    """A handler that raises."""

    async def function(event: Step, ctx: Context) -> None:
        raise error

    return function


async def run(function: Function, policy: Policy = QUARTER, **fields: object) -> tuple[Verdict, Context]:
    """Runs one attempt in the test's task."""
    runner = runner_of(steps(function, policy))
    item = item_of(runner)
    for name, value in fields.items():
        setattr(item, name, value)
    slot = Slot()
    slot.task = asyncio.current_task()
    return await runner.run(item, slot)


async def test_return_is_applied_with_its_effects() -> None:
    """A handler that returns is applied, and its context has what it asked for."""

    async def write(event: Step, ctx: Context) -> None:
        ctx.put(NOTES, event.user_id, Note(text="seen"))

    verdict, ctx = await run(write)
    assert verdict == Verdict(kind="applied")
    assert ctx.effects is not None
    assert ctx.effects.puts == {("notes", "u"): b'{"text":"seen"}'}


async def test_error_is_a_failure_that_waits_for_its_backoff() -> None:
    """Any error is a failure: parked for the backoff, give or take a quarter."""
    verdict, _ = await run(raising(ValueError("broken")))
    assert (verdict.kind, verdict.is_failure, verdict.error) == ("parked", True, "ValueError: broken")
    assert 7.5 <= verdict.delay_s <= 12.5


async def test_last_failure_is_dead() -> None:
    """The failure that reaches max_deliver gives the message up; the earlier ones come from its history."""
    verdict, _ = await run(raising(ValueError("broken")), history=History(failures=1, attempts=1))
    expected = Verdict(kind="dead", is_failure=True, error="ValueError: broken")
    assert attrs.evolve(verdict, where=None, trace=None) == expected
    assert verdict.trace and verdict.trace.endswith("raise error\nValueError: broken\n")


async def test_retry_waits_as_long_as_it_asks_and_is_no_failure() -> None:
    """Retry parks for its own delay and does not count."""
    verdict, _ = await run(raising(Retry("down", delay_s=3)), history=History(failures=1, attempts=9, age_s=5))
    expected = Verdict(kind="parked", delay_s=3, is_failure=False, error="Retry: down")
    assert attrs.evolve(verdict, where=None) == expected


async def test_reject_is_dead_at_once() -> None:
    """Reject gives the message up at its first attempt."""
    verdict, _ = await run(raising(Reject("never")))
    expected = Verdict(kind="dead", is_failure=True, error="Reject: never")
    assert attrs.evolve(verdict, where=None, trace=None) == expected


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_error_that_has_no_text_is_a_failure_like_any_other() -> None:
    """An error whose text can't be made does not end the worker; its class is named."""
    verdict, _ = await run(raising(Wordless()))
    assert (verdict.kind, verdict.error) == ("parked", "RuntimeError: a Wordless whose text can't be read")


async def test_cancellation_by_somebody_else_is_a_failure() -> None:
    """A handler that awaits something cancelled fails; its slot lives on."""

    async def wait_for_cancelled(event: Step, ctx: Context) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    verdict, _ = await run(wait_for_cancelled)
    assert (verdict.kind, verdict.error) == (
        "parked",
        "RuntimeError: the handler, or what it waited for, was cancelled",
    )


async def test_failure_names_the_handlers_own_line() -> None:
    """Of the lines an error came through, the handler's own one is named, not that of a library."""
    verdict, _ = await run(raising(ValueError("broken")))
    assert (verdict.where or "").startswith("consume_kit.py:")
    assert (verdict.where or "").endswith(" in step")


async def test_handler_that_exits_fails_and_the_worker_goes_on() -> None:
    """sys.exit() in a handler is a failure like any other."""
    verdict, _ = await run(raising(SystemExit(3)))
    assert (verdict.kind, verdict.error) == ("parked", "RuntimeError: the handler raised SystemExit(3)")


async def test_ctrl_c_in_a_handler_passes() -> None:
    """An interrupt of the process is no verdict."""
    with pytest.raises(KeyboardInterrupt):
        await run(raising(KeyboardInterrupt()))


async def wait_for_ever(event: Step, ctx: Context) -> None:
    """Never ends by itself."""
    await asyncio.Event().wait()


async def swallow_and_return(event: Step, ctx: Context) -> None:
    """Takes a cancellation for an order to return."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        ctx.put(NOTES, event.user_id, Note(text="half"))


async def swallow_and_raise(event: Step, ctx: Context) -> None:
    """Answers a cancellation with an error of its own."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ValueError("interrupted") from None


async def swallow_and_go_on(event: Step, ctx: Context) -> None:
    """Ignores the first cancellation."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


ENDINGS = pytest.mark.parametrize("function", [wait_for_ever, swallow_and_return, swallow_and_raise])
LATE = time.monotonic() + 1e6


class Attempt:
    """One attempt in a task of its own, as in a slot; its deadline has passed when ``timeout_s`` is nearly nothing."""

    def __init__(self, function: Function, timeout_s: float = 5) -> None:
        self.slot = Slot()
        self.runner = runner_of(steps(function, Policy(timeout_s=timeout_s)))
        self.task = self.slot.task = asyncio.create_task(self._run())
        self.cancelling = -1

    async def _run(self) -> Verdict:
        verdict, _ = await self.runner.run(item_of(self.runner), self.slot)
        self.cancelling = self.task.cancelling()
        return verdict

    async def is_running(self) -> None:
        await wait_until(lambda: self.slot.deadline is not None)
        await asyncio.sleep(0)

    async def is_late(self) -> None:
        await self.is_running()
        await wait_until(lambda: time.monotonic() > (self.slot.deadline or LATE))


async def test_attempt_within_its_time_is_left_alone() -> None:
    """Before the deadline, which is the policy's time after the start, nothing is cancelled."""
    before = time.monotonic()
    attempt = Attempt(wait_for_ever, timeout_s=5)
    await attempt.is_running()
    deadline = attempt.slot.deadline or 0.0
    assert before + 5 <= deadline <= time.monotonic() + 5
    attempt.slot.cancel_if_overdue(deadline - 0.001)
    assert attempt.task.cancelling() == 0
    attempt.slot.is_stopping = True
    await ended([attempt.task])


@ENDINGS
async def test_attempt_past_its_deadline_is_timed_out_whatever_it_does(function: Function) -> None:
    """The attempt is cancelled, counts as timed out even if it swallows that, and leaves its task uncancelled."""
    attempt = Attempt(function, timeout_s=0.01)
    await attempt.is_late()
    now = time.monotonic()
    attempt.slot.cancel_if_overdue(now)
    attempt.slot.cancel_if_overdue(now + 0.5)
    assert attempt.task.cancelling() == 1
    verdict = await attempt.task
    assert (verdict.kind, verdict.is_failure) == ("parked", True)
    assert verdict.error == "TimeoutError: ran longer than 0.01 s"
    assert attempt.cancelling == 0
    assert attempt.slot.deadline is None


async def test_attempt_that_ignores_its_cancellation_is_cancelled_again() -> None:
    """A second later the next cancellation comes, and ends what has ignored the first one."""
    attempt = Attempt(swallow_and_go_on, timeout_s=0.01)
    await attempt.is_late()
    now = time.monotonic()
    attempt.slot.cancel_if_overdue(now)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    attempt.slot.cancel_if_overdue(now + 1)
    verdict = await attempt.task
    assert verdict.error == "TimeoutError: ran longer than 0.01 s"
    assert attempt.cancelling == 0


async def test_attempt_that_cancels_its_own_task_fails_alone() -> None:
    """A handler that cancels the task it runs in, and returns, leaves a slot that works on."""

    async def cancel_itself(event: Step, ctx: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    attempt = Attempt(cancel_itself)
    assert (await attempt.task).kind == "applied"
    assert attempt.cancelling == 0


@ENDINGS
@pytest.mark.parametrize("timeout_s", [5, 0.01], ids=["in-time", "overdue"])
async def test_stop_passes_through_whatever_the_handler_does(function: Function, timeout_s: float) -> None:
    """The worker's stop decides nothing: it ends the slot's task, even swallowed, even past the deadline."""
    attempt = Attempt(function, timeout_s)
    await (attempt.is_running() if timeout_s > 1 else attempt.is_late())
    attempt.slot.cancel_if_overdue(time.monotonic())
    attempt.slot.is_stopping = True
    [result] = await ended([attempt.task])
    assert isinstance(result, asyncio.CancelledError)
    assert attempt.slot.deadline is None


async def test_stop_while_a_cancellation_is_taken_back_passes_through() -> None:
    """A stop that comes in the turn in which the deadline's cancellation is absorbed is not absorbed with it."""
    attempt = Attempt(swallow_and_return, timeout_s=0.01)
    await attempt.is_late()
    attempt.slot.cancel_if_overdue(time.monotonic())
    await asyncio.sleep(0)  # the handler has returned, its slot is taking the cancellation back
    attempt.slot.is_stopping = True
    [result] = await ended([attempt.task])
    assert isinstance(result, asyncio.CancelledError)


def test_slot_without_an_attempt_is_never_overdue() -> None:
    """Between attempts there is no deadline, and a slot that has no task cancels nothing."""
    slot = Slot()
    slot.cancel_if_overdue(LATE)
    slot.begin_attempt("steps.step", 5)
    slot.cancel_if_overdue(LATE)
    assert (slot.cancelled_at, slot.end_attempt(), slot.has_cancellation) == (None, False, False)


@attrs.frozen(kw_only=True)
class Odd:
    user_id: object


def odd_runner(key: Callable[[Odd], object]) -> Runner:
    """A runner whose key function gives anything."""
    table = SubjectTable("steps", key=key)  # type: ignore[arg-type]  # that is what is tested

    async def step(event: Odd, ctx: Context) -> None: ...

    table.on("signals.*")(step)
    return Runner(table, make_scope(), max_deliver=5, rng=random.Random(1))


def prepared(runner: Runner, payload: bytes) -> Item:
    """A message of that payload, decoded as the runner does."""
    handler = runner.handler_for("signals.step")
    assert handler is not None
    return runner.prepare(make_message(payload=payload), handler)


def test_prepare_finds_event_and_lane() -> None:
    """A payload that fits becomes an event in the lane of its key."""
    item = item_of(runner_of(steps(wait_for_ever)), seq=3, payload=b'{"user_id": "ana", "n": 7}')
    assert (item.event, item.key, item.error) == (Step(user_id="ana", n=7), "ana", None)
    assert (item.seq, item.ts) == (3, 3_000_000_000)


@pytest.mark.parametrize(
    ("key", "payload", "error"),
    [
        pytest.param(lambda event: "k", b"{", "PayloadError: payload: not valid JSON", id="no-json"),
        pytest.param(lambda event: event.user_id, b'{"user_id": 7}', "PayloadError: key: expected a str", id="no-str"),
        pytest.param(lambda event: "\ud800", b'{"user_id": 7}', "UnicodeEncodeError", id="surrogate"),
        pytest.param(lambda event: {}[event.user_id], b'{"user_id": 7}', "KeyError", id="key-function-fails"),
    ],
)
def test_message_without_event_or_lane_is_dead_at_once(
    key: Callable[[Odd], object], payload: bytes, error: str
) -> None:
    """What does not decode, or has no usable key, is given up without a run, with the reason."""
    runner = odd_runner(key)
    item = prepared(runner, payload)
    assert item.event is None
    assert item.error is not None
    verdict = runner.judge(item, item.error)
    assert (verdict.kind, verdict.is_failure) == ("dead", True)
    assert (verdict.error or "").startswith(error)


def test_handler_is_found_by_subject_and_by_pattern() -> None:
    """An exact subject and a pattern find their handler; a subject that nothing matches has none."""
    exact, pattern = runner_of(steps(wait_for_ever)), odd_runner(lambda event: "k")
    assert exact.handler_for("signals.step") is not None
    assert pattern.handler_for("signals.other") is not None
    assert exact.handler_for("signals.other") is None


def test_runner_without_isolation_refuses_an_isolated_handler() -> None:
    """It would run beside everything else, which is what its policy rules out."""
    with pytest.raises(DeclarationError, match=r"handler 'isolated\.obey': isolate: there are no processes"):
        runner_of(isolated_handlers.subjects)
