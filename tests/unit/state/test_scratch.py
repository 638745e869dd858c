"""The rows of a replay: read back as written, bounded in memory, and gone at the end."""

import json
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_kit import commit
from streams_kit import full_disk, make_change

from models.errors import StoreError, StoreUnwritable
from state import scratch as scratch_module
from state.scratch import Scratch
from state.sqlite import SqliteStore

KEYS = st.sampled_from(["a", "b", "c"])
PUTS = st.tuples(st.just("put"), KEYS, st.none() | st.integers(0, 9))
ADDS = st.tuples(st.just("add"), KEYS, st.integers(-9, 9))
FLUSHES = st.tuples(st.just("flush"), st.just(""), st.just(0))


@given(st.lists(PUTS | ADDS | FLUSHES, max_size=30))
def test_scratch_reads_back_what_was_written(steps: list[tuple[str, str, int | None]]) -> None:
    """Rows and counters are those of a dict, whenever the memory was written to the database."""
    rows: dict[str, bytes] = {}
    counts: dict[str, int] = {}
    with Scratch() as scratch:
        for seq, (verb, key, n) in enumerate(steps):
            if verb == "flush":
                scratch.flush()
            elif verb == "add":
                counts[key] = counts.get(key, 0) + (n or 0)
                scratch.add(("counts", key), "n", n or 0, "S", seq)
            else:
                row = None if n is None else str(n).encode()
                rows = {name: value for name, value in (rows | {key: row or b""}).items() if value}
                scratch.put(("rows", key), row, "S", seq)
            assert scratch.fetch("rows", key) == rows.get(key)
            found = scratch.fetch("counts", key)
            assert (json.loads(found)["n"] if found else None) == counts.get(key)
        scratch.flush()
        assert list(scratch.rows("rows")) == sorted(rows.items())
        assert {key: json.loads(row)["n"] for key, row in scratch.rows("counts")} == counts


def test_scratch_keeps_which_message_wrote_a_row() -> None:
    """Stream and sequence of the last write stand beside the row in the database."""
    with Scratch() as scratch:
        scratch.put(("rows", "a"), b"{}", "S", 1)
        scratch.put(("rows", "a"), b"[]", "S", 2)
        scratch.add(("counts", "a"), "n", 1, "S", 3)
        scratch.flush()
        found = sqlite3.connect(scratch.path).execute("select key, row, stream, seq from rows order by 4").fetchall()
    assert found == [("a", "[]", "S", 2), ("a", '{"n":1}', "S", 3)]


def test_scratch_says_when_it_is_time_to_flush() -> None:
    """It is full at its limit, and empty again after a flush."""
    with Scratch() as scratch:
        for number in range(scratch_module.LIMIT_COUNT):
            assert not scratch.is_full
            scratch.put(("rows", str(number)), b"{}", "S", number)
        assert scratch.is_full
        scratch.flush()
        assert not scratch.is_full


def test_scratch_begins_with_the_rows_of_a_snapshot(tmp_path: Path) -> None:
    """One table of another database is taken over, counters go on from there, and the other tables stay behind."""
    store = SqliteStore(tmp_path / "state.db")
    puts = [("counts", "a", b'{"n":4,"m":1}'), ("rows", "b", b'{"x":1}'), ("others", "c", b"{}")]
    commit(store, make_change(1, puts=puts))
    store.close()
    with Scratch() as scratch:
        for table in ("counts", "rows"):
            scratch.load(tmp_path / "state.db", table)
        scratch.add(("counts", "a"), "n", 2, "S", 2)
        assert scratch.fetch("counts", "a") == b'{"n":6,"m":1}'
        assert scratch.fetch("rows", "b") == b'{"x":1}'
        assert scratch.fetch("others", "c") is None


def test_scratch_leaves_nothing_behind() -> None:
    """On leaving, after an error too, the database is gone."""
    with pytest.raises(ValueError, match="end"), Scratch() as scratch:
        assert scratch.path.exists()
        raise ValueError("end")
    assert not scratch.path.parent.exists()


def test_scratch_names_a_store_that_can_not_be_loaded(tmp_path: Path) -> None:
    """A snapshot that is no database of ours is one error of the store."""
    (tmp_path / "state.db").write_bytes(b"no database at all, but long enough to look at" * 100)
    with Scratch() as scratch, pytest.raises(StoreError, match=r"state\.db"):
        scratch.load(tmp_path / "state.db", "rows")


def test_scratch_says_that_the_disk_is_full() -> None:
    """Rows that don't fit any more end in an error that names the disk, not in a traceback of SQLite."""
    with Scratch() as scratch:
        for number in range(100):
            scratch.put(("rows", str(number)), b'"' + b"x" * 1000 + b'"', "S", number)
        with full_disk(16_384), pytest.raises(StoreUnwritable):
            scratch.flush()


def test_scratch_names_itself_when_a_snapshot_does_not_fit(tmp_path: Path) -> None:
    """It is the temporary folder that is full, and not the store, which is only read."""
    store = SqliteStore(tmp_path / "state.db")
    commit(store, make_change(1, puts=[("t", str(n), b'"%s"' % (b"x" * 1000)) for n in range(100)]))
    store.close()
    with Scratch() as scratch, full_disk(40_000), pytest.raises(StoreUnwritable, match=r"scratch\.db"):
        scratch.load(store.path, "t")


def test_scratch_names_a_temporary_folder_that_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a place for temporary files the error says where one was looked for."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(StoreUnwritable, match="no scratch store can be made"), Scratch():
        pass
