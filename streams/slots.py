"""A bounded number of places in which handlers run, with a deadline for each attempt.

A handler runs in its slot's own task, so no task is made for a message. A handler that never waits is served by one
slot; one more slot is woken in every turn of the event loop in which messages are still ready.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from streams.runner import Item, Slot

YIELD_EVERY = 32


@attrs.frozen(kw_only=True)
class Running:
    """The attempts that run now: how many within their time, and the handlers of those past it."""

    count: int = 0
    overdue: tuple[str, ...] = ()


class Slots:
    """The slots of one subject table.

    Args:
        count: how many handlers may run at once.
        take: gives the next message that may run, or None.
        run: runs one message to its verdict; it must not raise.
    """

    def __init__(
        self, count: int, take: Callable[[], Item | None], run: Callable[[Item, Slot], Awaitable[None]]
    ) -> None:
        self._slots = [Slot() for _ in range(count)]
        self._take = take
        self._run = run
        self._idle: list[asyncio.Future[None]] = []
        self._is_pumping = False

    def running(self, now: float) -> Running:
        """The attempts that run at ``now`` (monotonic seconds)."""
        running = [slot for slot in self._slots if slot.deadline is not None]
        overdue = sorted({slot.handler for slot in running if slot.deadline is not None and slot.deadline < now})
        return Running(count=len(running) - sum(slot.handler in overdue for slot in running), overdue=tuple(overdue))

    def handler_of(self, task: "asyncio.Task[Any] | None") -> str | None:
        """The name of the handler that a task runs now, None if the task is none of these slots; for any thread."""
        return next((slot.handler for slot in self._slots if slot.task is task and slot.deadline is not None), None)

    async def run(self, name: str) -> None:
        """Runs handlers until cancelled; an attempt that ignores its cancellation is not waited for."""
        tasks = [
            asyncio.create_task(self._work(slot), name=f"{name}-slot-{number}")
            for number, slot in enumerate(self._slots)
        ]
        try:  # gather() would cancel the attempts before they can know that it is the stop
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for slot in self._slots:
                slot.is_stopping = True
            for task in tasks:
                task.cancel()

    def notify(self) -> None:
        """Says that a message is ready."""
        if not self._is_pumping:
            self._is_pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._is_pumping = False
        while self._idle:
            waiter = self._idle.pop()
            if not waiter.done():  # it is done when its slot was cancelled
                waiter.set_result(None)
                return

    def end_overdue(self, now: float) -> None:
        """Cancels the attempts that have run past their deadline; ``now`` is monotonic seconds."""
        for slot in self._slots:
            slot.cancel_if_overdue(now)

    async def _work(self, slot: Slot) -> None:
        slot.task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        run_count = 0
        while True:
            item = self._take()
            if item is None:
                waiter = loop.create_future()
                self._idle.append(waiter)
                await waiter
                continue
            self.notify()  # while this one waits for something, another slot takes what is ready
            await self._run(item, slot)
            run_count += 1
            if run_count % YIELD_EVERY == 0:
                await asyncio.sleep(0)
