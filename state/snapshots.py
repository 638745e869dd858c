"""Snapshots: whole copies of the store, each as it was at one moment, in ``STATE_DIR/snapshots``.

One is a database file like the store's own, with its facts in the table ``meta``. It gets its name when it is whole and
on the disk; what a killed process left half made is removed by the next one. When they are taken is decided in
streams/snapshotting.py; what they are good for, in streams/plan.py.
"""

import datetime as dt
import errno
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs
import msgspec

from models.errors import StoreError, StoreUnwritable
from state.schema import connect_readonly, examine_database, translate

log = logging.getLogger(__name__)

FOLDER = "snapshots"
KEEP_COUNT = 30
KEEP_FREE_BYTES = 64 * 1024 * 1024
"""What a snapshot leaves free on the disk: it must never be what keeps the store itself from writing."""

FACTS = "snapshot"

Reason = Literal["daily", "version", "asked", "before-rebuild"]


@attrs.frozen(kw_only=True)
class Snapshot:
    """A whole store as it was at one moment.

    Args:
        taken_at: aware, UTC.
        tables: the version of each subject table at that time.
        reason: ``before-rebuild`` ones keep what a rebuild replaced, and nothing is ever made again from them.
    """

    path: Path
    taken_at: dt.datetime
    store_id: str
    app_version: str
    tables: dict[str, int]
    reason: Reason

    @property
    def size_bytes(self) -> int:
        """The file's size; 0 when it is gone."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


@attrs.frozen(kw_only=True)
class _Facts:
    taken_at: dt.datetime
    app_version: str
    tables: dict[str, int]
    reason: Reason


def take_snapshot(
    store: Path,
    folder: Path,
    *,
    reason: Reason,
    tables: Mapping[str, int],
    app_version: str,
    keep_free_bytes: int = KEEP_FREE_BYTES,
) -> Snapshot:
    """Copies the store while its owner goes on writing, as of one moment.

    Raises:
        StoreUnwritable: it would leave less than ``keep_free_bytes`` on the disk, or the folder can't be written; no
            half copy is left.
        StoreError: the store can't be read.
    """
    taken_at = dt.datetime.now(dt.UTC)
    name = f"{taken_at:%Y%m%dT%H%M%S}.{taken_at.microsecond // 1000:03}Z-{reason}.db"
    building = folder / f"{name}.new"
    try:
        folder.mkdir(exist_ok=True)
        for left in folder.glob("*.new*"):
            left.unlink()
        store_id = examine_database(store, is_deep=False)
        _copy(store, building, keep_free_bytes)
        facts = _Facts(taken_at=taken_at, app_version=app_version, tables=dict(tables), reason=reason)
        _describe(building, facts)
        building.rename(folder / name)
        _sync(folder)
    except (OSError, sqlite3.Error) as error:
        raise StoreUnwritable(folder, f"no snapshot could be taken ({error})") from error
    finally:
        _remove(building)
    return Snapshot(path=folder / name, store_id=store_id, **attrs.asdict(facts))


def _remove(path: Path) -> None:
    """Removes what is half made; where even that fails, the next snapshot tries again."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.debug("left behind", extra={"fields": {"file": path.name, "error": str(error)}})


def _copy(store: Path, target: Path, keep_free_bytes: int) -> None:
    source = connect_readonly(store)
    try:
        pages, page_bytes = (source.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "page_size"))
        if shutil.disk_usage(target.parent).free < pages * page_bytes + keep_free_bytes:
            needed = f"it takes up to {pages * page_bytes} bytes, and {keep_free_bytes} have to stay free"
            raise OSError(errno.ENOSPC, needed)
        source.execute("vacuum into ?", (str(target),))
    finally:
        source.close()


def _describe(path: Path, facts: _Facts) -> None:
    """Writes the facts into the copy, as one file without a log beside it, and brings it to the disk."""
    copy = sqlite3.connect(path, isolation_level=None)
    try:
        copy.execute("pragma journal_mode = delete")
        copy.execute("replace into meta values (?, ?)", (FACTS, msgspec.json.encode(facts).decode()))
    finally:
        copy.close()
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_snapshots(folder: Path) -> list[Snapshot]:
    """The snapshots in a folder, the oldest first; a file that is damaged is left out, with a line in the log.

    Raises:
        StoreUnwritable: the folder can't be read.
    """
    try:
        found = sorted(folder.glob("*.db"))
    except OSError as error:
        raise StoreUnwritable(folder, f"can't be read ({error})") from error
    snapshots = [snapshot for path in found if (snapshot := _read(path))]
    return sorted(snapshots, key=lambda snapshot: snapshot.taken_at)


def _read(path: Path) -> Snapshot | None:
    try:
        store_id = examine_database(path, is_deep=False)
        connection = connect_readonly(path)
        try:
            text = connection.execute("select value from meta where name = ?", (FACTS,)).fetchone()[0]
        finally:
            connection.close()
        facts = msgspec.json.decode(text, type=_Facts)
    except (StoreError, sqlite3.Error, TypeError, msgspec.MsgspecError) as error:
        log.warning("not a snapshot", extra={"fields": {"file": path.name, "error": str(error)}})
        return None
    return Snapshot(path=path, store_id=store_id, **attrs.asdict(facts))


def prune(folder: Path, keep_count: int = KEEP_COUNT) -> None:
    """Removes the oldest snapshots beyond ``keep_count``; of each set of table versions the newest one stays.

    Raises:
        StoreUnwritable: one can't be removed.
    """
    snapshots = list_snapshots(folder)
    newest = {json.dumps(snapshot.tables, sort_keys=True): snapshot.path for snapshot in snapshots}
    for snapshot in snapshots[: max(0, len(snapshots) - keep_count)]:
        if snapshot.path not in newest.values():
            try:
                snapshot.path.unlink(missing_ok=True)
            except OSError as error:
                raise StoreUnwritable(snapshot.path, f"can't be removed ({error})") from error


def set_aside(snapshot: Snapshot) -> Path:
    """Renames a snapshot so that it is no longer listed; returns where it lies now.

    Raises:
        StoreUnwritable: it can't be renamed.
    """
    aside = snapshot.path.with_name(snapshot.path.name + ".set-aside")
    try:
        return snapshot.path.rename(aside)
    except OSError as error:
        raise StoreUnwritable(snapshot.path, f"can't be renamed ({error})") from error


def count_positions(snapshot: Snapshot) -> dict[str, int]:
    """How far each durable had got.

    Raises:
        StoreError: it can't be read.
    """
    connection = connect_readonly(snapshot.path)
    try:
        return dict(connection.execute("select durable, seq from floors order by durable").fetchall())
    except sqlite3.Error as error:
        raise translate(snapshot.path, error) from error
    finally:
        connection.close()
