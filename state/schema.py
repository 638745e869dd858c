"""The SQLite schema, how a database is made, and how one is examined before anything touches it.

A new database is built in a folder beside its final name, which it gets when it is whole; of two processes that make
one at once, the first wins. An existing one is examined through a read-only connection: a damaged database, one of
another program, or one that a newer version wrote is named and left exactly as it was found.
"""

import os
import sqlite3
import tempfile
import uuid
from pathlib import Path

from models.errors import StoreCorrupt, StoreError, StoreNewer, StoreUnwritable

SCHEMA_VERSION = 1
APPLICATION_ID = 0x74697073  # "tips"

SCHEMA = """
create table meta (name text primary key, value text not null) without rowid;
create table owner (id integer primary key check (id = 1), epoch integer not null);
insert into owner values (1, 0);
create table rows (
    table_name text not null, key text not null, row text not null, stream text not null, seq integer not null,
    primary key (table_name, key)) without rowid;
create table floors (
    durable text primary key, stream text not null, created text not null, seq integer not null, ts integer not null
) without rowid;
create table marks (durable text not null, seq integer not null, ts integer not null,
    primary key (durable, seq)) without rowid;
create table ledger (durable text not null, segment integer not null, bits blob not null,
    again integer not null, primary key (durable, segment));
create table parked (
    durable text not null, seq integer not null, ts integer not null, lane text not null, subject text not null,
    payload blob not null, due real not null, since real not null, failures integer not null,
    attempts integer not null, is_redriven integer not null, primary key (durable, seq));
create index parked_lane on parked (durable, lane, seq);
create table tried (
    durable text not null, seq integer not null, due real not null, since real not null, failures integer not null,
    attempts integer not null, primary key (durable, seq)) without rowid;
create table failures (durable text not null, seq integer not null, at real not null, error text not null);
create index failures_message on failures (durable, seq);
create table dead (
    durable text not null, seq integer not null, ts integer not null, handler text not null, at real not null,
    error text not null, state text not null, redrives integer not null, resolved_at real, note text not null,
    primary key (durable, seq)) without rowid;
create table peeks (
    durable text not null, seq integer not null, n integer not null, name text not null, key text not null,
    value text, primary key (durable, seq, n)) without rowid;
create table since (durable text not null, subject text not null, seq integer not null,
    primary key (durable, subject)) without rowid;
create table gone (
    durable text not null, first_seq integer not null, last_seq integer not null, what text not null, at real not null,
    primary key (durable, first_seq, what)) without rowid;
create table started (
    durable text not null, seq integer not null, crashes integer not null, runner text not null,
    primary key (durable, seq)) without rowid;
create table outbox (
    n integer primary key autoincrement, id text not null unique, lane text not null, subject text not null,
    payload blob not null, headers text not null, created real not null);
"""


def has_database(path: Path) -> bool:
    """Whether there is a file at ``path``, of whatever kind.

    Raises:
        StoreUnwritable: nobody can tell, for the folder can't be entered.
    """
    try:
        return path.exists()
    except OSError as error:
        raise StoreUnwritable(path.parent, f"can't be entered ({error})") from error


def create_database(path: Path) -> None:
    """Creates an empty store with a new identity, unless one is there, or another process is faster.

    Raises:
        StoreCorrupt: the database is gone and its log is not; SQLite would replay that log into the new one.
        StoreUnwritable: the folder can't be written.
    """
    if has_database(path):
        return
    _refuse_lone_log(path)
    try:
        with tempfile.TemporaryDirectory(prefix=f"{path.name}.", suffix=".new", dir=path.parent) as folder:
            building = Path(folder, path.name)
            _build(building)
            _publish(building, path)
    except (OSError, sqlite3.Error) as error:
        raise StoreUnwritable(path.parent, f"can't create the store ({error})") from error


def _build(path: Path) -> None:
    """Makes a whole database, on the disk."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute(f"pragma application_id = {APPLICATION_ID}")
        connection.execute(f"pragma user_version = {SCHEMA_VERSION}")
        connection.execute("pragma journal_mode = wal")
        connection.executescript(SCHEMA)
        connection.execute("insert into meta values ('store_id', ?), ('ended', 'clean')", (uuid.uuid4().hex,))
    finally:
        connection.close()
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _refuse_lone_log(path: Path) -> None:
    """Refuses a log without its database; that of a database which another process has just made is none."""
    wal = path.with_name(path.name + "-wal")
    try:
        has_content = wal.stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return
    if has_content and not has_database(path):
        raise StoreCorrupt(path, f"is gone, but its log {wal.name} is there: restore it, or move the log away as well")


def _publish(building: Path, path: Path) -> None:
    """Gives a finished file its name, for good; another process that was faster is no error."""
    try:
        os.link(building, path)
    except FileExistsError:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def connect_readonly(path: Path, *, busy_s: float = 5) -> sqlite3.Connection:
    """Opens a connection that can't change the database; each statement sees what is committed at its start.

    Raises:
        StoreError: it can't be opened.
    """
    quoted = str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    uri = f"file:{quoted}?mode=ro"
    try:
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=busy_s)
    except sqlite3.Error as error:
        raise translate(path, error) from error


def examine_database(path: Path, *, is_deep: bool = True) -> str:
    """Checks the database without changing it.

    Args:
        is_deep: read every page; otherwise the header and the identity only.

    Returns:
        The store's identity.

    Raises:
        StoreNewer: its schema is newer than ours.
        StoreCorrupt: it is damaged, or no database of ours.
        StoreUnwritable: it can't be opened at all.
    """
    try:
        connection = connect_readonly(path)
        try:
            application_id = connection.execute("pragma application_id").fetchone()[0]
            version = connection.execute("pragma user_version").fetchone()[0]
            if application_id != APPLICATION_ID:
                raise StoreCorrupt(path, "is no store of tipstream, or its header is damaged; it was left as it is")
            if version > SCHEMA_VERSION:
                raise StoreNewer(
                    path,
                    f"has schema version {version}, this program knows {SCHEMA_VERSION}: run the version that wrote it,"
                    " or set another STATE_DIR; it was left as it is",
                )
            findings = [row[0] for row in connection.execute("pragma quick_check(3)")] if is_deep else ["ok"]
            if findings != ["ok"]:
                found = " ".join("; ".join(findings).split())
                raise StoreCorrupt(path, f"is damaged ({found}); it was left as it is")
            return str(connection.execute("select value from meta where name = 'store_id'").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise translate(path, error) from error
    except (sqlite3.DatabaseError, TypeError) as error:
        raise StoreCorrupt(path, f"is damaged ({error}); it was left as it is") from error


OF_DURABLES = ("floors", "marks", "ledger", "parked", "tried", "failures", "dead", "peeks", "since", "gone", "started")
"""The tables whose rows belong to a durable."""

_MISUSE = (sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.IntegrityError)


def translate(path: Path, error: sqlite3.Error) -> StoreError:
    """Maps SQLite's error to ours: what a value has caused is a plain StoreError, all else is the store's trouble."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreCorrupt(path, f"is damaged ({error}); it was left as it is")
    if isinstance(error, _MISUSE):
        return StoreError(path, f"{type(error).__name__}: {error}")
    return StoreUnwritable(path, f"can't be read or written ({error})")
