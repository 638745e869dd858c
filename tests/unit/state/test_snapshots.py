"""Snapshots: whole, of one moment, described, listed, pruned and set aside; nothing half made stays."""

import datetime as dt
import sqlite3
import threading
from pathlib import Path

import attrs
import pytest
from streams_kit import full_disk, make_change, make_floor

from models.errors import StoreCorrupt, StoreError, StoreUnwritable
from state.snapshots import Snapshot, count_positions, list_snapshots, prune, set_aside, take_snapshot
from state.sqlite import SqliteReader, SqliteStore

NEVER = 10_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one row, up to sequence 1."""
    path = tmp_path / "state.db"
    store = SqliteStore(path)
    change = make_change(1, puts=[("t", "ana", b'{"n":1}')])
    store.commit([change], [make_floor(1)], marks=[], sent=[])
    store.close()
    return path


def take(path: Path, reason: str = "asked", **tables: int) -> Snapshot:
    """Takes a snapshot into the folder beside the store."""
    folder = path.parent / "snapshots"
    return take_snapshot(path, folder, reason=reason, tables=tables, app_version="9")  # type: ignore[arg-type]


def test_snapshot_is_a_whole_store_with_its_facts(path: Path) -> None:
    """Rows and positions are in it, and who took it when, why, and with which versions; it is one file."""
    taken = take(path, signals=2)
    assert list_snapshots(taken.path.parent) == [taken]
    assert (taken.app_version, taken.tables, taken.reason) == ("9", {"signals": 2}, "asked")
    assert count_positions(taken) == {"tipstream-signals": 1}
    reader = SqliteReader(taken.path)
    row = reader.fetch_row("t", "ana")
    reader.close()
    assert row is not None and row.row == {"n": 1}
    assert [file.name for file in taken.path.parent.iterdir()] == [taken.path.name]
    assert taken.size_bytes == taken.path.stat().st_size


def test_snapshot_is_of_one_moment_while_the_owner_writes(path: Path) -> None:
    """Row, floor and ledger of a snapshot agree, whatever is committed meanwhile."""
    store, stop = SqliteStore(path), threading.Event()

    def write() -> None:
        for seq in range(2, NEVER):
            if stop.is_set():
                return
            change = make_change(seq, puts=[("t", "ana", b'{"n":%d}' % seq)])
            store.commit([change], [make_floor(seq)], marks=[], sent=[])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        snapshots = [take(path) for _ in range(5)]
    finally:
        stop.set()
        writer.join()
        store.close()
    for snapshot in snapshots:
        reader = SqliteReader(snapshot.path)
        row = reader.fetch_row("t", "ana")
        reader.close()
        assert row is not None and count_positions(snapshot) == {"tipstream-signals": row.row["n"]}


def test_snapshot_that_does_not_fit_leaves_nothing(path: Path) -> None:
    """On a full disk there is an error and no half copy."""
    store = SqliteStore(path)
    with full_disk(40_000), pytest.raises(StoreUnwritable, match="no snapshot could be taken"):
        take(path)
    store.close()
    assert list((path.parent / "snapshots").iterdir()) == []


def test_snapshot_that_would_fill_the_disk_is_not_begun(path: Path) -> None:
    """The store itself needs room to write; a copy that would take the last of it is refused with the numbers."""
    size = path.stat().st_size
    folder = path.parent / "snapshots"
    with pytest.raises(StoreUnwritable, match=f"it takes up to {size} bytes, and {2**62} have to stay free"):
        take_snapshot(path, folder, reason="daily", tables={}, app_version="9", keep_free_bytes=2**62)
    assert list(folder.iterdir()) == []


def test_snapshot_folder_that_can_not_be_made_is_named(path: Path) -> None:
    """A file where the folder should be is an error that names it."""
    (path.parent / "snapshots").touch()
    with pytest.raises(StoreUnwritable, match="snapshots: no snapshot could be taken"):
        take(path)


def test_left_over_of_a_killed_process_is_removed(path: Path) -> None:
    """What never got its name goes with the next snapshot."""
    folder = path.parent / "snapshots"
    folder.mkdir()
    (folder / "x.db.new").touch()
    (folder / "x.db.new-journal").touch()
    taken = take(path)
    assert list(folder.iterdir()) == [taken.path]


def test_damaged_and_foreign_files_are_left_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is no snapshot is no error; the log names it. A store without the facts is none either."""
    taken = take(path)
    (taken.path.parent / "bad.db").write_bytes(b"x" * 8192)
    (taken.path.parent / "store.db").write_bytes(path.read_bytes())
    assert list_snapshots(taken.path.parent) == [taken]
    assert [record.message for record in caplog.records] == ["not a snapshot"] * 2


def test_list_without_a_folder_is_empty(tmp_path: Path) -> None:
    """Before the first one there are none."""
    assert list_snapshots(tmp_path / "none") == []


def test_prune_keeps_the_newest_and_one_of_each_set_of_versions(path: Path) -> None:
    """The oldest go first, but the last one of an older version stays."""
    taken = [take(path, t=version) for version in (1, 1, 2, 3, 3, 3)]
    prune(path.parent / "snapshots", keep_count=2)
    assert list_snapshots(path.parent / "snapshots") == [taken[index] for index in (1, 2, 4, 5)]


def test_set_aside_snapshot_is_no_longer_listed(path: Path) -> None:
    """It keeps its content under another name; one that is gone is an error, and has no size."""
    taken = take(path)
    aside = set_aside(taken)
    assert (aside.name, aside.is_file()) == (f"{taken.path.name}.set-aside", True)
    assert list_snapshots(aside.parent) == []
    assert taken.size_bytes == 0
    with pytest.raises(StoreUnwritable, match="can't be renamed"):
        set_aside(taken)


def test_positions_of_a_damaged_snapshot_are_an_error(path: Path) -> None:
    """A file that is no database names itself."""
    bad = path.parent / "bad.db"
    bad.write_bytes(b"x" * 8192)
    with pytest.raises(StoreCorrupt, match=r"bad\.db"):
        count_positions(attrs.evolve(take(path), path=bad))


def test_rows_are_replaced_table_by_table(path: Path) -> None:
    """The rows of the named tables become those of the other database; other tables stay, and an error changes none."""
    source = path.parent / "source.db"
    connection = sqlite3.connect(source)
    connection.execute("create table rows (table_name, key, row, stream, seq)")
    connection.execute("insert into rows values ('t', 'bob', '{\"n\":2}', 'SIGNALS', 7), ('other', 'x', '{}', 'S', 1)")
    connection.commit()
    connection.close()
    store = SqliteStore(path)
    store.commit([make_change(2, puts=[("kept", "k", b"{}")])], [make_floor(2)], marks=[], sent=[])
    store.replace_rows(["t"], source)
    with pytest.raises(StoreError):
        store.replace_rows(["t"], path.parent / "no folder" / "x.db")
    assert [store.fetch_row(*place) for place in (("t", "ana"), ("t", "bob"), ("kept", "k"), ("other", "x"))] == [
        None,
        b'{"n":2}',
        b"{}",
        None,
    ]
    store.close()


def test_taken_at_is_an_instant_in_utc(path: Path) -> None:
    """The time has its zone."""
    assert take(path).taken_at.utcoffset() == dt.timedelta(0)
