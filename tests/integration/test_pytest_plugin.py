"""The fixtures come with the installed package, in whatever way a project's tests are run."""

import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import attrs
import pytest
from streams import Context, SubjectTable, Table

@attrs.frozen(kw_only=True)
class Streak:
    broken_count: int = 0

@attrs.frozen(kw_only=True)
class Broken:
    user_id: str

STREAKS = Table("streaks", Streak)
subjects = SubjectTable("streaks", tables=[STREAKS])

@subjects.on("signals.streak.broken")
async def broken(event: Broken, ctx: Context) -> None:
    row = ctx.get(STREAKS, event.user_id) or Streak()
    ctx.put(STREAKS, event.user_id, Streak(broken_count=row.broken_count + 1))

{mark}
async def test_without_a_broker(run_handler):
    outcome = await run_handler(broken, {{"user_id": "ada"}})
    assert outcome.writes[STREAKS, "ada"] == Streak(broken_count=1)

{mark}
async def test_on_a_server(live_app):
    app = await live_app(subjects)
    await app.publish("signals.streak.broken", {{"user_id": "ada"}})
    await app.quiet()
    assert app.row(STREAKS, "ada") == Streak(broken_count=1)
    folders.append(app.settings.state_dir)

folders = []

def test_the_app_has_ended_with_its_test():
    assert [folder.exists() for folder in folders] == [False]

{mark}
async def test_in_a_block(live_app):
    async with live_app(subjects) as app:
        await app.publish("signals.streak.broken", {{"user_id": "ada"}})
        await app.quiet()
"""
ALONE = """
import asyncio, pytest
from streams import SubjectTable

async def enter(app):
    async with app as running:
        return (await running.health())["status"]

async def wait_for(app):
    await app

def test_without_pytest_asyncio(live_app):
    assert asyncio.run(enter(live_app())) in ("ok", "degraded")
    with pytest.raises(pytest.UsageError, match="needs pytest-asyncio"):
        asyncio.run(wait_for(live_app()))
"""
INI = "[pytest]\nfilterwarnings = error\n"
SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")  # pytest-asyncio warns as long as it is unset
BLOCKED = "import sys; sys.modules['pytest_asyncio'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"


def run_pytest(folder: Path, suite: str, *options: str, program: tuple[str, ...] = ("-m", "pytest")) -> str:
    """Runs a project's tests in a process of their own, warnings being errors; returns what pytest said."""
    (folder / "test_project.py").write_text(suite)
    (folder / "pytest.ini").write_text(INI)
    command = [sys.executable, *program, "-q", "-p", "no:cacheprovider", *options]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50, check=False)
    return ended.stdout + ended.stderr


@pytest.mark.parametrize(("mode", "mark"), [("auto", ""), ("strict", "@pytest.mark.asyncio")], ids=["auto", "strict"])
def test_pytest_plugin_brings_fixtures_in_either_mode_of_asyncio(tmp_path: Path, mode: str, mark: str) -> None:
    """Both fixtures work without a line of configuration, and an awaited app ends with its test."""
    said = run_pytest(tmp_path, SUITE.format(mark=mark), *SCOPE, "-o", f"asyncio_mode={mode}")
    assert "4 passed" in said, said


def test_pytest_plugin_works_without_pytest_asyncio(tmp_path: Path) -> None:
    """Without it an app is entered; who awaits one is told what is missing."""
    options = ("--disable-plugin-autoload", "-p", "streams.pytest_plugin")
    said = run_pytest(tmp_path, ALONE, *options, program=("-c", BLOCKED))
    assert "1 passed" in said, said


def test_pytest_plugin_imports_no_application_before_it_is_asked(tmp_path: Path) -> None:
    """A project whose tests use no fixture of ours does not pay for them."""
    suite = "import sys\n\ndef test_it():\n    assert not {'app', 'nats', 'streams.testing'} & set(sys.modules)\n"
    said = run_pytest(tmp_path, suite, *SCOPE)
    assert "1 passed" in said, said
