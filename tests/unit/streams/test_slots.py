"""Handlers run in a bounded number of slots, side by side, each with its deadline."""

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from consume_kit import Step, ended, item_of, runner_of, steps
from harness import wait_until

from streams.context import Context
from streams.runner import Item, Slot
from streams.slots import YIELD_EVERY, Running, Slots
from streams.verdict import Verdict

Function = Callable[[Step, Context], Awaitable[None]]


async def nothing(event: object, ctx: Context) -> None:
    """A handler that does nothing; the tests run their own function instead."""


class Bench:
    """Slots over a queue, and what they run."""

    def __init__(self, count: int) -> None:
        self.queue: collections.deque[Item] = collections.deque()
        self.running: list[Item] = []
        self.most = 0
        self.done: list[int] = []
        self.cancelled: list[int] = []
        self.task: asyncio.Task[None] | None = None
        self.gates: dict[int, asyncio.Event] = {}
        self.slots = Slots(count, lambda: self.queue.popleft() if self.queue else None, self._run)

    async def _run(self, item: Item, slot: Slot) -> None:
        self.running.append(item)
        self.most = max(self.most, len(self.running))
        if item.seq in self.gates:
            slot.begin_attempt(f"h{item.seq}", 5 * item.seq)
            try:
                await self.gates[item.seq].wait()
            except asyncio.CancelledError:
                self.cancelled.append(item.seq)
                if self.task is None or self.task.cancelling():
                    raise
            finally:
                slot.end_attempt()
        self.running.remove(item)
        self.done.append(item.seq)

    def add(self, *seqs: int, gated: bool = False) -> None:
        runner = runner_of(steps(nothing))
        for seq in seqs:
            if gated:
                self.gates[seq] = asyncio.Event()
            self.queue.append(item_of(runner, seq))
            self.slots.notify()


@contextlib.asynccontextmanager
async def bench(count: int) -> AsyncIterator[Bench]:
    """Runs slots for the time of a test."""
    made = Bench(count)
    task = made.task = asyncio.create_task(made.slots.run("test"))
    for _ in range(3):
        await asyncio.sleep(0)  # until every slot waits
    try:
        yield made
    finally:
        await ended([task])


async def test_slots_run_no_more_than_their_number_at_once() -> None:
    """Of ten messages that wait for something, three slots run three; each that ends lets the next one run."""
    async with bench(3) as made:
        made.add(*range(10), gated=True)
        await wait_until(lambda: len(made.running) == 3)
        assert made.slots.running(0).count == 3
        for gate in made.gates.values():
            gate.set()
        await wait_until(lambda: len(made.done) == 10)
        assert (made.most, made.slots.running(0).count) == (3, 0)


async def test_waiting_handler_does_not_stop_others() -> None:
    """While one message waits for something, everything behind it runs in the other slot."""
    async with bench(2) as made:
        made.add(0, gated=True)
        made.add(*range(1, 50))
        await wait_until(lambda: len(made.done) == 49)
        assert [item.seq for item in made.running] == [0]


async def test_handlers_that_never_wait_let_others_have_the_loop() -> None:
    """A slot that is always busy gives way now and then: the loop turns while messages are still ready."""
    async with bench(1) as made:
        made.add(*range(4 * YIELD_EVERY))
        await wait_until(lambda: made.done, poll_s=0)
        assert YIELD_EVERY <= len(made.done) < 4 * YIELD_EVERY
        await wait_until(lambda: len(made.done) == 4 * YIELD_EVERY)


async def test_overdue_attempts_alone_are_cancelled() -> None:
    """Attempts before their deadline run on; those past it are named, and cancelled."""
    async with bench(2) as made:
        made.add(1, 1000, gated=True)  # 5 and 5,000 seconds
        await wait_until(lambda: len(made.running) == 2)
        now = time.monotonic()
        assert made.slots.running(now) == Running(count=2, overdue=())
        made.slots.end_overdue(now)
        assert made.slots.running(now + 60) == Running(count=1, overdue=("h1",))
        made.slots.end_overdue(now + 60)
        await wait_until(lambda: made.slots.running(now).count == 1)
        assert made.cancelled == [1]


async def wait_for_ever(event: object, ctx: Context) -> None:
    """Never ends by itself."""
    await asyncio.Event().wait()


async def ignore_everything(event: object, ctx: Context) -> None:
    """Never ends at all, for as long as the loop runs a few turns."""
    for _ in range(20):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


@pytest.mark.parametrize("function", [wait_for_ever, ignore_everything])
@pytest.mark.parametrize("count", [1, 3])
async def test_stop_decides_nothing_and_does_not_wait(function: Function, count: int) -> None:
    """However many slots are busy, the stop ends them without a verdict, and waits for no handler that ignores it."""
    runner = runner_of(steps(function))
    waiting = [item_of(runner, 1)]
    verdicts: list[Verdict] = []
    slots_used: list[Slot] = []

    async def run(item: Item, slot: Slot) -> None:
        slots_used.append(slot)
        verdicts.append((await runner.run(item, slot))[0])

    slots = Slots(count, lambda: waiting.pop() if waiting else None, run)
    task = asyncio.create_task(slots.run("test"))
    await wait_until(lambda: slots_used)
    await ended([task])
    assert task.cancelled()
    handler = slots_used[0].task
    assert handler is not None
    while not handler.done():
        handler.cancel()
        await asyncio.sleep(0)
    assert verdicts == []


async def test_slot_that_breaks_ends_them_all() -> None:
    """An error that the worker did not turn into a verdict is not lost in a slot: it ends the run."""
    waiting = [item_of(runner_of(steps(nothing)), 1)]

    async def run(item: Item, slot: Slot) -> None:
        raise KeyError("a mistake of ours")

    slots = Slots(2, lambda: waiting.pop() if waiting else None, run)
    with pytest.raises(KeyError, match="a mistake of ours"):
        await asyncio.wait_for(slots.run("test"), 3)


async def test_message_that_becomes_ready_during_the_stop_is_left_alone() -> None:
    """A slot that was cancelled while it was idle is not woken, and nothing breaks in the loop."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    made = Bench(2)
    task = asyncio.create_task(made.slots.run("test"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await ended([task])
    made.add(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (failures, made.done) == ([], [])


async def test_slots_know_which_handler_a_task_runs() -> None:
    """A task is known by its slot while an attempt runs in it; any other task runs no handler."""
    async with bench(2) as made:
        made.add(1, gated=True)
        await wait_until(lambda: made.running, what="the handler runs")
        found = {made.slots.handler_of(task) for task in asyncio.all_tasks()}
        assert found == {"h1", None} and made.slots.handler_of(None) is None
        made.gates[1].set()
        await wait_until(lambda: made.done, what="it has ended")
        assert {made.slots.handler_of(task) for task in asyncio.all_tasks()} == {None}
