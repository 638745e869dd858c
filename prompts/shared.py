"""One call for all who ask the same at the same time, and a cache of answers for those who ask it a little later.

A shared call is a task of its own: who leaves, leaves alone; when the last one has left the call is cancelled, and that
has ended before the last one is told. Its deadline is the latest of those who wait for it. The task has the context
variables of whoever came first. Nothing is known here of prompts or HTTP; the key says what is the same.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import attrs

T = TypeVar("T")

TIMER_S = 0.005


@attrs.define
class Deadline:
    """When the last one who waits gives up, on the loop's clock; it may move to later."""

    ends_at: float

    def left_s(self, now: float) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self.ends_at - now)

    def has_passed(self, now: float) -> bool:
        """Whether it is over; timers may fire by their resolution too early."""
        return self.ends_at - now < TIMER_S


@attrs.define(eq=False)
class _Flight(Generic[T]):
    task: "asyncio.Task[T]"
    deadline: Deadline
    waiting: int = 0
    is_claimed: bool = False


@attrs.frozen(kw_only=True)
class Landed(Generic[T]):
    """A result; exactly one of those who get it ``is_owner``, and answers for what it cost."""

    value: T
    is_owner: bool


class SharedCalls(Generic[T]):
    """The calls in flight, by key."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    async def join(self, key: str, start: Callable[[Deadline], Coroutine[Any, Any, T]], *, ends_at: float) -> Landed[T]:
        """Waits for the call of that key, which is started when there is none.

        Raises:
            TimeoutError: there was no result by ``ends_at``, or before ``close``.
        """
        flight = self._flights.get(key) or self._depart(key, start, ends_at)
        flight.deadline.ends_at = max(flight.deadline.ends_at, ends_at)
        flight.waiting += 1
        try:
            left_s = ends_at - asyncio.get_running_loop().time()
            await asyncio.wait({flight.task}, timeout=max(0.0, left_s))
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._forget(key, flight)
                await _cancel(flight.task)
        if not flight.task.done() or flight.task.cancelled():
            raise TimeoutError
        is_owner, flight.is_claimed = not flight.is_claimed, True
        return Landed(value=flight.task.result(), is_owner=is_owner)

    async def close(self) -> None:
        """Cancels every call."""
        for flight in list(self._flights.values()):
            await _cancel(flight.task)

    def _depart(self, key: str, start: Callable[[Deadline], Coroutine[Any, Any, T]], ends_at: float) -> _Flight[T]:
        deadline = Deadline(ends_at)
        flight = _Flight(asyncio.create_task(start(deadline), name="llm-call"), deadline)
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _: self._forget(key, flight))
        return flight

    def _forget(self, key: str, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


async def _cancel(task: "asyncio.Task[T]") -> None:
    task.cancel()
    await asyncio.wait({task})


class AnswerCache(Generic[T]):
    """Answers for a while, the oldest leaving first; a ``ttl_s`` of 0 keeps none."""

    def __init__(self, *, ttl_s: float, max_entries: int) -> None:
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._kept: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def get(self, key: str, now: float) -> T | None:
        """The answer of that key, unless it is too old; ``now`` in monotonic seconds."""
        until, value = self._kept.get(key, (now, None))
        return value if now < until else None

    def put(self, key: str, value: T, now: float) -> None:
        """Keeps an answer, and drops what is too old or too much."""
        if not self._ttl_s:
            return
        self._kept.pop(key, None)
        self._kept[key] = (now + self._ttl_s, value)
        while len(self._kept) > self._max_entries or next(iter(self._kept.values()))[0] <= now:
            self._kept.popitem(last=False)

    def drop(self, key: str) -> None:
        """Keeps an answer no longer."""
        self._kept.pop(key, None)
