"""How a database is made, and how a damaged, foreign or newer one is named and left as it was."""

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from streams_kit import full_disk

from models.errors import StoreCorrupt, StoreError, StoreNewer, StoreUnwritable
from state.schema import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    connect_readonly,
    create_database,
    examine_database,
    has_database,
    translate,
)

PAGE_BYTES = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole database with some hundred rows, its log folded in."""
    path = tmp_path / "state.db"
    create_database(path)
    _fill(path).close()
    return path


def _fill(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("begin")
    rows = [("t", f"{n:04}", "x" * 200, "S", n) for n in range(300)]
    connection.executemany("replace into rows values (?, ?, ?, ?, ?)", rows)
    connection.execute("commit")
    return connection


def _bytes(folder: Path) -> dict[str, bytes]:
    """Every file that holds data: no shared memory, and no empty log, which any reader leaves."""
    files = {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}
    return {name: data for name, data in files.items() if data}


def test_database_new_is_whole_and_empty(tmp_path: Path) -> None:
    """A new database is in WAL mode, carries our marks and an identity, and nothing else lies in the folder."""
    path = tmp_path / "state.db"
    create_database(path)
    assert [file.name for file in tmp_path.iterdir()] == ["state.db"]
    assert len(examine_database(path)) == 32
    connection = connect_readonly(path)
    pragmas = [connection.execute(f"pragma {name}").fetchone()[0] for name in ("journal_mode", "user_version")]
    connection.close()
    assert pragmas == ["wal", SCHEMA_VERSION]


def test_database_new_has_an_identity_of_its_own(tmp_path: Path) -> None:
    """No two stores share an identity."""
    for name in ("a", "b"):
        create_database(tmp_path / name)
    assert examine_database(tmp_path / "a") != examine_database(tmp_path / "b")


def test_database_that_exists_is_kept(path: Path) -> None:
    """Creating it again changes no byte."""
    before = _bytes(path.parent)
    create_database(path)
    assert _bytes(path.parent) == before


def test_database_half_built_does_no_harm(path: Path, tmp_path: Path) -> None:
    """What a crash during a creation left beside the final name, log included, is not taken for the store's."""
    writer = _fill(path)
    folder = tmp_path / "crashed"
    half = folder / "state.db.0.new"
    half.mkdir(parents=True)
    (half / "state.db").write_bytes(b"half")
    (half / "state.db-wal").write_bytes(path.with_name("state.db-wal").read_bytes())
    writer.close()
    create_database(folder / "state.db")
    connection = connect_readonly(folder / "state.db")
    assert connection.execute("select count(*) from rows").fetchone() == (0,)
    connection.close()


def test_database_made_by_many_at_once_is_one(tmp_path: Path) -> None:
    """All who create the store at the same time succeed and find one identity, and nothing half made is left."""
    path, start = tmp_path / "state.db", threading.Barrier(6)

    def create() -> str:
        start.wait()
        create_database(path)
        return examine_database(path)

    with ThreadPoolExecutor(6) as pool:
        found = [pool.submit(create) for _ in range(6)]
    assert len({store_id.result() for store_id in found}) == 1
    assert list(_bytes(tmp_path)) == ["state.db"]


class SeenTooEarly(type(Path())):  # type: ignore[misc]  # the class of paths is the platform's
    """A path at which there was nothing yet when it was first looked at."""

    looks = 0

    def exists(self) -> bool:
        """Misses the file once."""
        self.looks += 1
        return self.looks > 1 and super().exists()


def test_database_of_a_faster_process_wins(path: Path) -> None:
    """A database that appears while another one is built stays, already in use or not, and the other is dropped."""
    before = _bytes(path.parent)
    create_database(SeenTooEarly(path))
    assert _bytes(path.parent) == before
    writer = _fill(path)
    before = _bytes(path.parent)
    assert sorted(before) == ["state.db", "state.db-wal"]
    create_database(SeenTooEarly(path))
    assert _bytes(path.parent) == before
    writer.close()


def test_database_gone_beside_its_log_is_not_made_anew(path: Path) -> None:
    """A log without its database would be replayed into the new one: it is refused and left."""
    writer = _fill(path)
    path.unlink()
    before = _bytes(path.parent)
    assert list(before) == ["state.db-wal"]
    with pytest.raises(StoreCorrupt, match=r"state\.db: is gone, but its log state\.db-wal is there"):
        create_database(path)
    assert _bytes(path.parent) == before
    writer.close()


def test_database_in_a_folder_that_is_none_is_unwritable(tmp_path: Path) -> None:
    """A STATE_DIR that is missing or a file is named."""
    with pytest.raises(StoreUnwritable, match="missing: can't create the store"):
        create_database(tmp_path / "missing" / "state.db")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnwritable, match="file: can't create the store"):
        create_database(tmp_path / "file" / "state.db")


def test_database_in_a_folder_that_can_not_be_entered_is_unwritable(tmp_path: Path) -> None:
    """Where nobody can tell whether there is a database, it is neither taken for missing nor a bare system error."""
    folder = tmp_path / ("x" * 300)  # too long a name: the system refuses to look, for root as well
    for look in (has_database, create_database):
        with pytest.raises(StoreUnwritable, match=r"can't be entered \(") as caught:
            look(folder / "state.db")
        assert caught.value.path == folder


@pytest.mark.parametrize("page_count", [1, 2, 8])
def test_database_on_a_full_disk_is_not_left_half_made(tmp_path: Path, page_count: int) -> None:
    """Without room for the whole schema nothing at all is left, nor piles up; with room again there is a database."""
    with full_disk(page_count * PAGE_BYTES), pytest.raises(StoreUnwritable, match="can't create the store"):
        create_database(tmp_path / "state.db")
    assert list(tmp_path.iterdir()) == []
    create_database(tmp_path / "state.db")
    assert examine_database(tmp_path / "state.db")


def _header(path: Path) -> None:
    path.write_bytes(b"not at all SQLite" + path.read_bytes()[17:])


def _page_size(path: Path) -> None:
    _flip(path, 16, 4)


def _every_leaf(path: Path) -> None:
    for start in range(2 * PAGE_BYTES, path.stat().st_size, PAGE_BYTES):
        _flip(path, start, 64)


def _every_leaf_of_rows(path: Path) -> None:
    """Damages the pages that the rows have come to fill, behind those of the empty schema."""
    for start in range(path.stat().st_size // 2, path.stat().st_size, PAGE_BYTES):
        _flip(path, start - start % PAGE_BYTES, 64)


def _flip(path: Path, start: int, count: int) -> None:
    data = bytearray(path.read_bytes())
    data[start : start + count] = bytes(byte ^ 0xFF for byte in data[start : start + count])
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _foreign(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("create table notes (text)")
    connection.close()


def _without_meta(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("delete from meta")
    connection.close()


DAMAGES = [
    pytest.param(_header, id="header"),
    pytest.param(_page_size, id="page-size"),
    pytest.param(lambda path: _flip(path, 100, 60), id="schema-page"),
    pytest.param(_every_leaf, id="flipped-bytes"),
    pytest.param(lambda path: _flip(path, path.stat().st_size - PAGE_BYTES + 8, 40), id="flipped-cell-pointers"),
    pytest.param(_truncate, id="truncated"),
    pytest.param(lambda path: path.write_bytes(b""), id="zero-length"),
    pytest.param(lambda path: path.write_text("user,days\nana,3\n" * 500), id="text"),
    pytest.param(lambda path: path.write_bytes(bytes(8 * PAGE_BYTES)), id="zeros"),
    pytest.param(_foreign, id="foreign-database"),
    pytest.param(_without_meta, id="no-identity"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_examine_names_damage_and_leaves_it(path: Path, damage: Callable[[Path], object]) -> None:
    """A damaged or foreign database is StoreCorrupt, says so with its path, and no byte of the folder changes."""
    damage(path)
    before = _bytes(path.parent)
    with pytest.raises(StoreCorrupt, match="it was left as it is$") as caught:
        examine_database(path)
    assert caught.value.path == path
    assert "\n" not in str(caught.value)
    assert _bytes(path.parent) == before


def test_examine_in_short_reads_the_header_and_the_identity_only(path: Path) -> None:
    """A short look takes as long for any store: it finds the identity, and leaves damaged rows to the full one."""
    store_id = examine_database(path)
    _every_leaf_of_rows(path)
    with pytest.raises(StoreCorrupt):
        examine_database(path)
    assert examine_database(path, is_deep=False) == store_id


@pytest.mark.parametrize("damage", [_header, _foreign, _without_meta], ids=lambda damage: damage.__name__)
def test_examine_in_short_refuses_what_is_no_store(path: Path, damage: Callable[[Path], object]) -> None:
    """A short look still refuses another program's database, a broken header and a lost identity."""
    damage(path)
    with pytest.raises(StoreCorrupt, match="it was left as it is$"):
        examine_database(path, is_deep=False)


def test_examine_of_a_database_without_our_tables_is_a_store_error(path: Path) -> None:
    """A database that carries our mark and lacks a table is named, and no byte of the folder changes."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("drop table meta")
    connection.close()
    before = _bytes(path.parent)
    with pytest.raises(StoreError, match="no such table: meta"):
        examine_database(path)
    assert _bytes(path.parent) == before


def test_examine_leaves_a_log_beside_a_damaged_database(path: Path, tmp_path: Path) -> None:
    """The log of a killed writer stays byte for byte too, when the database below it is damaged."""
    writer = _fill(path)
    writer.execute("pragma wal_checkpoint(truncate)")
    writer.execute("update owner set epoch = 7")
    killed = tmp_path / "killed"
    killed.mkdir()
    for file in (path, path.with_name("state.db-wal")):
        (killed / file.name).write_bytes(file.read_bytes())
    writer.close()
    _every_leaf(killed / "state.db")
    before = _bytes(killed)
    assert len(before["state.db-wal"]) > PAGE_BYTES
    with pytest.raises(StoreCorrupt):
        examine_database(killed / "state.db")
    assert _bytes(killed) == before


def test_examine_reads_a_log_that_a_killed_writer_left(path: Path, tmp_path: Path) -> None:
    """An intact database with a log is no damage, and examining it does not fold the log in."""
    store_id = examine_database(path)
    writer = _fill(path)
    killed = tmp_path / "killed"
    killed.mkdir()
    for file in (path, path.with_name("state.db-wal")):
        (killed / file.name).write_bytes(file.read_bytes())
    writer.close()
    before = _bytes(killed)
    assert examine_database(killed / "state.db") == store_id
    assert _bytes(killed) == before


def test_examine_refuses_a_newer_schema_and_leaves_it(path: Path) -> None:
    """A schema of a later version is named with both versions; nothing is migrated down."""
    connection = sqlite3.connect(path)
    connection.execute(f"pragma user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    before = _bytes(path.parent)
    with pytest.raises(StoreNewer, match=f"schema version {SCHEMA_VERSION + 1}, this program knows {SCHEMA_VERSION}:"):
        examine_database(path)
    assert _bytes(path.parent) == before


def test_examine_without_a_file_makes_none(tmp_path: Path) -> None:
    """A database that is not there can't be read, and looking at it does not create it."""
    with pytest.raises(StoreUnwritable, match="can't be read or written"):
        examine_database(tmp_path / "state.db")
    assert list(tmp_path.iterdir()) == []


def test_readonly_connection_takes_no_write(path: Path) -> None:
    """Nothing can be written through it."""
    connection = connect_readonly(path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("delete from rows")
    connection.close()


def test_readonly_connection_to_a_folder_is_refused(tmp_path: Path) -> None:
    """What can't be opened at all is a store error."""
    with pytest.raises(StoreUnwritable):
        connect_readonly(tmp_path)


@pytest.mark.parametrize("name", ["a b", "a%41", "a?mode=rw", "a#b", "ü🙂", "a&b=c", "'; --"])
def test_database_lies_under_any_name(tmp_path: Path, name: str) -> None:
    """A path is data: signs that mean something in a URI are part of the name."""
    folder = tmp_path / name
    folder.mkdir()
    create_database(folder / "state.db")
    assert examine_database(folder / "state.db")
    assert sorted(file.name for file in tmp_path.iterdir()) == [name]


def _error_of(call: Callable[[], object]) -> sqlite3.Error:
    with pytest.raises(sqlite3.Error) as caught:
        call()
    return caught.value


def test_translate_of_a_locked_database_is_unwritable(path: Path) -> None:
    """A database that another process keeps locked takes no writes."""
    holder, other = sqlite3.connect(path, isolation_level=None), sqlite3.connect(path, timeout=0)
    holder.execute("begin immediate")
    error = _error_of(lambda: other.execute("update owner set epoch = 1"))
    assert type(translate(path, error)) is StoreUnwritable
    holder.close()
    other.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        pytest.param(sqlite3.SQLITE_FULL, StoreUnwritable, id="full"),
        pytest.param(sqlite3.SQLITE_IOERR_WRITE, StoreUnwritable, id="write-extended"),
        pytest.param(sqlite3.SQLITE_READONLY_DBMOVED, StoreUnwritable, id="moved-extended"),
        pytest.param(sqlite3.SQLITE_CANTOPEN, StoreUnwritable, id="cannot-open"),
        pytest.param(sqlite3.SQLITE_PROTOCOL, StoreUnwritable, id="lock-protocol"),
        pytest.param(sqlite3.SQLITE_NOMEM, StoreUnwritable, id="no-memory"),
        pytest.param(sqlite3.SQLITE_CORRUPT, StoreCorrupt, id="corrupt"),
        pytest.param(sqlite3.SQLITE_CORRUPT_INDEX, StoreCorrupt, id="corrupt-extended"),
        pytest.param(sqlite3.SQLITE_NOTADB, StoreCorrupt, id="no-database"),
        pytest.param(None, StoreUnwritable, id="no-code"),
    ],
)
def test_translate_takes_what_no_value_has_caused_for_the_stores_trouble(code: int | None, kind: type) -> None:
    """Damage is told by the low byte of SQLite's code; whatever else happens, the store can't be used for now."""
    error = sqlite3.OperationalError("what SQLite said")
    if code is not None:
        error.sqlite_errorcode = code
    found = translate(Path("state.db"), error)
    assert type(found) is kind
    assert "what SQLite said" in str(found)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(("t", "0001", "{}", "S", 1), id="key-taken"),
        pytest.param(("t", "new", None, "S", 1), id="null"),
        pytest.param(("t", object(), "{}", "S", 1), id="no-value-of-sql"),
        pytest.param(("t", "new", "{}", "S"), id="one-too-few"),
    ],
)
def test_translate_of_a_bad_value_is_a_plain_store_error(path: Path, values: tuple[object, ...]) -> None:
    """What a value has caused blames the change, not the store, which goes on."""
    connection = sqlite3.connect(path, isolation_level=None)
    error = _error_of(lambda: connection.execute("insert into rows values (?, ?, ?, ?, ?)", values))
    assert type(translate(path, error)) is StoreError
    connection.close()


def test_translate_of_a_value_beyond_sqlites_limit_is_a_plain_store_error(path: Path) -> None:
    """A text longer than the database takes is the value's fault too."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100)
    error = _error_of(lambda: connection.execute("insert into meta values ('x', ?)", ("x" * 101,)))
    assert type(translate(path, error)) is StoreError
    connection.close()


def test_application_id_spells_tips() -> None:
    """The mark in the file's header is what `file` would show."""
    assert APPLICATION_ID.to_bytes(4, "big") == b"tips"
