"""The store's contract, held by SQLite: all or nothing, in order, by one owner; keys are data."""

import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_kit import commit, dump
from streams_kit import DURABLE, full_disk, make_change, make_floor, make_outbox_row, make_parked, ts_of

from models.errors import StoreCorrupt, StoreError, StoreFenced, StoreNewer, StoreUnwritable
from state.sqlite import SqliteReader, SqliteStore
from state.store import Change, Failure, Loaded, OutboxRow, ParkedLane, StoredRow

ODD_KEYS = [
    pytest.param("../../etc/passwd", id="path"),
    pytest.param("/", id="slash"),
    pytest.param("", id="empty"),
    pytest.param("a\x00b", id="nul"),
    pytest.param("x" * 10_240, id="10-kB"),
    pytest.param("👩‍👩‍👧‍👦", id="emoji"),
    pytest.param("שלום\u202e", id="right-to-left"),
    pytest.param("%00", id="percent"),
    pytest.param("'; drop table rows; --", id="sql"),
    pytest.param("é", id="composed"),
    pytest.param("e\u0301", id="decomposed"),
    pytest.param(" a ", id="blanks"),
    pytest.param("\uffff\U0010ffff", id="last-code-points"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "state.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    """A new store."""
    store = SqliteStore(path)
    yield store
    store.close()


def everything(seq: int) -> Change:
    """A change that touches every table of the store."""
    return make_change(
        seq,
        puts=[("profiles", "ana", b'{"n":%d}' % seq)],
        adds=[("days", "monday", "count", 1)],
        outbox=[make_outbox_row(seq)],
        parked=make_parked(seq),
        failure=Failure(at=1.5, error="boom"),
    )


def test_store_new_is_empty(store: SqliteStore) -> None:
    """A new store knows no row, no position, nothing waiting."""
    assert store.load(DURABLE) == Loaded(floor=None, marks={}, lanes={})
    assert store.fetch_row("profiles", "ana") is None
    assert store.fetch_parked(DURABLE, "ana") is None
    assert store.fetch_outbox() == []


def test_store_keeps_its_identity_and_counts_owners(path: Path) -> None:
    """Each opening is a new epoch of the same store."""
    first = SqliteStore(path)
    first.close()
    second = SqliteStore(path)
    second.close()
    assert (second.store_id, second.epoch) == (first.store_id, first.epoch + 1)


def test_commit_survives_a_new_opening(path: Path) -> None:
    """What was committed is there for the next owner, every field of it."""
    store = SqliteStore(path)
    floor = make_floor(4)
    commit(store, everything(5), floor=floor)
    store.end_clean()
    store.close()
    again = SqliteStore(path)
    assert again.load(DURABLE) == Loaded(floor=floor, marks={5: ts_of(5)}, lanes={"ana": ParkedLane(due=0, count=1)})
    assert again.fetch_row("profiles", "ana") == b'{"n":5}'
    assert again.fetch_row("days", "monday") == b'{"count":1}'
    parked = make_parked(5, journal=(Failure(at=1.5, error="boom"),))
    assert (again.fetch_parked(DURABLE, "ana"), again.fetch_outbox()) == (parked, [make_outbox_row(5).entry])
    again.close()
    assert dump(path)["failures"] == [(DURABLE, 5, 1.5, "boom")]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([b'{"n":1}', b'{"n":2}'], b'{"n":2}', id="last-put-wins"),
        pytest.param([b'{"n":1}', None], None, id="delete-after-put"),
        pytest.param([None, b'{"n":2}'], b'{"n":2}', id="put-after-delete"),
        pytest.param([b'{"n":1}', None, b'{"n":3}', None], None, id="last-of-several"),
    ],
)
def test_commit_keeps_the_last_write_of_a_batch(
    store: SqliteStore, path: Path, values: list[bytes | None], expected: bytes | None
) -> None:
    """Writes of one row in one batch end in the last one, whether the row was there before or not."""
    commit(store, make_change(1, puts=[("profiles", "bob", b'{"n":0}')]))
    for key in ("ana", "bob"):
        commit(store, *(make_change(seq, puts=[("profiles", key, row)]) for seq, row in enumerate(values, 2)))
        assert store.fetch_row("profiles", key) == expected
    found = [(row[0], row[1], row[4]) for row in dump(path)["rows"]]
    last = 1 + len(values)
    assert found == ([("profiles", "ana", last), ("profiles", "bob", last)] if expected else [])


def test_commit_of_one_row_leaves_its_neighbours(store: SqliteStore, path: Path) -> None:
    """Rows of other tables and keys stay as they are; a row names the message that wrote it."""
    commit(store, make_change(1, puts=[(t, k, b"{}") for t in ("one", "two") for k in ("a", "b")]))
    commit(store, make_change(2, puts=[("one", "a", b'{"x":1}'), ("two", "b", None)]))
    rows = [("one", "a", '{"x":1}', "SIGNALS", 2), ("one", "b", "{}", "SIGNALS", 1), ("two", "a", "{}", "SIGNALS", 1)]
    assert dump(path)["rows"] == rows


@pytest.mark.parametrize("count", [0, 1, 3, 4, 31, 33, 256, 300, 700])
def test_commit_writes_batches_of_any_size_whole(store: SqliteStore, count: int) -> None:
    """However many changes a batch has, each row, mark and event is written once."""
    changes = [
        make_change(seq, puts=[("t", str(seq), b"%d" % seq)], outbox=[make_outbox_row(seq)])
        for seq in range(1, count + 1)
    ]
    commit(store, *changes)
    assert [store.fetch_row("t", str(seq)) for seq in range(1, count + 1)] == [b"%d" % s for s in range(1, count + 1)]
    assert sorted(store.load(DURABLE).marks) == list(range(1, count + 1))
    assert [row.id for row in store.fetch_outbox()] == [f"id-{n}" for n in range(1, count + 1)]


def test_counters_start_at_zero_and_add_up(store: SqliteStore) -> None:
    """Increments of one batch and of later ones are summed by field, a missing row or field starts at nothing."""
    commit(store, make_change(1, adds=[("days", "mon", "good", 2), ("days", "mon", "bad", -1)]))
    commit(store, make_change(2, adds=[("days", "mon", "good", 3)]), make_change(3, adds=[("days", "mon", "new", 1)]))
    assert msgspec.json.decode(store.fetch_row("days", "mon") or b"") == {"good": 2 + 3, "bad": -1, "new": 1}


def test_counters_keep_every_digit(store: SqliteStore) -> None:
    """Sums beyond 64 bits are exact, up and down."""
    for seq, n in enumerate((2**70, 2**70, 1), 1):
        commit(store, make_change(seq, adds=[("days", "mon", "n", n), ("days", "tue", "n", -n)]))
    assert store.fetch_row("days", "mon") == b'{"n":%d}' % (2**71 + 1)
    assert store.fetch_row("days", "tue") == b'{"n":%d}' % -(2**71 + 1)


def test_counters_row_names_its_last_message(store: SqliteStore, path: Path) -> None:
    """A sum carries the sequence of the newest message that added to it."""
    commit(store, *(make_change(seq, adds=[("days", "mon", "n", 1)]) for seq in (3, 4, 5)))
    assert dump(path)["rows"] == [("days", "mon", '{"n":3}', "SIGNALS", 5)]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_key_is_data(store: SqliteStore, path: Path, key: str) -> None:
    """Any text is a key of a row, of a counter and of a lane, distinct from all others, and no file is named by it."""
    parked = make_parked(1, lane=key)
    change = make_change(1, puts=[("t", key, b'{"own":1}')], adds=[("c", key, "n", 1)], parked=parked)
    commit(store, make_change(2, puts=[("t", "other", b"{}")]), change)
    reader = SqliteReader(path)
    assert store.fetch_row("t", key) == b'{"own":1}'
    assert store.fetch_parked(DURABLE, key) == parked
    assert reader.fetch_row("c", key) == StoredRow(table="c", key=key, row={"n": 1}, stream="SIGNALS", stream_seq=1)
    assert {row.key for row in reader.list_rows("t")} == {key, "other"}
    commit(store, make_change(3, puts=[("t", key, None)]))
    assert (store.fetch_row("t", key), store.fetch_row("t", "other")) == (None, b"{}")
    reader.close()
    assert {file.name for file in path.parent.iterdir()} == {"state.db", "state.db-wal", "state.db-shm"}


def test_floor_deletes_the_marks_that_it_covers(store: SqliteStore) -> None:
    """Marks at or below the new floor go, those above it and those of other durables stay."""
    commit(store, *(make_change(seq) for seq in (3, 4, 5)), make_change(3, durable="other"))
    commit(store, make_change(6), floor=make_floor(4))
    assert store.load(DURABLE) == Loaded(floor=make_floor(4), marks={5: ts_of(5), 6: ts_of(6)}, lanes={})
    assert store.load("other") == Loaded(floor=None, marks={3: ts_of(3)}, lanes={})
    commit(store, floor=make_floor(6))
    assert store.load(DURABLE) == Loaded(floor=make_floor(6), marks={}, lanes={})


def test_parked_lane_is_read_in_order(store: SqliteStore) -> None:
    """The first message of a lane is the one with the lowest sequence; the lane is due when that one is."""
    for seq, due in ((7, 50.0), (5, 90.0), (9, 10.0)):
        commit(store, make_change(seq, parked=make_parked(seq, due=due)))
    commit(store, make_change(6, parked=make_parked(6, lane="bob", due=1.0)))
    commit(store, make_change(1, durable="other", parked=make_parked(1, durable="other")))
    assert store.load(DURABLE).lanes == {"ana": ParkedLane(due=90.0, count=3), "bob": ParkedLane(due=1.0, count=1)}
    assert store.fetch_parked(DURABLE, "ana") == make_parked(5, due=90.0)
    assert store.fetch_parked(DURABLE, "eve") is None


def test_parked_again_replaces_itself(store: SqliteStore) -> None:
    """A further failed attempt changes the waiting message, it does not double it."""
    later = make_parked(5, due=9.0, since=1.0, failures=2, attempts=3, payload=b"\x00\xff")
    commit(store, make_change(5, parked=make_parked(5)))
    commit(store, make_change(5, parked=later))
    assert (store.fetch_parked(DURABLE, "ana"), store.load(DURABLE).lanes["ana"].count) == (later, 1)


def test_unparked_removes_the_message_and_its_failures_alone(store: SqliteStore, path: Path) -> None:
    """The final outcome of a parked message ends it and its journal; others stay."""
    for seq in (5, 6):
        commit(store, make_change(seq, parked=make_parked(seq), failure=Failure(at=seq, error="boom")))
    commit(store, make_change(5, unparked=True))
    assert store.fetch_parked(DURABLE, "ana") == make_parked(6, journal=(Failure(at=6.0, error="boom"),))
    assert dump(path)["failures"] == [(DURABLE, 6, 6.0, "boom")]


def test_parked_message_is_read_with_its_own_failures_in_order(store: SqliteStore) -> None:
    """Each failed attempt is one line of the message's journal; another message's and durable's are not in it."""
    for at in (1.0, 2.0, 3.5):
        for seq, durable in ((5, DURABLE), (6, DURABLE), (5, "other")):
            failure = Failure(at=at, error=f"{durable} {seq} at {at:g}")
            parked = make_parked(seq, durable=durable)
            commit(store, make_change(seq, durable=durable, parked=parked, failure=failure))
    journal = tuple(Failure(at=at, error=f"{DURABLE} 5 at {at:g}") for at in (1.0, 2.0, 3.5))
    assert store.fetch_parked(DURABLE, "ana") == make_parked(5, journal=journal)


def test_parked_again_after_a_retry_keeps_its_journal(store: SqliteStore) -> None:
    """The journal is read with a message and not written with it: an attempt that was no failure changes none of it."""
    commit(store, make_change(5, parked=make_parked(5), failure=Failure(at=1.0, error="boom")))
    found = store.fetch_parked(DURABLE, "ana")
    assert found is not None
    commit(store, make_change(5, parked=attrs.evolve(found, attempts=2)))
    again = store.fetch_parked(DURABLE, "ana")
    assert again == attrs.evolve(found, attempts=2) and again.journal == (Failure(at=1.0, error="boom"),)


def test_outbox_is_read_in_commit_order_and_emptied_row_by_row(store: SqliteStore) -> None:
    """Events are listed in the order of commits and read one by one; a sent one goes, an unknown one does no harm."""
    odd = make_outbox_row(2, payload=b"\x00\xff", headers={"A": "ü", "B": ""}, lane="d:\x00", created=2.25)
    commit(store, make_change(1, outbox=[make_outbox_row(10), odd]), make_change(2, outbox=[make_outbox_row(1)]))
    assert store.fetch_outbox() == [make_outbox_row(10).entry, odd.entry, make_outbox_row(1).entry]
    assert store.fetch_outbox(before=2.0) == [make_outbox_row(10).entry, make_outbox_row(1).entry]
    assert (odd.entry.size_bytes, store.fetch_outbox_row("id-2")) == (2, odd)
    commit(store, sent=("id-2", "id-99"))
    assert [row.id for row in store.fetch_outbox()] == ["id-10", "id-1"]
    assert store.fetch_outbox_row("id-2") is None


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(make_change(3, outbox=[make_outbox_row(50)]), id="id-taken"),
        pytest.param(make_change(3, puts=[("t", "\ud800", b"{}")]), id="lone-surrogate"),
        pytest.param(make_change(3, puts=[("t", "k", b"\xff")]), id="row-no-text"),
        pytest.param(make_change(3, adds=[("profiles", "names", "n", 1)]), id="sum-of-no-number"),
        pytest.param(make_change(2**63), id="sequence-beyond-64-bits"),
    ],
)
def test_commit_that_fails_writes_nothing(store: SqliteStore, path: Path, bad: Change) -> None:
    """One change that can't be stored takes back the whole batch, and the store goes on."""
    commit(store, make_change(1, puts=[("profiles", "names", b'{"n":"ana"}')], outbox=[make_outbox_row(50)]))
    before = dump(path)
    with pytest.raises(StoreError) as caught:
        commit(store, everything(2), bad, floor=make_floor(1), sent=("id-50",))
    assert (type(caught.value), caught.value.path) == (StoreError, path)
    assert dump(path) == before
    commit(store, everything(2), sent=("id-50",))
    assert [row.id for row in store.fetch_outbox()] == ["id-2"]


def test_commit_on_a_full_disk_writes_nothing(store: SqliteStore, path: Path) -> None:
    """Without room the store says unwritable, an empty probe commit too; with room the same batch is taken."""
    commit(store, everything(1))
    before = dump(path)
    with full_disk(path.with_name("state.db-wal").stat().st_size):
        with pytest.raises(StoreUnwritable, match=r"state\.db: can't be read or written"):
            commit(store, everything(2), sent=("id-1",))
        with pytest.raises(StoreUnwritable):
            commit(store)
        assert store.fetch_row("profiles", "ana") == b'{"n":1}'
    assert dump(path) == before
    commit(store, everything(2), sent=("id-1",))
    assert store.fetch_row("days", "monday") == b'{"count":2}'


def test_commit_of_nothing_writes_all_the_same(store: SqliteStore, path: Path) -> None:
    """An empty commit changes the database, each time anew, and nothing that anybody reads: it proves the disk."""
    commit(store, everything(1))
    before = dump(path)
    sizes = []
    for _ in range(2):
        commit(store)
        sizes.append(path.with_name("state.db-wal").stat().st_size)
    after = dump(path)
    assert {name for name in after if after[name] != before[name]} == {"meta"}
    assert sizes[0] < sizes[1]


def test_claim_binds_the_store_to_one_prefix(path: Path) -> None:
    """The first prefix stays the store's, through any opening; another one is refused with both names, and no row."""
    for _ in range(2):
        store = SqliteStore(path)
        store.claim("mine")
        store.close()
    store = SqliteStore(path)
    before = dump(path)
    with pytest.raises(StoreError, match="NATS_DURABLE_PREFIX 'mine', not 'other': every message would be applied twi"):
        store.claim("other")
    assert dump(path) == before
    store.claim("mine")
    store.close()


def test_claim_on_a_full_disk_is_unwritable(store: SqliteStore, path: Path) -> None:
    """A prefix that can't be written is not taken for bound; with room again it is."""
    with full_disk(path.with_name("state.db-wal").stat().st_size), pytest.raises(StoreUnwritable):
        store.claim("mine")
    store.claim("other")


def test_commit_by_a_former_owner_is_fenced(store: SqliteStore, path: Path) -> None:
    """Once another one has opened the store, the older owner writes nothing any more, not even a probe."""
    commit(store, everything(1))
    newer = SqliteStore(path)
    before = dump(path)
    for changes in ([everything(2)], []):
        with pytest.raises(StoreFenced, match="another process has taken this store over"):
            commit(store, *changes, sent=("id-1",))
    assert dump(path) == before
    commit(newer, everything(2))
    newer.close()


def test_store_on_a_full_disk_does_not_open(store: SqliteStore, path: Path) -> None:
    """A store that can't take its epoch is unwritable, and its owner stays the owner."""
    commit(store, make_change(1, puts=[("t", str(n), b'"%s"' % (b"x" * 500)) for n in range(300)]))
    size = path.with_name("state.db-wal").stat().st_size
    assert size > 65_536
    with full_disk(65_536), pytest.raises(StoreUnwritable):
        SqliteStore(path)
    commit(store, make_change(2))


def test_store_damaged_or_newer_is_left_as_it_was(path: Path) -> None:
    """A database that is not ours or is too new stops the opening; its bytes stay, no epoch is taken."""
    SqliteStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("pragma user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreNewer):
        SqliteStore(path)
    assert path.read_bytes() == before
    path.write_bytes(damaged := b"x" + before[1:])
    with pytest.raises(StoreCorrupt):
        SqliteStore(path)
    assert path.read_bytes() == damaged


def test_store_without_its_tables_is_a_store_error(store: SqliteStore, path: Path) -> None:
    """What SQLite refuses to read is an error of ours, through the store and through a reader."""
    reader = SqliteReader(path)
    connection = sqlite3.connect(path, isolation_level=None)
    for table in ("rows", "outbox"):
        connection.execute(f"drop table {table}")
    connection.close()
    for call in (
        lambda: store.fetch_row("t", "k"),
        store.fetch_outbox,
        lambda: store.fetch_outbox_row("id-1"),
        lambda: reader.fetch_row("t", "k"),
        reader.count_rows,
    ):
        with pytest.raises(StoreError, match="no such table"):
            call()
    reader.close()


def test_reader_sees_commits_as_they_come(store: SqliteStore, path: Path) -> None:
    """A reader that is open already reads each new commit, with its stream and sequence."""
    reader = SqliteReader(path)
    assert reader.fetch_row("t", "k") is None
    commit(store, make_change(7, puts=[("t", "k", b'{"a":[1,null]}')]))
    row = StoredRow(table="t", key="k", row={"a": [1, None]}, stream="SIGNALS", stream_seq=7)
    assert reader.fetch_row("t", "k") == row
    assert (reader.fetch_row("t", "K"), reader.fetch_row("u", "k")) == (None, None)
    reader.close()


def test_reader_lists_a_table_page_by_page(store: SqliteStore, path: Path) -> None:
    """Pages follow the key, begin after the last one given, and hold one table only."""
    keys = ["", "10", "9", "B", "a", "ä"]
    commit(store, make_change(1, puts=[(table, key, b"{}") for key in reversed(keys) for table in ("t", "u")]))
    reader = SqliteReader(path)
    pages = [
        reader.list_rows("t", limit=4),
        reader.list_rows("t", after="B", limit=4),
        reader.list_rows("t", after="ä"),
    ]
    assert [[row.key for row in page] for page in pages] == [keys[:4], keys[4:], []]
    assert {row.table for row in pages[0]} == {"t"}
    assert reader.count_rows() == {"t": len(keys), "u": len(keys)}
    reader.close()


def test_reader_without_a_database_is_a_store_error(path: Path) -> None:
    """Reading what is not there neither makes a file nor leaks SQLite's own error."""
    with pytest.raises(StoreUnwritable):
        SqliteReader(path)
    assert not path.exists()


@attrs.define
class Model:
    """What a store should hold, kept the simple way."""

    rows: dict[str, bytes] = attrs.field(factory=dict)
    sums: dict[str, dict[str, int]] = attrs.field(factory=dict)
    parked: dict[int, str] = attrs.field(factory=dict)
    outbox: list[str] = attrs.field(factory=list)

    def apply(self, change: Change) -> None:
        """Applies one change."""
        for _, key, row in change.puts:
            self.rows.pop(key, None)
            if row is not None:
                self.rows[key] = row
        for _, key, field, n in change.adds:
            fields = self.sums.setdefault(key, {})
            fields[field] = fields.get(field, 0) + n
        if change.parked:
            self.parked[change.seq] = change.parked.lane
        if change.unparked:
            self.parked.pop(change.seq, None)
        self.outbox.extend(row.id for row in change.outbox)


KEYS = st.sampled_from(["a", "b", "\x00", "../c"])


@st.composite
def batches(draw: st.DrawFn) -> list[list[Change]]:
    """Batches of changes to a few rows, counters, lanes and events."""
    events = iter(range(1, 1000))
    puts = st.lists(st.tuples(st.just("rows"), KEYS, st.none() | st.integers().map(b"%d".__mod__)), max_size=3)
    adds = st.lists(st.tuples(st.just("sums"), KEYS, st.sampled_from("xy"), st.integers()), max_size=3)
    result: list[list[Change]] = []
    for _ in range(draw(st.integers(1, 5))):
        batch = []
        for seq in draw(st.lists(st.integers(1, 6), max_size=6)):
            waits = draw(st.sampled_from(["no", "park", "unpark"]))
            outbox: list[OutboxRow] = [make_outbox_row(next(events)) for _ in range(draw(st.integers(0, 2)))]
            lane = f"lane-{seq % 3}"
            parked = make_parked(seq, lane=lane) if waits == "park" else None
            change = make_change(seq, puts=draw(puts), adds=draw(adds), outbox=outbox, parked=parked)
            change.unparked = waits == "unpark"
            batch.append(change)
        result.append(batch)
    return result


@settings(max_examples=30, deadline=None)
@given(batches())
def test_store_agrees_with_a_model(history: list[list[Change]]) -> None:
    """For any history, however it is cut into batches, the store holds what applying change by change gives."""
    model = Model()
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "state.db")
        for batch in history:
            commit(store, *batch)
            for change in batch:
                model.apply(change)
        rows = {key: store.fetch_row("rows", key) for key in ("a", "b", "\x00", "../c")}
        sums = {key: store.fetch_row("sums", key) for key in ("a", "b", "\x00", "../c")}
        lanes, outbox = store.load(DURABLE).lanes, store.fetch_outbox()
        store.close()
    assert {key: row for key, row in rows.items() if row is not None} == model.rows
    assert {key: msgspec.json.decode(row) for key, row in sums.items() if row is not None} == model.sums
    waiting = list(model.parked.values())
    assert {lane: parked.count for lane, parked in lanes.items()} == {lane: waiting.count(lane) for lane in waiting}
    assert [row.id for row in outbox] == model.outbox


def test_note_of_a_start_outlives_an_unclean_end(path: Path) -> None:
    """What was noted as running when a process ended without saying so has one more crash on its account."""
    for crashes in ({}, {7: 1}, {7: 2}):
        store = SqliteStore(path)
        assert store.load(DURABLE).crashes == crashes
        store.note_start(DURABLE, 7, crashes.get(7, 0))
        store.close()
    store = SqliteStore(path)
    assert (store.was_unclean, store.load(DURABLE).crashes, store.load("other").crashes) == (True, {7: 3}, {})
    store.close()
