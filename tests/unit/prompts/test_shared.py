"""Calls that are shared: who gets the result, who ends the call, and what the cache keeps."""

import asyncio

import pytest
from harness import wait_until
from hypothesis import given
from hypothesis import strategies as st

from prompts.shared import AnswerCache, Deadline, Landed, SharedCalls


class Line:
    """Calls that end when told to, and how many began and were cancelled."""

    def __init__(self) -> None:
        self.shared: SharedCalls[str] = SharedCalls()
        self.begun = self.cancelled = 0
        self.deadline = Deadline(0)
        self.until = asyncio.Event()

    async def _work(self, deadline: Deadline) -> str:
        self.begun += 1
        self.deadline = deadline
        try:
            await self.until.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "done"

    def join(self, key: str = "k", *, in_s: float = 10.0) -> "asyncio.Task[Landed[str]]":
        """Asks for the call in a task."""
        ends_at = asyncio.get_running_loop().time() + in_s
        return asyncio.create_task(self.shared.join(key, self._work, ends_at=ends_at))


async def joined(line: Line, count: int) -> list["asyncio.Task[Landed[str]]"]:
    """So many who wait for the same call, which has begun."""
    tasks = [line.join() for _ in range(count)]
    await wait_until(lambda: line.begun)
    return tasks


async def test_shared_call_is_made_once_and_owned_once() -> None:
    """Three who ask the same get one result of one call, and one of them answers for its cost."""
    line = Line()
    tasks = await joined(line, 3)
    line.until.set()
    landed = [await task for task in tasks]
    assert (line.begun, [one.value for one in landed]) == (1, ["done"] * 3)
    assert sorted(one.is_owner for one in landed) == [False, False, True]


async def test_shared_calls_of_other_keys_are_others() -> None:
    """What is not the same is asked for by itself."""
    line = Line()
    tasks = [line.join("a"), line.join("b")]
    line.until.set()
    assert [(await task).is_owner for task in tasks] == [True, True]
    assert line.begun == 2


async def test_shared_call_outlives_who_leaves() -> None:
    """The one who began it may leave: another gets the result, and answers for its cost."""
    line = Line()
    first, second = await joined(line, 2)
    first.cancel()
    await asyncio.wait({first})
    line.until.set()
    assert (await second, first.cancelled(), line.cancelled) == (Landed(value="done", is_owner=True), True, 0)


async def test_shared_call_is_cancelled_with_the_last_who_leaves() -> None:
    """When all have left the call has ended, and who asks the same then begins a new one."""
    line = Line()
    tasks = await joined(line, 2)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert line.cancelled == 1
    line.until.set()
    assert (await line.join()).is_owner
    assert line.begun == 2


@pytest.mark.parametrize("times_s", [(10, 0.01), (0.01, 10)], ids=["patient-first", "hasty-first"])
async def test_shared_call_ends_at_the_latest_deadline(times_s: tuple[float, float]) -> None:
    """Each waits for its own time; the call itself has that of the most patient one."""
    line = Line()
    hasty, patient = (line.join(in_s=in_s) for in_s in times_s)
    if times_s[0] > times_s[1]:
        hasty, patient = patient, hasty
    with pytest.raises(TimeoutError):
        await hasty
    assert not line.deadline.has_passed(asyncio.get_running_loop().time())
    line.until.set()
    assert (await patient).value == "done"


async def test_shared_call_is_cancelled_at_the_last_deadline() -> None:
    """When the last one's time is up the call ends, and its deadline has passed."""
    line = Line()
    with pytest.raises(TimeoutError):
        await line.join(in_s=0.01)
    assert (line.cancelled, line.deadline.has_passed(asyncio.get_running_loop().time())) == (1, True)


async def test_shared_call_that_is_ending_is_joined_by_nobody() -> None:
    """Who asks while a call that all have left is still ending, begins a new one."""
    line, cancelled, ending = Line(), asyncio.Event(), asyncio.Event()

    async def end_slowly(_: Deadline) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
            await ending.wait()
        return ""

    ends_at = asyncio.get_running_loop().time() + 0.01
    left = asyncio.create_task(line.shared.join("k", end_slowly, ends_at=ends_at))
    await cancelled.wait()
    next_one = line.join()
    line.until.set()
    assert (await next_one).value == "done"
    ending.set()
    with pytest.raises(TimeoutError):
        await left


async def test_shared_calls_end_when_closed() -> None:
    """Closing ends every call, and nobody waits for ever."""
    line = Line()
    tasks = await joined(line, 2)
    await line.shared.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError, TimeoutError]


def test_cache_forgets_after_its_time() -> None:
    """An answer is given again until its time is over, and not at all without a time."""
    cache, none = AnswerCache[str](ttl_s=10, max_entries=5), AnswerCache[str](ttl_s=0, max_entries=5)
    for each in (cache, none):
        each.put("k", "v", 0)
    assert [cache.get("k", 9.9), cache.get("k", 10), cache.get("x", 0), none.get("k", 0)] == ["v", None, None, None]


def test_cache_gives_no_answer_that_was_dropped() -> None:
    """The others stay, and one that is not there may be dropped, too."""
    cache = AnswerCache[str](ttl_s=10, max_entries=5)
    for key in ("a", "b"):
        cache.put(key, "v", 0)
    for key in ("a", "x"):
        cache.drop(key)
    assert [cache.get("a", 1), cache.get("b", 1)] == [None, "v"]


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 4)), max_size=60))
def test_cache_is_bounded_and_keeps_the_newest(puts: list[tuple[int, float]]) -> None:
    """Whatever is put in, the last three keys are there while they are young enough, and no others."""
    cache, now, newest = AnswerCache[int](ttl_s=10, max_entries=3), 0.0, dict[str, tuple[float, int]]()
    for number, (key, pause_s) in enumerate(puts):
        now += pause_s
        cache.put(str(key), number, now)
        newest.pop(str(key), None)
        newest[str(key)] = (now, number)
    expected = {key: value for key, (at, value) in list(newest.items())[-3:] if now < at + 10}
    assert {str(key): got for key in range(10) if (got := cache.get(str(key), now)) is not None} == expected
