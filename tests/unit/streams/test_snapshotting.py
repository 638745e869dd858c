"""When the owner takes snapshots, and what it does when it can't."""

import asyncio
import datetime as dt
from pathlib import Path

import attrs
import pytest
from harness import wait_until
from streams_kit import make_change, make_floor

from state.snapshots import Reason, Snapshot, list_snapshots
from state.sqlite import SqliteStore
from streams.snapshotting import Snapshotting, due_reason

NOW = dt.datetime(2026, 3, 2, 12, tzinfo=dt.UTC)
TAKEN = Snapshot(path=Path("x"), taken_at=NOW, store_id="s", app_version="1", tables={"signals": 1}, reason="daily")


def aged(hours: float, **fields: object) -> Snapshot:
    """A snapshot of so many hours ago."""
    return attrs.evolve(TAKEN, taken_at=NOW - dt.timedelta(hours=hours), **fields)


@pytest.mark.parametrize(
    ("snapshots", "version", "has_rows", "reason"),
    [
        pytest.param([], 1, False, None, id="nothing-to-keep"),
        pytest.param([], 1, True, "daily", id="first"),
        pytest.param([aged(23.9)], 1, True, None, id="not-yet"),
        pytest.param([aged(48), aged(24)], 1, True, "daily", id="a-day-old"),
        pytest.param([aged(1)], 2, True, "version", id="another-version"),
        pytest.param([aged(30), aged(1, reason="before-rebuild")], 1, True, "daily", id="a-rebuild-does-not-count"),
    ],
)
def test_snapshot_is_due(snapshots: list[Snapshot], version: int, has_rows: bool, reason: Reason | None) -> None:
    """One a day and one for each set of table versions, once there is a row."""
    assert due_reason(snapshots, {"signals": version}, NOW, has_rows=has_rows) == reason


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A store with a row."""
    store = SqliteStore(tmp_path / "state.db")
    store.commit([make_change(1, puts=[("t", "ana", b"{}")])], [make_floor(1)], marks=[], sent=[])
    store.close()
    return tmp_path


async def test_owner_takes_one_at_its_start(state_dir: Path) -> None:
    """A store with rows and without a snapshot gets one at once; the task ends when it is cancelled."""
    task = asyncio.create_task(Snapshotting(state_dir, {"signals": 1}).run())
    await wait_until(lambda: list_snapshots(state_dir / "snapshots"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(one.reason, one.tables) for one in list_snapshots(state_dir / "snapshots")] == [("daily", {"signals": 1})]


async def test_cancelled_while_taking_it_finishes_that_one(state_dir: Path) -> None:
    """A stop waits for the snapshot that is under way."""
    task = asyncio.create_task(Snapshotting(state_dir, {}).run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(list_snapshots(state_dir / "snapshots")) == 1


def test_trouble_is_kept_until_one_is_taken(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What can't be taken is logged once and told until it goes well."""
    snapshotting = Snapshotting(state_dir, {})
    (state_dir / "snapshots").touch()
    assert snapshotting.take_due(NOW) is None and snapshotting.take_due(NOW) is None
    assert "no snapshot could be taken" in (snapshotting.trouble or "")
    assert len(caplog.records) == 1
    (state_dir / "snapshots").unlink()
    assert snapshotting.take_due(NOW) is not None
    assert snapshotting.trouble is None
    assert snapshotting.take_due(dt.datetime.now(dt.UTC)) is None


def test_store_that_can_not_be_read_is_trouble(state_dir: Path) -> None:
    """A store that is damaged meanwhile does not end the watch over it."""
    (state_dir / "state.db").write_bytes(b"x" * 8192)
    snapshotting = Snapshotting(state_dir, {})
    assert snapshotting.take_due(NOW) is None
    assert "is damaged" in (snapshotting.trouble or "")
