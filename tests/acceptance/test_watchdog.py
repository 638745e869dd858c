"""The watchdog of the event loop in a real worker: an endless loop in a handler, and a process that is only stopped."""

import signal
import time
from pathlib import Path

import pytest
from harness import wait_until
from process_kit import PATIENCE_S, Worker, publish

STANDS_STILL = "the event loop stands still"
PLUGIN = """
import logging

import attrs

from streams import Context, Policy, SubjectTable, Table


@attrs.frozen(kw_only=True)
class Spin:
    user_id: str
    is_endless: bool = True


@attrs.frozen(kw_only=True)
class Spins:
    count: int = 0


SPINS = Table("spins", Spins)
subjects = SubjectTable("spinning", tables=[SPINS])


@subjects.on("signals.spin", policy=Policy(timeout_s=3, isolate=ISOLATE))
async def spin(event: Spin, ctx: Context) -> None:
    logging.getLogger("spinning").warning("spinning")
    while event.is_endless:
        pass
    row = ctx.get(SPINS, event.user_id) or Spins()
    ctx.put(SPINS, event.user_id, Spins(count=row.count + 1))
"""


def spinning(folder: Path, isolate: str | None) -> Worker:
    """A worker with a handler that never ends."""
    (folder / "spinning.py").write_text(PLUGIN.replace("ISOLATE", repr(isolate)))
    return Worker(folder, PLUGINS="spinning")


async def begin(worker: Worker) -> None:
    """Starts the worker and gives it the event that never ends."""
    await worker.start()
    await worker.wait_ok()
    await publish(worker.nats, "signals.spin", [{"user_id": "ana"}])


def isolated_pids(worker: Worker) -> list[int]:
    """The worker's processes of isolated handlers."""
    pids = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    return [int(pid) for pid in pids if b"isolation_program" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def test_worker_names_the_handler_of_an_endless_loop(tmp_path: Path) -> None:
    """The log says which handler, at which line, although HTTP does not answer any more."""
    with spinning(tmp_path, None) as worker:
        await begin(worker)
        await wait_until(lambda: worker.said(STANDS_STILL), PATIENCE_S, what="the standstill is said")
        found = worker.said(STANDS_STILL)[0]
        assert found["handler"] == "spinning.spin" and found["level"] == "error"
        assert found["where"].startswith("spinning.py:") and found["where"].endswith(" in spin")
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


async def test_worker_with_an_isolated_endless_loop_goes_on(tmp_path: Path) -> None:
    """The process is killed at its time, /health is ok before and after, and the worker stops in order."""
    with spinning(tmp_path, "process") as worker:
        await begin(worker)
        await wait_until(lambda: worker.said("spinning"), PATIENCE_S, what="the handler's process runs")
        await worker.wait_ok()
        await worker.wait_counts("tipstream-spinning", errors=1)
        await publish(worker.nats, "signals.spin", [{"user_id": "bob", "is_endless": False}])
        await worker.wait_counts("tipstream-spinning", processed=1)
        await worker.wait_ok()
        assert worker.said(STANDS_STILL) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_worker_that_ends_leaves_no_isolated_process(tmp_path: Path, number: signal.Signals) -> None:
    """Its processes die with it, killed or stopped, even those in an endless loop."""
    with spinning(tmp_path, "process") as worker:
        worker.settings["SHUTDOWN_S"] = "1"
        await begin(worker)
        await wait_until(lambda: worker.said("spinning"), PATIENCE_S, what="the handler's process runs")
        pids = isolated_pids(worker)
        assert pids, "there is a process that could be left behind"
        worker.signal(number)
        await worker.ended()
        await wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), what="they are gone")
