"""Stub."""

import datetime as dt
from pathlib import Path

import attrs


@attrs.frozen(kw_only=True)
class Snapshot:
    """A whole store as it was at one moment."""

    path: Path
    taken_at: dt.datetime
    store_id: str
    app_version: str
    tables: dict[str, int]
    reason: str


def list_snapshots(folder: Path) -> list[Snapshot]:
    """Lists."""
    return []
