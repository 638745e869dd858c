"""``worker --reload`` on a copy of the checkout whose files change, as under the hands of a developer."""

import shutil
import signal
from pathlib import Path

from harness import wait_until
from process_kit import PATIENCE_S, Worker

ROOT = Path(__file__).parents[2]
ENDED = "the worker ended by itself; it starts when a file changes"


class Reloading(Worker):
    """A worker that starts anew when the code in its folder changes; the log is that of all its runs.

    That code is a copy, so its coverage is not measured: it would count as files of their own.
    """

    arguments = ("worker", "--reload")

    @property
    def env(self) -> dict[str, str]:
        """The environment of the process."""
        return {name: value for name, value in super().env.items() if not name.startswith("COVERAGE_")}


def copied(folder: Path) -> Path:
    """A copy of the packages; returns the file of the handlers of feedback."""
    for package in (marker.parent for marker in ROOT.glob("*/py.typed")):
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "streams" / "handlers" / "feedback.py"


async def begun(worker: Worker, count: int) -> None:
    """Waits until so many runs are ready, and follows the newest one's HTTP."""
    await wait_until(lambda: len(worker.said("ready")) >= count, PATIENCE_S, what=f"run {count} is ready")
    worker.http = worker.said("ready")[-1]["http"]


async def test_reload_runs_what_was_changed_and_survives_an_error(tmp_path: Path) -> None:
    """A renamed handler is there after the change; a syntax error is said and waited out; Ctrl-C ends everything."""
    file = copied(tmp_path)
    good = file.read_text()
    with Reloading(tmp_path) as worker:
        await worker.start()
        file.write_text(good.replace("async def tip_rewarded", "async def tip_counted"))
        await begun(worker, 2)
        assert "feedback.tip_counted" in worker.said("ready")[-1]["handlers"]
        assert worker.said("code has changed: the worker starts anew")[0]["files"] == ["feedback.py"]
        assert len(worker.said("stopped")) == 1
        file.write_text("def broken(:\n")
        await wait_until(lambda: worker.said(ENDED), PATIENCE_S, what="the error is said")
        assert worker.said(ENDED)[0]["code"] == 1 and any("SyntaxError" in line for line in worker.noise)
        file.write_text(good)
        await begun(worker, 3)
        await worker.wait_ok()
        worker.signal(signal.SIGINT)
        assert await worker.ended() == 0
        assert len(worker.said("stopped")) == 3


async def test_reload_passes_a_refusal_on(tmp_path: Path) -> None:
    """A worker that can't start is waited for like one that ended; its exit code is that of the parent at Ctrl-C."""
    with Reloading(tmp_path, NATS_CREDS=str(tmp_path / "creds"), NATS_URL="") as worker:
        worker.spawn()
        assert await worker.ended() == 2
        assert worker.noise[0].startswith("error: NATS_CREDS: ")
    (tmp_path / "file").touch()
    with Reloading(tmp_path, STATE_DIR=str(tmp_path / "file" / "var"), NATS_URL="") as worker:
        worker.spawn()
        await wait_until(lambda: worker.said(ENDED), PATIENCE_S, what="the end is said")
        assert await worker.stop() == 1
