"""The report read from a store: which days of which tables it takes."""

import datetime as dt
from collections.abc import Mapping
from pathlib import Path

import pytest
from streams_kit import make_change

from app.analytics import PAGE, read_report
from models.errors import StoreError
from state.sqlite import SqliteStore

START = dt.date(2026, 3, 1)
Sums = Mapping[tuple[str, str], Mapping[str, int]]


def day(n: int) -> dt.date:
    """The day ``n`` days after the first of March."""
    return START + dt.timedelta(days=n)


def fill(path: Path, sums: Sums) -> None:
    """Makes a store with these counts, by table and key."""
    store = SqliteStore(path)
    adds = [(table, key, field, n) for (table, key), fields in sums.items() for field, n in fields.items()]
    change = make_change(1, adds=adds)
    store.commit([change], [], marks=[change], sent=[])
    store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with five days: each with one answer and one accepted reward of v1, and two rewards in all."""
    sums: dict[tuple[str, str], dict[str, int]] = {}
    for n in range(5):
        sums["prompt_days", f"{day(n)}/v1"] = {"impressions": 1, "impression_thousandths": 1000}
        sums["prompt_reward_days", f"{day(n)}/v1"] = {"count": 1, "accepted": 1, "reward_millionths": 1_000_000}
        sums["reward_days", str(day(n))] = {"count": 2, "accepted": 1, "reward_millionths": 1_000_000}
    fill(tmp_path / "state.db", sums)
    return tmp_path / "state.db"


@pytest.mark.parametrize(
    ("since", "until", "days"),
    [
        pytest.param(None, None, 5, id="all"),
        pytest.param(1, 3, 3, id="both-ends-included"),
        pytest.param(4, None, 1, id="from"),
        pytest.param(None, 0, 1, id="to"),
        pytest.param(2, 2, 1, id="one-day"),
        pytest.param(9, None, 0, id="later"),
    ],
)
def test_report_takes_the_days_asked_for(path: Path, since: int | None, until: int | None, days: int) -> None:
    """Both ends are included, and all three tables are cut alike."""
    first, last = (None if n is None else day(n) for n in (since, until))
    report = read_report(path, since=first, until=last)
    assert (report.since, report.until, report.unattributed) == (first, last, days)  # 2 - 1 a day
    assert [(one.impressions, one.rewards) for one in report.variants] == ([(days, days)] if days else [])


def test_report_reads_every_page(tmp_path: Path) -> None:
    """More rows than are read at once are all taken, once."""
    count = PAGE + 3
    sums = {("prompt_days", f"{day(n)}/v1"): {"impressions": 1, "impression_thousandths": 1000} for n in range(count)}
    fill(tmp_path / "state.db", sums)
    (one,) = read_report(tmp_path / "state.db").variants
    assert one.impressions == count


def test_report_before_there_is_a_store_is_of_nothing(tmp_path: Path) -> None:
    """It is no error, and makes no file."""
    assert read_report(tmp_path / "state.db").variants == ()
    assert not (tmp_path / "state.db").exists()


def test_report_of_a_file_that_is_no_store_is_an_error(tmp_path: Path) -> None:
    """What can't be read is named."""
    (tmp_path / "state.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match=r"state\.db"):
        read_report(tmp_path / "state.db")
