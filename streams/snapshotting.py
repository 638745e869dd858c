"""When the owner of a store takes a snapshot of it: once a day, and when the version of a subject table has changed.

Snapshots are what rows are made again from once the streams no longer have everything. Taking one is never vital: an
error is shown in ``/health`` and tried again.
"""

import asyncio
import datetime as dt
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from models.errors import StoreError
from state.schema import connect_readonly, translate
from state.snapshots import FOLDER, Reason, Snapshot, list_snapshots, prune, take_snapshot
from state.store import store_path

log = logging.getLogger(__name__)

DAY = dt.timedelta(days=1)
LOOK_INTERVAL_S = 60.0


def due_reason(
    snapshots: Sequence[Snapshot], tables: Mapping[str, int], now: dt.datetime, *, has_rows: bool
) -> Reason | None:
    """Decides whether a snapshot is to be taken, and why.

    Args:
        snapshots: those that there are, the oldest first.
        tables: the version of each subject table today.
        has_rows: whether there is anything to keep.
    """
    if not has_rows:
        return None
    regular = [snapshot for snapshot in snapshots if snapshot.reason != "before-rebuild"]
    if not regular or now - regular[-1].taken_at >= DAY:
        return "daily"
    return "version" if regular[-1].tables != dict(tables) else None


class Snapshotting:
    """Takes the snapshots of a store for as long as this process owns it.

    Args:
        tables: the version of each subject table.
    """

    def __init__(self, state_dir: Path, tables: Mapping[str, int]) -> None:
        self._store = store_path(state_dir)
        self._folder = state_dir / FOLDER
        self._tables = dict(tables)
        self.trouble: str | None = None

    async def run(self) -> None:
        """Looks once a minute; a snapshot under way is finished before this ends."""
        while True:
            taking = asyncio.ensure_future(asyncio.to_thread(self.take_due, dt.datetime.now(dt.UTC)))
            try:
                await asyncio.shield(taking)
            except asyncio.CancelledError:
                await asyncio.wait((taking,))
                raise
            await asyncio.sleep(LOOK_INTERVAL_S)

    def take_due(self, now: dt.datetime) -> Snapshot | None:
        """Takes a snapshot if one is due; an error is kept in ``trouble`` and logged."""
        try:
            reason = due_reason(list_snapshots(self._folder), self._tables, now, has_rows=self._has_rows())
            if reason is None:
                self.trouble = None
                return None
            taken = take_snapshot(
                self._store, self._folder, reason=reason, tables=self._tables, app_version=version("tipstream")
            )
            prune(self._folder)
        except StoreError as error:
            if self.trouble is None:
                log.error("no snapshot could be taken", extra={"fields": {"error": str(error)}})
            self.trouble = str(error)
            return None
        self.trouble = None
        log.info("snapshot taken", extra={"fields": {"file": taken.path.name, "bytes": taken.size_bytes}})
        return taken

    def _has_rows(self) -> bool:
        connection = connect_readonly(self._store)
        try:
            return bool(connection.execute("select exists (select 1 from rows)").fetchone()[0])
        except sqlite3.Error as error:
            raise translate(self._store, error) from error
        finally:
            connection.close()
