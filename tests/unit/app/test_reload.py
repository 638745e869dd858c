"""Starting a child anew when code changes, with real processes and real files."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
from harness import wait_until

from app.reload import Watched, run_reloading, watched_for, worker_command
from models.errors import DeclarationError

CHILD = """
import os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
def end(number, frame):
    (here / "stopping").touch()
    while (here / "hold").exists():
        time.sleep(0.01)
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
sys.path.insert(0, str(here))
import plugged
with (here / "runs").open("a") as runs:
    runs.write(f"{plugged.WORD} {os.getpid()}\\n")
while True:
    time.sleep(0.02)
"""


@attrs.define
class Reloading:
    """The folder of a plugin, and the task that runs a child which imports it."""

    folder: Path
    task: "asyncio.Task[int]"

    def write(self, code: str) -> None:
        """Changes the plugin."""
        (self.folder / "plugged.py").write_text(f"{code}\n")

    def runs(self) -> list[list[str]]:
        """The word and the process of each child that has begun."""
        file = self.folder / "runs"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    async def has_begun(self, *words: str) -> None:
        """Waits until children with these words have begun, and no others."""
        await wait_until(lambda: len(self.runs()) >= len(words), what=f"runs of {words}")
        assert [word for word, _ in self.runs()] == list(words)


@contextlib.asynccontextmanager
async def reloading(folder: Path, code: str = "WORD = 'a'") -> AsyncIterator[Reloading]:
    """Runs a child; what still runs at the end is told to stop."""
    folder = folder.resolve()
    (folder / "child").write_text(CHILD)
    (folder / "plugged.py").write_text(f"{code}\n")
    command = (sys.executable, "-B", str(folder / "child"), str(folder))
    watched = Watched(files=frozenset({folder / "plugged.py"}))
    task = asyncio.create_task(run_reloading(command, {"PATH": os.defpath}, watched))
    try:
        yield Reloading(folder, task)
    finally:
        (folder / "hold").unlink(missing_ok=True)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def is_alive(pid: str) -> bool:
    """Whether a process still runs."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


async def test_reload_starts_anew_at_a_change(tmp_path: Path) -> None:
    """After a change the child is stopped in order, and the next one has the new code."""
    async with reloading(tmp_path) as parent:
        await parent.has_begun("a")
        parent.write("WORD = 'b'")
        await parent.has_begun("a", "b")
        assert (tmp_path / "stopping").exists()
        assert [is_alive(pid) for _, pid in parent.runs()] == [False, True]


async def test_reload_keeps_a_change_that_comes_during_the_stop(tmp_path: Path) -> None:
    """While the child takes its time to stop the file changes once more: the next child has the newest code."""
    async with reloading(tmp_path) as parent:
        await parent.has_begun("a")
        (tmp_path / "hold").touch()
        parent.write("WORD = 'b'")
        await wait_until((tmp_path / "stopping").exists)
        parent.write("WORD = 'c'")
        (tmp_path / "hold").unlink()
        await wait_until(lambda: parent.runs()[-1][0] == "c", what="a child with the newest code")


async def test_reload_waits_after_a_child_that_ended_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A syntax error ends the child; that is said with its exit code, and only a change starts the next one."""
    async with reloading(tmp_path, "WORD = = 'a'") as parent:
        with caplog.at_level(logging.WARNING, "app.reload"):
            await wait_until(lambda: caplog.messages == ["the worker ended by itself; it starts when a file changes"])
        assert caplog.records[0].fields == {"code": 1}  # type: ignore[attr-defined]
        parent.write("WORD = 'b'")
        await parent.has_begun("b")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
async def test_reload_stops_the_child_when_told_to(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM, Ctrl-C and a closed terminal stop the child in order, and its exit code is passed on."""
    async with reloading(tmp_path) as parent:
        await parent.has_begun("a")
        os.kill(os.getpid(), number)
        assert await parent.task == 3
        assert (tmp_path / "stopping").exists() and not is_alive(parent.runs()[0][1])


async def test_reload_passes_a_second_ctrl_c_on(tmp_path: Path) -> None:
    """A child that takes long to stop is told to leave at once, as a worker without a parent would be."""
    async with reloading(tmp_path) as parent:
        await parent.has_begun("a")
        (tmp_path / "hold").touch()
        os.kill(os.getpid(), signal.SIGINT)
        await wait_until((tmp_path / "stopping").exists)
        os.kill(os.getpid(), signal.SIGINT)
        assert await parent.task == 130


async def test_reload_stops_while_it_waits_for_a_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a child that was killed there is nothing to stop; the signal's number is in the exit code."""
    async with reloading(tmp_path) as parent:
        await parent.has_begun("a")
        os.kill(int(parent.runs()[0][1]), signal.SIGKILL)
        await wait_until(lambda: "the worker ended by itself; it starts when a file changes" in caplog.messages)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await parent.task == 137


async def test_reload_cancelled_leaves_no_child(tmp_path: Path) -> None:
    """However the parent ends, the child is stopped."""
    async with reloading(tmp_path) as parent:
        await parent.has_begun("a")
    assert not is_alive(parent.runs()[0][1])


async def test_reload_says_that_a_folder_can_not_be_watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The worker runs on, and it is said why no change will be seen."""
    watched = Watched(folders=frozenset({tmp_path / "missing"}))
    code = "import os, signal; signal.signal(15, lambda *_: os._exit(0)); os.kill(os.getppid(), 15); signal.pause()"
    assert await run_reloading((sys.executable, "-c", code), {}, watched) == 0
    assert "code can't be watched: the worker runs on as it is" in caplog.messages


async def test_reload_needs_watchfiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library nothing starts, and the error says what to install."""
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(DeclarationError, match=r"pip install 'tipstream\[reload\]'"):
        await run_reloading(("/nowhere",), {}, Watched())


def test_watched_are_our_packages_and_the_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole packages, of plugins too, and plugins of one file; none is imported, and what is not there is left out."""
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "__init__.py").write_text("raise SystemExit")
    (tmp_path / "alone.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    found = watched_for(["packed.inner", "alone", "sys", "missing_plugin", ".x"])
    assert {folder.name for folder in found.folders} == {"app", "streams", "state", "prompts", "models", "packed"}
    assert found.files == {tmp_path / "alone.py"}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("code/a.py", True),
        ("code/templates/v1.j2", True),
        ("code/notes.txt", False),
        ("code/__pycache__/a.cpython-311.pyc", False),
        ("code/.#a.py", False),
        ("alone.py", True),
        ("other.py", False),
        ("codec/a.py", False),
    ],
    ids=str,
)
def test_watched_has_code_and_templates(name: str, counts: bool) -> None:
    """Of folders Python and templates count, of single files only themselves; what editors leave about does not."""
    watched = Watched(folders=frozenset({Path("/x/code")}), files=frozenset({Path("/x/alone.py")}))
    assert watched.has(f"/x/{name}") == counts


def test_worker_command_is_this_python() -> None:
    """The child runs with the interpreter of its parent."""
    assert worker_command() == (sys.executable, "-m", "app", "worker")
