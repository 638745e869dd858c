"""``make demo``: plays a real log through a worker and shows what became of every message.

The worker runs as a child with a NATS server of its own in a fresh folder, and the player as another one; whatever
happens, Ctrl-C included, both are ended and the folder is removed (``--keep`` keeps it, and so does a failure). Exit
code 0 says that every sound payload was applied, every broken one is a dead letter, every row is what the log says, and
the worker stopped in order. demo/report.py says what must come of the log.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import aiohttp
import attrs
import nats
from demo import report, rows
from demo.report import Counts, DeadLetter, Played, Result, say
from demo.rows import DemoError, Event

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DURABLE = "tipstream-signals"
HANDLERS = {rows.SYNCED: "signals.task_synced", rows.FEEDBACK: "signals.tip_feedback"}
READY_S, PLAY_S, SETTLE_S, STOP_S = 15.0, 30.0, 15.0, 15.0
POLL_S = 0.02
LOOK_AGE_S = 1.5  # /health is ok only while its look at the durable is younger than this


@attrs.frozen(kw_only=True)
class Worker:
    """The worker's process, a session on its HTTP address, and where its NATS server listens."""

    process: asyncio.subprocess.Process
    http: aiohttp.ClientSession
    nats_url: str
    log: Path

    async def get(self, path: str) -> dict[str, Any] | None:
        """The answer to a GET, or None where there is nothing."""
        if self.process.returncode is not None:
            raise DemoError(f"the worker ended with {self.process.returncode}: {last_line(self.log)}")
        try:
            async with self.http.get(path) as answer:
                return dict(await answer.json()) if answer.status == 200 else None
        except aiohttp.ClientError as error:
            raise DemoError(f"the worker does not answer ({error}); its log ends with {last_line(self.log)}") from error

    async def durable(self) -> dict[str, Any]:
        """What /health says of the durable that consumes the signals; empty before it is there."""
        health = await self.get("/health") or {}
        return dict(health["nats"]["consumers"].get(DURABLE, {}))


@contextlib.asynccontextmanager
async def limit(seconds: float, problem: str) -> AsyncIterator[None]:
    """Gives the block so many seconds, then says what the problem is."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise DemoError(f"{problem} after {seconds:g} s") from error


async def end(process: asyncio.subprocess.Process) -> int:
    """Ends a child in order, by force if it does not end; its exit code."""
    if process.returncode is None:
        process.terminate()
    try:
        return await asyncio.wait_for(process.wait(), STOP_S)
    except TimeoutError:
        process.kill()
        return await process.wait()


@contextlib.asynccontextmanager
async def worker_in(folder: Path) -> AsyncIterator[Worker]:
    """Runs a worker that is ready to consume; in a session of its own, so that Ctrl-C reaches it through us alone."""
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    env |= {"STATE_DIR": str(folder / "state"), "HTTP_PORT": "0", "LOG_FORMAT": "json", "SHUTDOWN_S": "5"}
    path = folder / "worker.log"
    with path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "app", "worker", cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
        )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(end_worker, process, env)
        async with limit(READY_S, "the worker is not ready"):
            ready = await read_ready_line(process, path)
            http = await stack.enter_async_context(aiohttp.ClientSession(str(ready["http"])))
            worker = Worker(process=process, http=http, nats_url=str(ready["nats"]).split()[0], log=path)
            while (durable := await worker.durable()).get("status") != "ok" or durable.get("role") != "owner":
                await asyncio.sleep(POLL_S)
        yield worker


async def end_worker(process: asyncio.subprocess.Process, env: Mapping[str, str]) -> None:
    """Ends the worker; when it did not end in order, its NATS server too, by joining and leaving as its last user."""
    if await end(process) != 0:
        quiet, command = asyncio.subprocess.DEVNULL, (sys.executable, "-m", "app", "streams", "plan")
        last = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=env, stdout=quiet, stderr=quiet)
        await last.wait()


async def read_ready_line(process: asyncio.subprocess.Process, log: Path) -> dict[str, Any]:
    """The fields of the line that says where everything listens."""
    while True:
        for line in log.read_bytes().splitlines(keepends=True):
            if line.startswith(b"{") and line.endswith(b"\n") and (fields := json.loads(line))["message"] == "ready":
                return dict(fields)
        if process.returncode is not None:
            raise DemoError(f"the worker ended with {process.returncode}: {last_line(log)}")
        await asyncio.sleep(POLL_S)


def last_line(log: Path) -> str:
    """The end of a log."""
    return (log.read_text(encoding="utf-8", errors="replace").splitlines() or ["its log is empty"])[-1]


async def play(worker: Worker, wheel: Path, result: Path) -> Played:
    """Plays the log from another process; the worker's outcomes are not waited for."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "player.py"), str(wheel), worker.nats_url, str(result), start_new_session=True
    )
    try:
        async with limit(PLAY_S, "the log is not played"):
            code = await process.wait()
    finally:
        await end(process)
    if code != 0:
        raise DemoError(f"the player ended with {code}")
    return Played(**json.loads(result.read_text(encoding="utf-8")))


async def watch_counts(worker: Worker, total: int) -> float:
    """Waits until the worker counts an outcome for every message; the wall clock's seconds of that."""
    while True:
        durable = await worker.durable()
        if durable["processed"] + durable["dead_lettered"] >= total:
            return time.time()
        await asyncio.sleep(POLL_S)


async def settle(worker: Worker, events: Sequence[Event]) -> dict[str, Counts]:
    """Waits until a look at the server after the last outcome has found nothing pending; the counts by subject."""
    await asyncio.sleep(LOOK_AGE_S)
    while (durable := await worker.durable())["status"] != "ok" or any(
        durable[name] for name in ("pending", "ack_pending", "parked")
    ):
        await asyncio.sleep(POLL_S)
    counts = {}
    for subject, handler in HANDLERS.items():
        found = durable["handlers"][handler]
        sent = sum(event.subject == subject for event in events)
        counts[subject] = Counts(sent=sent, applied=found["processed"], dead=found["dead_lettered"])
    return counts


async def read_dead_letters(url: str) -> list[DeadLetter]:
    """Every message of the dead-letter stream."""
    client = await nats.connect(url, name="demo")
    try:
        stream = client.jetstream()
        state = (await stream.stream_info("DEAD_LETTERS")).state
        letters = []
        for seq in range(state.first_seq, state.last_seq + 1):
            headers = (await stream.get_msg("DEAD_LETTERS", seq, direct=True)).headers or {}
            letters.append(DeadLetter(seq=int(headers["Tipstream-Sequence"]), reason=headers["Tipstream-Error"]))
        return letters
    finally:
        await client.close()


async def run_through(worker: Worker, wheel: Path, events: Sequence[Event], folder: Path) -> Result:
    """Plays the log and reads what came of it."""
    watching = asyncio.create_task(watch_counts(worker, len(events)))
    try:
        played = await play(worker, wheel, folder / "played.json")
        async with limit(SETTLE_S, f"the worker's counts do not reach {len(events):,}"):
            applied_at = await watching
        async with limit(SETTLE_S, "messages are still pending"):
            counts = await settle(worker, events)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    found: dict[str, dict[str, Any] | None] = {}
    for user in report.expected_rows(events):
        answer = await worker.get(f"/state/user_sync/{user}")
        found[user] = answer["row"] if answer else None
    letters = await read_dead_letters(worker.nats_url)
    return Result(played=played, apply_s=applied_at - played.started, counts=counts, letters=letters, found_rows=found)


async def demo(wheel: Path, folder: Path) -> int:
    """The whole demo in ``folder``; its exit code."""
    impressions = rows.load_impressions(wheel)
    events = rows.add_broken(rows.build_events(impressions))
    expected = report.expected_rows(events)
    report.show_source(wheel, impressions, events)
    started = time.perf_counter()
    async with worker_in(folder) as worker:
        say(f"worker ready after {time.perf_counter() - started:.1f} s; it works in {folder}")
        result = await run_through(worker, wheel, events, folder)
    say()
    report.show_counts(result)
    report.show_rows(result, expected)
    problems = report.find_all_problems(result, events, expected)
    if worker.process.returncode != 0:
        problems.append(f"the worker ended with {worker.process.returncode}: {last_line(worker.log)}")
    for problem in problems[:10]:
        say(f"WRONG: {problem}")
    if not problems:
        say(f"{len(events):,} messages accounted for, {len(expected)} rows as the log says; worker stopped with 0")
    return 1 if problems else 0


async def run_until_signal(wheel: Path, folder: Path) -> int:
    """Runs the demo; the first Ctrl-C or SIGTERM ends its children in order, further ones change nothing."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running, stopping = asyncio.create_task(demo(wheel, folder)), asyncio.create_task(stop.wait())
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not running.done():
        say("", "stopping ...")
        running.cancel()
    try:
        return await running
    except asyncio.CancelledError:
        return 130


def main() -> int:
    """Runs the demo as a command."""
    parser = argparse.ArgumentParser(description="Plays a real log through a worker of its own.")
    parser.add_argument("--keep", action="store_true", help="keep the worker's state and log, and say where")
    is_kept = parser.parse_args().keep
    folder = Path(tempfile.mkdtemp(prefix="tipstream-demo-"))
    try:
        code = asyncio.run(run_until_signal(rows.provide_wheel(ROOT / "build" / "demo"), folder))
    except KeyboardInterrupt:
        code = 130
    except (DemoError, nats.errors.Error) as error:
        say(f"demo: {error or type(error).__name__}")
        code = 1
    is_kept = is_kept or (code == 1 and any(folder.iterdir()))
    if not is_kept:
        shutil.rmtree(folder)
    if code == 0 or is_kept:
        report.show_where(folder, is_kept)
    return code


if __name__ == "__main__":
    sys.exit(main())
