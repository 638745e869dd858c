"""Parked lanes: who waits, until when, and that each lane is given once a run."""

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from state.store import ParkedLane
from streams.parked import ParkedLanes

KEYS = st.sampled_from(["", "a", "b"])
DELAYS = st.integers(0, 5)


@attrs.define
class Lane:
    """How many messages wait, and when the first is due; None while that one runs."""

    count: int
    due: float | None


class Worker(RuleBasedStateMachine):
    """Uses ParkedLanes as the worker does, beside a plain mapping of lanes."""

    def __init__(self) -> None:
        super().__init__()
        self.parked = ParkedLanes()
        self.lanes: dict[str, Lane] = {}
        self.now = 100.0

    @rule(key=KEYS, delay=DELAYS)
    def park(self, key: str, delay: float) -> None:
        """A message fails and waits, or comes in behind one that does."""
        if key in self.lanes:
            self.lanes[key].count += 1
            self.parked.join(key)
            return
        self.lanes[key] = Lane(1, self.now + delay)
        self.parked.join(key)
        self.parked.schedule(key, self.now + delay)

    @rule(seconds=DELAYS, limit=st.integers(0, 3))
    def wait(self, seconds: float, limit: int) -> None:
        """Time passes; of the lanes that are due the earliest are given, as many as asked for, no running one."""
        self.now += seconds
        due = {key: lane.due for key, lane in self.lanes.items() if lane.due is not None and lane.due <= self.now}
        taken = self.parked.take_due(self.now, limit)
        assert len(set(taken)) == len(taken) and set(taken) <= set(due)
        assert [due[key] for key in taken] == sorted(due.values())[:limit]
        for key in taken:
            self.lanes[key].due = None

    def _running(self) -> list[str]:
        return [key for key, lane in self.lanes.items() if lane.due is None]

    @precondition(lambda self: self._running())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """The first message gets its outcome; the next of its lane may run at once."""
        key = data.draw(st.sampled_from(self._running()))
        self.parked.finish_first(key, self.now)
        lane = self.lanes[key]
        lane.count, lane.due = lane.count - 1, self.now
        if not lane.count:
            del self.lanes[key]

    @precondition(lambda self: self._running())
    @rule(data=st.data(), delay=DELAYS)
    def fail_again(self, data: st.DataObject, delay: float) -> None:
        """The first message fails once more and waits on."""
        key = data.draw(st.sampled_from(self._running()))
        self.parked.schedule(key, self.now + delay)
        self.lanes[key].due = self.now + delay

    @precondition(lambda self: any(lane.due is not None for lane in self.lanes.values()))
    @rule(data=st.data(), delay=st.integers(-5, 5))
    def schedule_again(self, data: st.DataObject, delay: float) -> None:
        """A lane that has its turn already keeps it, sooner or later than the new one."""
        key = data.draw(st.sampled_from([key for key, lane in self.lanes.items() if lane.due is not None]))
        self.parked.schedule(key, self.now + delay)

    @rule()
    def load(self) -> None:
        """The worker starts anew from the store, in which a lane that ran is due at once."""
        for lane in self.lanes.values():
            lane.due = self.now if lane.due is None else lane.due
        self.parked.load({key: ParkedLane(due=lane.due or 0, count=lane.count) for key, lane in self.lanes.items()})

    @invariant()
    def counts_agree(self) -> None:
        """A lane is parked exactly while messages of it wait, and all of them are counted."""
        assert {key for key in ("", "a", "b") if key in self.parked} == set(self.lanes)
        assert self.parked.message_count == sum(lane.count for lane in self.lanes.values())


def test_parked_lanes_are_given_when_due_and_once() -> None:
    """Through any parking, failing, finishing and restarting each lane is given at its time, once a run."""
    run_state_machine_as_test(Worker, settings=settings(max_examples=80, stateful_step_count=40, deadline=None))


def test_parked_lane_scheduled_and_gone_is_not_given() -> None:
    """A turn of a lane in which nothing waits is forgotten when it comes, and stands in no later one's way."""
    parked = ParkedLanes()
    parked.schedule("a", 1.0)
    assert parked.take_due(2.0, 9) == []
    parked.join("a")
    parked.schedule("a", 3.0)
    assert parked.take_due(3.0, 9) == ["a"]


def test_parked_lane_is_due_at_its_instant_not_before() -> None:
    """A lane is given from its instant on."""
    parked = ParkedLanes()
    parked.join("a")
    parked.schedule("a", 2.0)
    assert [parked.take_due(now, 9) for now in (1.999, 2.0, 9.0)] == [[], ["a"], []]


def test_parked_lanes_beyond_the_limit_keep_their_turn() -> None:
    """Lanes for which there is no room are given later, in the order of their instants."""
    parked = ParkedLanes()
    for due, key in enumerate("cab"):
        parked.join(key)
        parked.schedule(key, due)
    assert [parked.take_due(5.0, limit) for limit in (0, 2, 2, 2)] == [[], ["c", "a"], ["b"], []]


def test_parked_lane_has_one_turn_however_often_it_is_scheduled() -> None:
    """Two reasons for a turn are one turn, at the first one's instant."""
    parked = ParkedLanes()
    parked.join("a")
    parked.schedule("a", 5.0)
    parked.schedule("a", 1.0)
    assert [parked.take_due(now, 9) for now in (4.0, 5.0, 6.0)] == [[], ["a"], []]


def test_parked_lanes_are_due_once_the_first_may_run() -> None:
    """A lane is due at its instant and not before; without any lane nothing is."""
    parked = ParkedLanes()
    assert not parked.is_due(100)
    parked.load({"a": ParkedLane(due=60, count=1), "b": ParkedLane(due=50, count=2)})
    assert [parked.is_due(now) for now in (49, 50, 51)] == [False, True, True]
