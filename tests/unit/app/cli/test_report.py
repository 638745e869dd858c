"""``prompts report``: a table, JSON, and a picture, from a store without a worker."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from process_kit import invoke
from streams_kit import make_change

from app.logs import one_line
from models.errors import ReportError
from state.sqlite import SqliteStore

PNG = b"\x89PNG\r\n\x1a\n"


Counts = Mapping[tuple[str, str], Mapping[str, int]]


def fill(folder: Path, counts: Counts) -> dict[str, str]:
    """Makes a store with these counts, by table and key; the settings for it."""
    adds = [(table, key, field, n) for (table, key), fields in counts.items() for field, n in fields.items()]
    store = SqliteStore(folder / "state.db")
    change = make_change(1, adds=adds)
    store.commit([change], [], marks=[change], sent=[])
    store.close()
    return {"STATE_DIR": str(folder)}


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The settings for a store with one day of two variants, one of them without rewards, and a reward of neither."""
    counts = {
        ("prompt_days", "2026-03-01/v1"): {"impressions": 100, "impression_thousandths": 100_000, "le_100": 100},
        ("prompt_days", "2026-03-01/v2"): {"impressions": 10, "impression_thousandths": 10_000, "fallbacks": 4},
        ("prompt_reward_days", "2026-03-01/v1"): {"count": 50, "accepted": 25, "reward_millionths": 30_000_000},
        ("reward_days", "2026-03-01"): {"count": 51},
    }
    return fill(tmp_path, counts)


def test_report_is_a_line_each_and_a_sentence(env: dict[str, str]) -> None:
    """The most accepted variant comes first; below is what it means in words."""
    result = invoke("prompts", "report", **env)
    assert result.exit_code == 0
    first, second, *words = result.stdout.splitlines()
    assert first.split("\t") == ["v1", "25.0%", "12.1% to 41.9%", "100", "50", "0.600", "-", "75", "98", "0", "0"]
    assert second.split("\t")[:2] == ["v2", "0.0%"] and second.split("\t")[-2:] == ["4", "0"]
    assert words[0].startswith("v1 leads: 25.0% of 100 impressions accepted (between 12.1% and 41.9%)")
    assert words[1:] == ["Rewards that name no variant: 1."]


def test_report_marks_what_was_estimated(tmp_path: Path) -> None:
    """Impressions of a sampled log are about so many, and the words say so too."""
    answers = {"impressions": 10, "impression_thousandths": 100_000}
    env = fill(tmp_path, {("prompt_days", "2026-03-01/v1"): answers})
    line, words = invoke("prompts", "report", **env).stdout.splitlines()
    assert line.split("\t")[3:5] == ["~100", "0"]  # 10 of them stand for 100
    assert words.endswith("Impressions are estimates, as the log was sampled, which the intervals leave out.")


@pytest.mark.parametrize("version", ["\x1b[31mv1\n", "a$\\frac$", "v" * 20_000], ids=["escape", "formula", "long"])
def test_report_shows_whatever_a_version_is_called(tmp_path: Path, version: str) -> None:
    """An event may name a version that nobody has: it rules neither the terminal nor the picture."""
    env = fill(tmp_path, {("prompt_reward_days", f"2026-03-01/{version}"): {"count": 1, "accepted": 1}})
    result = invoke("prompts", "report", "--png", str(tmp_path / "report.png"), **env)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 2)
    assert "\x1b" not in result.stdout and one_line(version) in result.stdout
    assert (tmp_path / "report.png").read_bytes()[:8] == PNG


def test_report_in_json_is_that_of_the_route(env: dict[str, str]) -> None:
    """All fields, days as asked for."""
    found = json.loads(invoke("prompts", "report", "--json", "--from", "2026-03-01", **env).stdout)
    assert (found["best"], found["is_apart"], found["since"], found["until"]) == ("v1", False, "2026-03-01", None)
    assert [one["version"] for one in found["variants"]] == ["v1", "v2"]


def test_report_of_other_days_says_that_there_is_nothing(env: dict[str, str]) -> None:
    """Days without counts are no error."""
    result = invoke("prompts", "report", "--from", "2026-03-02", "--to", "2026-03-02", **env)
    assert (result.exit_code, result.stdout.startswith("There is nothing to go by")) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        pytest.param(("--from", "2026-02-30"), "does not match", id="no-day"),
        pytest.param(("--from", "2026-03-02", "--to", "2026-03-01"), "expected a day up to 2026-03-01", id="reversed"),
    ],
)
def test_report_refuses_what_are_no_days(env: dict[str, str], arguments: tuple[str, ...], problem: str) -> None:
    """Bad usage is exit code 2, with the option."""
    result = invoke("prompts", "report", *arguments, **env)
    assert result.exit_code == 2 and "--from" in result.stderr and problem in result.stderr


@pytest.mark.parametrize("since", ["2026-03-01", "2030-01-01"], ids=["variants", "nothing"])
def test_report_draws_a_picture(env: dict[str, str], tmp_path: Path, since: str) -> None:
    """--png writes a PNG beside the table, also of no variant."""
    result = invoke("prompts", "report", "--png", str(tmp_path / "report.png"), "--from", since, **env)
    assert result.exit_code == 0 and result.stdout
    assert (tmp_path / "report.png").read_bytes()[:8] == PNG


def test_report_names_a_file_that_can_not_be_written(env: dict[str, str], tmp_path: Path) -> None:
    """A missing folder is one clear line."""
    result = invoke("prompts", "report", "--png", str(tmp_path / "missing" / "report.png"), **env)
    assert isinstance(result.exception, ReportError)
    assert str(result.exception).endswith("report.png can't be written (No such file or directory)")


def test_report_without_matplotlib_names_the_extra(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What draws is an extra; where it is not installed the line says how to get it, and no file is made."""
    for name in [*sys.modules, "matplotlib.figure", "matplotlib.backends.backend_agg"]:
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.setitem(sys.modules, name, None)
    result = invoke("prompts", "report", "--png", str(tmp_path / "report.png"), **env)
    assert isinstance(result.exception, ReportError)
    assert str(result.exception) == "--png needs matplotlib: pip install 'tipstream[report]'"
    assert not (tmp_path / "report.png").exists()
