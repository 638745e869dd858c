"""Commits of shared tables, dead letters and notes: what one transaction leaves behind."""

from pathlib import Path

import attrs
import pytest
from store_kit import commit, dump
from streams_kit import DURABLE, make_change, make_floor, make_outbox_row, make_parked, ts_of

from models.errors import StoreFenced
from state.sqlite import SqliteReader, SqliteStore
from state.store import DeadLetter, Failure, Loaded, ParkedLane, Started, Tried


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "state.db"


def test_shared_change_counts_once_whoever_makes_it(path: Path) -> None:
    """Of two processes that give a message its outcome the first counts; the second one's note is taken back."""
    one, two = (SqliteStore(path, runner=name, alive=("one", "two"), is_owner=False) for name in ("one", "two"))
    change = make_change(7, adds=[("days", "monday", "count", 1)], outbox=[make_outbox_row(7)], is_shared=True)
    assert one.commit([change], [], marks=[change], sent=[]) == set()
    two.note_start(DURABLE, 7, 0)
    again = attrs.evolve(change, was_noted=True)
    other = make_change(8, adds=[("days", "monday", "count", 1)], is_shared=True)
    assert two.commit([again, other], [], marks=[again, other], sent=[]) == {(DURABLE, 7)}
    assert two.fetch_row("days", "monday") == b'{"count":2}'
    assert (two.has_mark(DURABLE, 8), two.has_mark(DURABLE, 9)) == (True, False)
    found = dump(path)
    assert found["started"] == [] and len(found["outbox"]) == 1
    assert [row[3] for row in found["ledger"]] == [0]
    one.close()
    two.close()


def test_shared_change_below_the_floor_is_done(path: Path) -> None:
    """What the server's floor covers has its outcome, with or without a mark; a floor never goes back."""
    store = SqliteStore(path, is_owner=False)
    store.commit([], [make_floor(9)], marks=[], sent=[])
    late = make_change(5, adds=[("days", "monday", "count", 1)], is_shared=True)
    assert store.commit([late], [make_floor(4)], marks=[late], sent=[]) == {(DURABLE, 5)}
    assert store.fetch_row("days", "monday") is None
    loaded = store.load(DURABLE)
    assert loaded.floor == make_floor(9) and store.was_unclean is False
    store.close()


def test_tried_message_keeps_its_attempts_until_its_outcome(path: Path) -> None:
    """Attempts of a message that the server keeps are read by any process, and go with its outcome."""
    store = SqliteStore(path, is_owner=False)
    tried = Tried(due=50.0, since=1.0, failures=1, attempts=2)
    failed = make_change(5, is_shared=True, tried=tried, failure=Failure(at=2.0, error="boom"))
    store.commit([failed], [], marks=[], sent=[])
    assert store.fetch_tried(DURABLE, 5) == attrs.evolve(tried, journal=(Failure(at=2.0, error="boom"),))
    assert (store.count_tried(DURABLE, 49.0), store.count_tried(DURABLE, 51.0)) == (1, 0)
    applied = make_change(5, is_shared=True)
    store.commit([applied], [], marks=[applied], sent=[])
    assert store.fetch_tried(DURABLE, 5) is None and dump(path)["failures"] == []
    store.close()


def test_dead_letter_is_kept_with_what_became_of_it(path: Path) -> None:
    """Given up, tried again in vain, applied, dropped: state, tries and reason are there, and the ledger agrees."""
    store = SqliteStore(path)
    dead = DeadLetter(handler="t.h", at=1.0, error="boom")
    for seq in (5, 6):
        commit(store, make_change(seq, dead=dead))
    commit(store, make_change(5, is_redriven=True, dead=attrs.evolve(dead, error="again")))
    found = store.fetch_dead(DURABLE, 5)
    assert found == attrs.evolve(dead, error="again", redrives=1, ts=ts_of(5))
    assert dump(path)["ledger"] == []
    commit(store, make_change(5, is_redriven=True))
    store.drop_dead(DURABLE, 6, "spam")
    five, six = store.fetch_dead(DURABLE, 5), store.fetch_dead(DURABLE, 6)
    assert five and six and (five.state, five.redrives, six.state, six.note) == ("applied", 2, "dropped", "spam")
    assert store.fetch_dead(DURABLE, 7) is None
    reader = SqliteReader(path)
    assert reader.fetch_dead() == {("t.h", 5): five, ("t.h", 6): six}
    reader.close()
    store.close()


def test_move_takes_everything_of_a_durable_along(path: Path) -> None:
    """Position, marks, ledger, parked messages and the rest get the new name, once, and nothing stays behind."""
    store = SqliteStore(path)
    commit(store, make_change(3), make_change(9, parked=make_parked(9)), floor=make_floor(3))
    store.note_since(DURABLE, {"signals.a": 1})
    store.note_gone(DURABLE, 1, 2, "expired")
    assert store.move(DURABLE, "new") is True
    assert store.move(DURABLE, "new") is False
    assert store.load(DURABLE) == Loaded(floor=None, marks={}, lanes={})
    moved = store.load("new")
    assert moved.floor and (moved.floor.seq, moved.since) == (3, {"signals.a": 1})
    assert moved.lanes.keys() == {"ana"}
    assert all(DURABLE not in row for rows in dump(path).values() for row in rows if "outbox" not in row)
    store.close()


def test_start_of_a_message_that_is_over_is_not_noted(path: Path) -> None:
    """Once another process has finished a shared message no note stays behind; parked and dead ones are noted."""
    store = SqliteStore(path, is_owner=False)
    dead = DeadLetter(handler="t.h", at=1.0, error="boom")
    for change in (
        make_change(5, is_shared=True),
        make_change(6, is_shared=True, parked=make_parked(6)),
        make_change(7, is_shared=True, dead=dead),
    ):
        store.commit([change], [], marks=[change], sent=[])
    for seq in (5, 6, 7, 8):
        store.note_start(DURABLE, seq, 0)
    assert [row[1] for row in dump(path)["started"]] == [6, 7, 8]
    store.close()


def test_start_of_a_process_that_lives_is_no_crash(path: Path) -> None:
    """Only what a process ran alone that is gone has a crash on its account."""
    store = SqliteStore(path, runner="one")
    for seq, runner in ((7, "one"), (8, "two")):
        SqliteStore(path, runner=runner, alive=("one", "two"), is_owner=False).note_start(DURABLE, seq, 0)
    other = SqliteStore(path, runner="three", alive=("two", "three"), is_owner=False)
    assert other.load(DURABLE).crashes == {7: 1}
    assert other.fetch_started(DURABLE, 8) == Started(crashes=0, runner="two")
    done = make_change(8, is_shared=True)  # by a process that never saw the note
    other.commit([done], [], marks=[done], sent=[])
    assert other.fetch_started(DURABLE, 8) is None
    other.close()
    store.close()


def test_dead_letter_waits_while_its_message_is_parked(path: Path) -> None:
    """A redriven message that waits in its lane is seen at its letter; the lane keeps the time of who was tried."""
    store = SqliteStore(path)
    commit(store, make_change(5, dead=DeadLetter(handler="t.h", at=1.0, error="boom")))
    commit(store, make_change(9, parked=make_parked(9, due=70.0, attempts=1)))
    commit(store, make_change(5, is_redriven=True, parked=make_parked(5, is_redriven=True)))
    found = store.fetch_dead(DURABLE, 5)
    assert found and (found.state, found.is_waiting, found.redrives) == ("dead", True, 0)
    assert store.load_lanes(DURABLE) == {"ana": ParkedLane(due=70.0, count=2)}
    store.drop_dead(DURABLE, 9, "not dead")
    commit(store, make_change(5, is_redriven=True, unparked=True))
    store.drop_dead(DURABLE, 5, "too late")
    applied = store.fetch_dead(DURABLE, 5)
    assert applied and (applied.state, applied.is_waiting, applied.note) == ("applied", False, "")
    store.close()


def test_note_of_a_start_by_a_fenced_store_is_refused(path: Path) -> None:
    """A store that another process has taken over notes nothing."""
    old, new = SqliteStore(path), SqliteStore(path)
    with pytest.raises(StoreFenced):
        old.note_start(DURABLE, 7, 0)
    assert dump(path)["started"] == []
    old.close()
    new.close()


def test_note_of_a_start_is_taken_back_by_the_outcome_and_by_an_orderly_end(path: Path) -> None:
    """An outcome removes its note, and an orderly end counts no crash."""
    store = SqliteStore(path)
    store.note_start(DURABLE, 7, 0)
    store.note_start(DURABLE, 8, 0)
    store.commit([make_change(7, was_noted=True)], [], marks=[], sent=[])
    store.end_clean()
    store.close()
    again = SqliteStore(path)
    assert (again.was_unclean, dump(path)["started"]) == (False, [(DURABLE, 8, 0, "")])
    again.close()
