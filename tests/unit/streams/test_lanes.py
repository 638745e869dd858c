"""Lanes: order within a key, one at a time, nothing lost, whatever the worker does."""

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from streams.lanes import Lanes


@attrs.define(eq=False)
class Job:
    """Something with a key and a place in the order of arrival."""

    key: str
    number: int


class Worker(RuleBasedStateMachine):
    """Uses Lanes as the worker does, beside one plain list of what is in hand."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes: Lanes[Job] = Lanes()
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.count = 0

    @rule(key=st.sampled_from("abc"))
    def add(self, key: str) -> None:
        """A message comes in."""
        self.count += 1
        job = Job(key, self.count)
        self.lanes.add(job)
        self.waiting.append(job)

    @rule()
    def take(self) -> None:
        """A slot takes what may run: the first of a lane in which nothing runs; there is one unless none waits."""
        job = self.lanes.take()
        if job is None:
            assert all(self._running_in(waiting.key) for waiting in self.waiting)
            return
        assert not self._running_in(job.key)
        assert job is self._waiting_in(job.key)[0]
        self.waiting.remove(job)
        self.running.append(job)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A running message ends."""
        job = data.draw(st.sampled_from(self.running))
        self.lanes.release(job)
        self.running.remove(job)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def clear_behind(self, data: st.DataObject) -> None:
        """A running message is parked, with all behind it in their order."""
        job = data.draw(st.sampled_from(self.running))
        behind = self._waiting_in(job.key)
        assert self.lanes.clear_behind(job) == behind
        self.running.remove(job)
        self.waiting = [waiting for waiting in self.waiting if waiting not in behind]

    @rule()
    def drop_waiting(self) -> None:
        """An attach drops what has not started: each of it once, in order within a key."""
        dropped = self.lanes.drop_waiting()
        for key in "abc":
            assert [job for job in dropped if job.key == key] == self._waiting_in(key)
        assert len(dropped) == len(self.waiting)
        self.waiting.clear()

    @invariant()
    def lanes_exist_while_they_hold_something(self) -> None:
        """Empty lanes are forgotten."""
        assert len(self.lanes) == len({job.key for job in self.waiting + self.running})

    def _running_in(self, key: str) -> bool:
        return any(job.key == key for job in self.running)

    def _waiting_in(self, key: str) -> list[Job]:
        return [job for job in self.waiting if job.key == key]


def test_lanes_keep_order_and_lose_nothing() -> None:
    """Whatever the worker does, a key runs in order and one at a time, and each message is given out once."""
    run_state_machine_as_test(Worker, settings=settings(max_examples=80, stateful_step_count=40, deadline=None))


def test_lanes_take_turns() -> None:
    """A lane with many messages lets the others go first after each of its own."""
    lanes: Lanes[Job] = Lanes()
    jobs = [Job(key, number) for number, key in enumerate("aaab")]
    order = []
    for job in jobs:
        lanes.add(job)
    while (taken := lanes.take()) is not None:
        order.append(taken.number)
        lanes.release(taken)
    assert order == [0, 3, 1, 2]


def test_lanes_run_side_by_side() -> None:
    """The first messages of different keys may all run at once, in the order in which they came."""
    lanes: Lanes[Job] = Lanes()
    jobs = [Job(key, number) for number, key in enumerate("abab")]
    for job in jobs:
        lanes.add(job)
    assert [lanes.take(), lanes.take(), lanes.take()] == [jobs[0], jobs[1], None]
    lanes.release(jobs[1])
    assert (lanes.take(), lanes.take()) == (jobs[3], None)
