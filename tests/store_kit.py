"""What tests of the store share: a commit as the committer makes it, and everything that is in a database."""

import sqlite3
from pathlib import Path
from typing import Any

from state.sqlite import SqliteStore
from state.store import Change, Floor


def commit(store: SqliteStore, *changes: Change, floor: Floor | None = None, sent: tuple[str, ...] = ()) -> None:
    """Commits as the committer does: changes above the floor get a mark."""
    marks = [change for change in changes if floor is None or change.seq > floor.seq]
    store.commit(changes, [floor] if floor else [], marks=marks, sent=sent)


def dump(path: Path) -> dict[str, list[Any]]:
    """Every row of every table."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
    found = {name: connection.execute(f"select * from {name} order by 1, 2").fetchall() for name in sorted(names)}
    connection.close()
    return found
