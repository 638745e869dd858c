"""The store as of one moment: what it knows of a durable, and that it stays so while a worker commits."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from consume_kit import SPEC
from store_kit import commit
from streams_kit import DURABLE, make_change, make_floor, make_outbox_row, make_parked

from models.errors import StoreError
from state import ledger
from state.sqlite import SqliteStore
from state.store import DeadLetter, Failure, Tried
from streams.moment import Known, Moment, read_known

LETTER = DeadLetter(handler="steps.step", at=5.0, error="broken")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """A store of one durable, whose messages have one outcome each."""
    found = SqliteStore(tmp_path / "state.db")
    peeks = [("others", "b", b'{"n":1}'), ("others", "c", None), ("others", "b", b'{"n":2}')]
    commit(found, make_change(1, puts=[("notes", "b", b"{}"), ("notes", "a", b'{"n":1}')], peeks=peeks))
    tried = Tried(due=9.0, since=1.0, failures=1, attempts=1)
    failure = Failure(at=1.0, error="x")
    commit(
        found,
        make_change(2, dead=LETTER, outbox=[make_outbox_row(1, id="steps.step:SIGNALS:2:2:dead")]),
        make_change(3, parked=make_parked(3), failure=failure),
        make_change(7, tried=tried, failure=failure),
        make_change(5, dead=LETTER),
        make_change(6, dead=LETTER),
        floor=make_floor(6),
    )
    commit(found, make_change(5, is_redriven=True))
    found.drop_dead(DURABLE, 6, "no longer of use")
    found.note_since(DURABLE, {"signals.step": 1})
    found.note_gone(DURABLE, 8, 9, "expired")
    yield found
    found.close()


def test_known_has_each_outcome(store: SqliteStore, tmp_path: Path) -> None:
    """Every kind of outcome is read, each under its sequence."""
    known = read_known(tmp_path / "state.db", SPEC)
    assert (known.floor, known.floor_seq, known.since) == (make_floor(6), 6, {"signals.step": 1})
    assert ledger.numbers(known.segments) == {0: (1 << 1) + (1 << 5)}
    assert known.dead == {seq: ("steps.step", state) for seq, state in ((2, "dead"), (5, "applied"), (6, "dropped"))}
    assert (known.waiting, known.unsent) == (frozenset({3, 7}), frozenset({"steps.step:SIGNALS:2:2:dead"}))
    assert known.gone == [(8, 9, "expired")]
    assert known.redriven.keys() == {5} and known.again_count == 0
    assert known.store_id


def test_outcome_is_one_word_for_each_message(store: SqliteStore, tmp_path: Path) -> None:
    """What became of a message is one word, also where nothing is known of it."""
    known = read_known(tmp_path / "state.db", SPEC)
    words = ["applied", "dead", "parked", "none", "applied", "dropped", "parked", "pending"]
    assert [known.outcome_of(seq) for seq in range(1, 9)] == words
    assert Known().outcome_of(1) == "pending"
    assert not Known().has_bit(1)


def test_moment_does_not_see_later_commits(store: SqliteStore, tmp_path: Path) -> None:
    """Whatever is committed meanwhile, rows, ledger and peeks stay as they were on entering."""
    with Moment(tmp_path / "state.db") as moment:
        puts = [("notes", "a", b'{"n":9}'), ("notes", "z", b"{}")]
        commit(store, make_change(9, puts=puts, peeks=[("others", "b", None)]))
        assert list(moment.rows("notes")) == [("a", b'{"n":1}'), ("b", b"{}")]
        assert moment.peeks(DURABLE, 9) == []
        assert not moment.known(SPEC).has_bit(9)
        assert moment.known(SPEC).floor == make_floor(6)
    assert read_known(tmp_path / "state.db", SPEC).has_bit(9)


def test_moment_has_peeks_in_the_order_of_the_handler(store: SqliteStore, tmp_path: Path) -> None:
    """A key that was peeked at twice is there twice, and a row that was not there is None."""
    with Moment(tmp_path / "state.db") as moment:
        found = moment.peeks(DURABLE, 1)
        assert moment.peeks("other", 1) == moment.peeks(DURABLE, 2) == []
    assert found == [("others", "b", b'{"n":1}'), ("others", "c", None), ("others", "b", b'{"n":2}')]


def test_known_of_a_new_version_is_that_of_the_former_durable(store: SqliteStore, tmp_path: Path) -> None:
    """Until the position has moved along, what is known stands under the former name."""
    spec = attrs.evolve(SPEC, durable=f"{DURABLE}-v2", former=("missing", DURABLE))
    found = read_known(tmp_path / "state.db", spec)
    assert found.floor is not None and found.floor.durable == DURABLE
    assert found.has_bit(1)


def test_known_is_empty_for_another_durable(store: SqliteStore, tmp_path: Path) -> None:
    """Nothing is known of a durable that the store has not met."""
    found = read_known(tmp_path / "state.db", attrs.evolve(SPEC, durable="other"))
    assert (found.floor, found.floor_seq, found.segments, found.dead) == (None, None, {}, {})


def test_moment_without_a_database_is_empty(tmp_path: Path) -> None:
    """Before the first worker there is nothing, which is no error; and nothing is made."""
    with Moment(tmp_path / "state.db") as moment:
        found = moment.known(SPEC)
        assert (found.floor, found.segments, found.dead, found.gone, found.store_id) == (None, {}, {}, [], "")
        assert (list(moment.rows("notes")), moment.peeks(DURABLE, 1)) == ([], [])
    assert list(tmp_path.iterdir()) == []


def test_moment_refuses_a_foreign_database(tmp_path: Path) -> None:
    """A file that is no store of ours is an error on entering."""
    (tmp_path / "state.db").write_bytes(b"something else" * 1000)
    with pytest.raises(StoreError, match=r"state\.db"), Moment(tmp_path / "state.db"):
        pass


def damage(path: Path) -> None:
    """Overwrites all but the first pages of a database, as a failing disk does."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * (size - 8192))


def test_moment_names_a_damaged_store(tmp_path: Path) -> None:
    """A page that can't be read is an error of the store, for rows and for all else."""
    path = tmp_path / "state.db"
    store = SqliteStore(path)
    commit(store, make_change(1, puts=[("notes", str(n), b"{}") for n in range(1000)]), floor=make_floor(1))
    store.close()
    damage(path)
    with Moment(path) as moment:
        with pytest.raises(StoreError, match=r"state\.db"):
            moment.known(SPEC)
        with pytest.raises(StoreError, match=r"state\.db"):
            list(moment.rows("notes"))


def is_log_free(path: Path) -> bool:
    """Whether nobody keeps the store's log from being written back and used anew."""
    connection = sqlite3.connect(path, timeout=0)
    try:
        return bool(connection.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0)
    finally:
        connection.close()


def test_moment_that_is_let_go_keeps_no_log(store: SqliteStore) -> None:
    """While it lasts, later commits are not seen; then they are, and the log no longer grows on its account."""
    with Moment(store.path) as moment:
        commit(store, make_change(8, puts=[("notes", "c", b"{}")]))
        assert (len(list(moment.rows("notes"))), is_log_free(store.path)) == (2, False)
        moment.let_go()
        assert (len(list(moment.rows("notes"))), is_log_free(store.path)) == (3, True)
