"""The watchdog of the event loop in a real worker: an endless loop in a handler, and a process that is only stopped.

The worker runs a copy of the packages, in which one handler is changed.
"""

import shutil
import signal
import time
from pathlib import Path

from harness import wait_until
from process_kit import Worker, publish, rewarded

ROOT = Path(__file__).parents[2]
STANDS_STILL = "the event loop stands still"


class Changed(Worker):
    """A worker on a copy of the packages, whose coverage is not measured: it would count as files of their own."""

    @property
    def env(self) -> dict[str, str]:
        """The environment of the process."""
        return {name: value for name, value in super().env.items() if not name.startswith("COVERAGE_")}


def write_endless_handler(folder: Path) -> None:
    """Copies the packages; the handler of rewards never returns."""
    for package in (marker.parent for marker in ROOT.glob("*/py.typed")):
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "streams" / "handlers" / "feedback.py"
    head, found, _ = file.read_text().partition("async def tip_rewarded")
    body = "(event: TipRewarded, ctx: Context) -> None:\n    while True:\n        pass\n"
    file.write_text(f"{head}{found}{body}")


async def test_worker_names_the_handler_of_an_endless_loop(tmp_path: Path) -> None:
    """The log says which handler, at which line, although HTTP does not answer any more."""
    write_endless_handler(tmp_path)
    with Changed(tmp_path) as worker:
        await worker.consume()
        await publish(worker.nats, "feedback.tip.rewarded", [rewarded(1)])
        await wait_until(lambda: worker.said(STANDS_STILL), what="the standstill is said")
        found = worker.said(STANDS_STILL)[0]
        assert found["handler"] == "feedback.tip_rewarded" and found["level"] == "error"
        assert found["where"].startswith("feedback.py:") and found["where"].endswith(" in tip_rewarded")
        await worker.kill9()


async def test_worker_that_was_stopped_blames_nobody(tmp_path: Path) -> None:
    """A process that stood still because it was told to is not a loop that stood still."""
    with Worker(tmp_path) as worker:
        await worker.consume()
        worker.signal(signal.SIGSTOP)
        until = time.monotonic() + 2.5
        await wait_until(lambda: time.monotonic() > until, what="time has passed")
        worker.signal(signal.SIGCONT)
        await worker.wait_ok()
        assert worker.said(STANDS_STILL) == []
