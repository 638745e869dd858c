"""Floor and marks: which messages have their outcome, through any order of deliveries, outcomes, faults."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from streams_kit import CREATED, make_floor, ts_of

from models.errors import AttachRefused
from state.store import Floor
from streams.position import Place, Position, check_stream


class Worker(RuleBasedStateMachine):
    """Uses a Position as the worker does, beside the plain set of messages whose outcome is committed."""

    @initialize(gaps=st.lists(st.integers(1, 3), min_size=1, max_size=12))
    def start(self, gaps: list[int]) -> None:
        """A stream of which the consumer's filters match some sequences."""
        self.stream = [sum(gaps[: n + 1]) for n in range(len(gaps))]
        self.position = Position(make_floor(0), {})
        self.done: set[int] = set()
        self.held: dict[int, Place] = {}
        self.decided: list[Place] = []
        self.next_index = 0
        self.window: list[int] = []

    @precondition(lambda self: self.next_index < len(self.stream))
    @rule()
    def deliver(self) -> None:
        """The server delivers the next message; one that is in hand already is only noted."""
        seq = self.stream[self.next_index]
        self.next_index += 1
        if not self.position.is_done(seq, ts_of(seq)):
            self.window.append(seq)
            self.position.append(self.held.setdefault(seq, Place(seq, ts_of(seq))))

    @precondition(lambda self: any(taken not in self.decided for taken in self.held.values()))
    @rule(data=st.data())
    def decide(self, data: st.DataObject) -> None:
        """A message gets its outcome, in any order."""
        open_ones = [taken for taken in self.held.values() if taken not in self.decided]
        self.decided.append(data.draw(st.sampled_from(open_ones)))

    @precondition(lambda self: self.decided)
    @rule(data=st.data(), is_stored=st.booleans())
    def commit(self, data: st.DataObject, is_stored: bool) -> None:
        """The oldest outcomes are committed; if the store takes none, the worker starts again from what it has."""
        count = data.draw(st.integers(1, len(self.decided)))
        batch = self.decided[:count]
        before = self.position.floor
        for taken in batch:
            taken.is_settled = True
        floor = self.position.advance()
        if not is_stored:
            self.crash()
            return
        del self.decided[:count]
        self.done |= {taken.seq for taken in batch}
        self.position.committed(floor, {taken.seq: taken.ts for taken in batch if taken.seq > floor.seq})
        for taken in batch:
            del self.held[taken.seq]
        while self.window and self.window[0] in self.done:
            del self.window[0]
        assert self.position.window_count == len(self.window)
        assert self.position.floor.seq >= before.seq
        assert self.position.floor.ts == ts_of(self.position.floor.seq)

    @rule(data=st.data())
    def attach(self, data: st.DataObject) -> None:
        """The server delivers again from the floor; what runs or is decided stays in hand, the rest is dropped."""
        self.position.restart()
        for seq, taken in list(self.held.items()):
            if taken not in self.decided and data.draw(st.booleans()):
                del self.held[seq]
        self._rewind()

    @rule()
    def crash(self) -> None:
        """Everything in memory is gone; floor and marks are read from the store."""
        self.position = Position(self.position.floor, dict(self.position.marks))
        self.held.clear()
        self.decided.clear()
        self._rewind()

    def _rewind(self) -> None:
        self.next_index = sum(seq <= self.position.floor.seq for seq in self.stream)
        self.window = []

    @invariant()
    def floor_passes_no_open_message(self) -> None:
        """Every message up to the floor has its outcome."""
        assert {seq for seq in self.stream if seq <= self.position.floor.seq} <= self.done

    @invariant()
    def floor_and_marks_tell_exactly_what_is_done(self) -> None:
        """Neither is a done message taken again nor an open one taken for done; no mark is kept for nothing."""
        assert {seq for seq in self.stream if self.position.is_done(seq, ts_of(seq))} == self.done
        assert set(self.position.marks) == {seq for seq in self.done if seq > self.position.floor.seq}


def test_position_classifies_exactly_the_settled_ones() -> None:
    """For any order of deliveries, outcomes, commits, attaches and crashes floor and marks tell what is done."""
    run_state_machine_as_test(Worker, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


def _position(*delivered: Place, floor: int = 2) -> Position:
    position = Position(make_floor(floor), {})
    for taken in delivered:
        position.append(taken)
    return position


def test_floor_follows_settled_deliveries_over_gaps() -> None:
    """The floor goes to the last of the settled ones in a row, with that message's timestamp."""
    position = _position(Place(3, 30, True), Place(7, 70, True), Place(9, 90), Place(10, 100, True))
    assert position.advance() == make_floor(7, 70)


def test_floor_that_can_not_move_stays_the_same() -> None:
    """While the first delivery is open, the floor is the one that is committed."""
    position = _position(Place(3, 30), Place(4, 40, True))
    assert position.advance() is position.floor


def test_floor_never_goes_back_for_an_old_delivery() -> None:
    """A delivery at or below the floor moves nothing."""
    position = _position(Place(1, 10, True), Place(2, 20, True), floor=5)
    assert position.advance() is position.floor


def test_floor_after_a_restart_counts_new_deliveries_only() -> None:
    """What was delivered before an attach says nothing about the gap before it."""
    position = _position(Place(3, 30, True))
    position.restart()
    assert position.advance().seq == 2


def test_window_counts_deliveries_since_the_slowest() -> None:
    """Every delivery from the lowest open one on takes its place, settled or not; an outcome frees those before it."""
    places = [Place(3, 30), Place(7, 70, True), Place(9, 90, True), Place(10, 100)]
    position = _position(*places)
    position.advance()
    assert position.window_count == 4
    places[0].is_settled = True
    assert (position.advance(), position.window_count) == (make_floor(9, 90), 1)


def test_window_is_empty_after_a_restart() -> None:
    """An attach forgets what was delivered before it."""
    position = _position(Place(3, 30), Place(4, 40))
    position.restart()
    assert position.window_count == 0


def test_commit_drops_the_marks_that_the_floor_covers() -> None:
    """Marks at or below the new floor go, others stay."""
    position = Position(make_floor(0), {2: 20, 5: 50})
    position.committed(make_floor(2, 20), {4: 40})
    assert position.marks == {4: 40, 5: 50}


def test_commit_that_moves_no_floor_copies_no_marks() -> None:
    """Behind one slow message marks may be many: a commit adds its own and goes through them only when some go."""
    marks = {5: 50}
    position = Position(make_floor(2), marks)
    position.committed(make_floor(2), {4: 40})
    assert position.marks is marks and marks == {4: 40, 5: 50}


def test_sequence_that_comes_again_with_another_message_is_refused() -> None:
    """A marked sequence that another message has now means that the stream has lost data."""
    position = Position(make_floor(2, 20), {4: 40})
    with pytest.raises(AttachRefused, match="up to sequence 2: sequence 4 came again with another message"):
        position.is_done(4, 99)


@pytest.mark.parametrize("seq", [1, 2], ids=["below-the-floor", "at-the-floor"])
def test_sequence_that_the_floor_covers_is_done_whatever_its_time(seq: int) -> None:
    """A timestamp tells of a loss only beside a mark; the floor's own is checked with the server at every attach."""
    assert Position(make_floor(2, 20), {4: 40}).is_done(seq, 99)


def test_redelivery_of_a_done_message_is_known() -> None:
    """The same message again is done, by its mark or by the floor."""
    position = Position(make_floor(2, 20), {4: 40})
    assert [position.is_done(seq, seq * 10) for seq in (1, 2, 3, 4, 5)] == [True, True, False, True, False]


def _info(*, created: str = CREATED, last_seq: int = 9) -> dict[str, Any]:
    return {"created": created, "state": {"last_seq": last_seq}}


@pytest.mark.parametrize("floor_ts", [ts_of(9), None], ids=["kept", "expired"])
def test_stream_that_was_read_is_accepted(floor_ts: int | None) -> None:
    """The same creation, an end at or beyond the floor, and the floor's message, unless it is kept no more."""
    check_stream(make_floor(9), _info(), floor_ts)


@pytest.mark.parametrize(
    ("info", "floor_ts", "what"),
    [
        pytest.param(_info(created="2026-02-02T00:00:00Z"), ts_of(9), "created at 2026-02-02", id="made-anew"),
        pytest.param(_info(last_seq=8), None, "it ends at sequence 8", id="lost-its-end"),
        pytest.param(_info(last_seq=10), ts_of(9) + 1, "message at sequence 9 is another one", id="another-message"),
    ],
)
def test_stream_that_is_another_one_is_refused(info: dict[str, Any], floor_ts: int | None, what: str) -> None:
    """A stream that was made anew or lost data is named with what differs and what to do."""
    floor: Floor = make_floor(9)
    with pytest.raises(AttachRefused, match=f"^stream SIGNALS is not the one .*{what}.* Restore the stream, or"):
        check_stream(floor, info, floor_ts)
