"""The application as a user has it: processes of ``python -m app``, watched through their log, HTTP and signals.

A worker that still runs at the end of its ``with`` block has to stop with 0 when asked; it is killed when the test has
failed, and the embedded nats-server of its STATE_DIR in any case. The environment of a process is built from scratch;
the switches of coverage alone are passed on.
"""

import asyncio
import ctypes
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import attrs
import click.testing
import nats
from harness import wait_until
from nats.aio.client import Client

from app.cli.group import CliEnv, cli

PATIENCE_S, COMMAND_S = 30.0, 50.0
"""For what a busy machine has to start, end or carry out; a test's own limit bounds the sum."""
DURABLES = ("tipstream-feedback", "tipstream-generations", "tipstream-signals")
DAY = "2026-03-01"
PATIENT = {"X-Deadline-Ms": "60000"}
"""For requests that a model must answer, however busy the machine is."""

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
_LIBC = ctypes.CDLL(None)

Json = dict[str, Any]


def environment(folder: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """What a process is given: these settings, a STATE_DIR in ``folder``, and no setting of the surroundings.

    No models, unless a setting says so: each first start would train one.
    """
    coverage = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    own = {"PATH": os.defpath, "HOME": str(folder), "STATE_DIR": str(folder / "var"), "HTTP_PORT": "0"}
    return coverage | own | {"MODEL_REGISTRY": "none"} | dict(settings)


def without_root() -> None:
    """For preexec_fn: takes root's right to write anywhere away from the program that is executed next."""
    if os.geteuid() == 0 and _LIBC.prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0) != 0:
        raise OSError("the right to write anywhere could not be dropped")


@attrs.frozen
class Answer:
    """An HTTP answer; ``json`` is None when the body is something else."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.text)


class Worker:
    """One worker process after another in one folder; a context manager that ends the last one.

    Args:
        folder: the process's working folder and HOME; STATE_DIR is ``folder/var`` unless a setting says otherwise.
        settings: environment variables.
    """

    arguments: tuple[str, ...] = ("worker",)

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.settings = {"LOG_FORMAT": "json"} | settings
        self.process: subprocess.Popen[str] | None = None
        self.logs: list[Json] = []
        self.noise: list[str] = []
        self.http = ""
        self._reader: threading.Thread | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end of the with block)

    @property
    def env(self) -> dict[str, str]:
        """The environment of the process, which commands beside it share."""
        return environment(self.folder, self.settings)

    @property
    def state_dir(self) -> Path:
        """Where its data lies."""
        return self.folder / self.env["STATE_DIR"]

    @property
    def nats(self) -> str:
        """The URL of the NATS that it uses."""
        return self.settings.get("NATS_URL") or str(self.server["url"])

    @property
    def server(self) -> Json:
        """The address file of the embedded server."""
        return dict(json.loads((self.state_dir / "server.json").read_text(encoding="utf-8")))

    @property
    def output(self) -> str:
        """All that went to standard output."""
        return os.pread(self._output.fileno(), 1_000_000, 0).decode()

    @property
    def pid(self) -> int:
        """The process; only after a start."""
        assert self.process is not None, "the worker was not started"
        return self.process.pid

    def said(self, message: str) -> list[Json]:
        """The log lines of this message, of the last start."""
        return [line for line in self.logs if line["message"] == message]

    def attached(self) -> set[str]:
        """The durables that this start has attached."""
        return {line["durable"] for line in self.said("attached")}

    def spawn(self, *, preexec: Callable[[], None] | None = None) -> Self:
        """Starts the process and does not wait for anything."""
        self.logs, self.noise, self.http = [], [], ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", *self.arguments],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=preexec,
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()
        return self

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None, "a pipe was asked for"
        with process.stderr as lines:
            for line in lines:
                (self.logs.append(json.loads(line)) if line.startswith("{") else self.noise.append(line))

    async def start(self, *, preexec: Callable[[], None] | None = None) -> Self:
        """Starts the process and waits until HTTP answers."""
        self.spawn(preexec=preexec)
        await self.ready()
        return self

    async def ready(self) -> None:
        """Waits for the log line that says where HTTP listens."""
        await wait_until(lambda: self.said("ready") or self.has_ended, PATIENCE_S, what="the worker is ready")
        assert self.said("ready"), f"the worker ended: {self.logs} {self.noise}"
        self.http = self.said("ready")[0]["http"]

    async def consume(self) -> Self:
        """Starts the process and waits until all durables are attached."""
        await self.start()
        await wait_until(lambda: self.attached().issuperset(DURABLES), PATIENCE_S, what="all durables attached")
        return self

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    async def ended(self, timeout_s: float = PATIENCE_S) -> int:
        """Waits for the end of the process and of its log, and returns the exit code."""
        assert self.process is not None and self._reader is not None, "the worker was not started"
        code = await asyncio.to_thread(self.process.wait, timeout_s)
        await asyncio.to_thread(self._reader.join, timeout_s)
        return code

    async def stop(self) -> int:
        """Asks it to stop, as an orchestrator does, and returns the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def kill9(self) -> None:
        """Ends it at once, as a crash does."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def get(self, path: str, **headers: str) -> Answer:
        """Asks over HTTP; the path is sent as it is, so keys have to be percent-encoded."""
        url = aiohttp.client.URL(self.http + path, encoded=True)
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, headers=headers) as response:
            return Answer(response.status, response.headers, await response.text())

    async def post(self, path: str, body: bytes | Json, **headers: str) -> Answer:
        """Sends JSON over HTTP; bytes go as they are."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} | headers
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(self.http + path, data=io.BytesIO(payload), headers=given) as response,
        ):
            return Answer(response.status, response.headers, await response.text())

    async def health(self) -> Json:
        """The answer of /health, which is always 200."""
        answer = await self.get("/health")
        assert answer.status == 200, answer
        return dict(answer.json)

    async def wait_health(
        self, predicate: Callable[[Json], object], timeout_s: float = PATIENCE_S, *, what: str
    ) -> Json:
        """Waits until /health says what the predicate looks for, and returns it."""
        last: Json = {}

        async def is_so() -> bool:
            last.clear()
            last.update(await self.health())
            return bool(predicate(last))

        try:
            await wait_until(is_so, timeout_s, what=what, poll_s=0.03)
        except AssertionError as error:
            raise AssertionError(f"{error}; /health was {last}") from None
        return last

    async def wait_ok(self, timeout_s: float = PATIENCE_S) -> Json:
        """Waits until /health says ok."""
        return await self.wait_health(lambda health: health["status"] == "ok", timeout_s, what="health is ok")

    async def wait_counts(self, durable: str, timeout_s: float = PATIENCE_S, **facts: object) -> Json:
        """Waits until /health shows these facts of a durable."""
        return await self.wait_health(
            lambda health: facts.items() <= health["nats"]["consumers"][durable].items(),
            timeout_s,
            what=f"{durable} shows {facts}",
        )

    async def reward_count(self) -> int:
        """How many rewards are counted in committed rows: the outside counter of what was applied."""
        answer = await self.get(f"/state/reward_days/{DAY}")
        return int(answer.json["row"]["count"]) if answer.status == 200 else 0

    async def wait_rewards(self, count: int, timeout_s: float = PATIENCE_S) -> None:
        """Waits until at least so many rewards are counted."""

        async def is_reached() -> bool:
            return await self.reward_count() >= count

        await wait_until(is_reached, timeout_s, what=f"{count} rewards are counted", poll_s=0.03)

    async def wait_idle(self, timeout_s: float = PATIENCE_S) -> Json:
        """Waits until the server itself has nothing more for it, every delivery is acked, and /health says ok.

        The counts of the server in /health are up to a second old.
        """
        client = await connect(self.nats)
        js = client.jetstream(timeout=PATIENCE_S)

        async def is_idle() -> bool:
            streams = [info.config.name for info in await js.streams_info()]
            found = [one for name in streams for one in await js.consumers_info(name)]
            return not any((one.num_pending or 0) + (one.num_ack_pending or 0) for one in found)

        try:
            await wait_until(is_idle, timeout_s, what="the server has nothing more", poll_s=0.03)
        finally:
            await client.close()
        return await self.wait_ok(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = self._end(is_orderly=error is None)
        if self._reader is not None:
            self._reader.join(5)
        kill_server_of(self.state_dir)
        self._output.close()
        if error is not None:
            error.add_note(f"the worker's log: {self.logs[-30:]} {self.noise}")
        elif code:
            raise AssertionError(f"the worker ended with {code}: {self.logs[-30:]} {self.noise}")

    def _end(self, *, is_orderly: bool) -> int:
        """Ends a process that still runs; returns its exit code, 0 if it had ended before."""
        if self.process is None or self.process.poll() is not None:
            return 0
        if is_orderly:
            self.process.terminate()
            try:
                return self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.logs.append({"message": f"the worker did not stop within {PATIENCE_S:g} s"})
        self.process.kill()
        return self.process.wait()


def server_pid(state_dir: Path) -> int | None:
    """The process of a folder's embedded server, while it runs."""
    try:
        pid = json.loads((state_dir / "server.json").read_text(encoding="utf-8"))["pid"]
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return int(pid) if b"nats-server" in words and os.fsencode(state_dir.resolve()) in words else None


def kill_server_of(state_dir: Path) -> None:
    """Ends a folder's embedded server, a frozen one too, and waits until it is gone."""
    deadline = time.monotonic() + 5
    while (pid := server_pid(state_dir)) is not None and time.monotonic() < deadline:
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


@attrs.frozen
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed with --json."""
        return json.loads(self.out)


async def run_app(*arguments: str, worker: Worker, stdin: str = "") -> Result:
    """Runs ``python -m app …`` with a worker's settings, whether or not that worker runs."""

    def run() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "app", *arguments]
        return subprocess.run(
            command, cwd=worker.folder, env=worker.env, input=stdin, capture_output=True, text=True, timeout=COMMAND_S
        )

    done = await asyncio.to_thread(run)
    return Result(done.returncode, done.stdout, done.stderr)


def invoke(*arguments: str, stdin: bytes = b"", **settings: str) -> click.testing.Result:
    """Runs a command in this process; errors of ours are its ``exception``, and logging is as before afterwards."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        return click.testing.CliRunner().invoke(cli, arguments, input=stdin, obj=CliEnv(settings))
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


async def connect(url: str) -> Client:
    """A plain client, as another team's publisher is."""
    return await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0.05)


async def publish(url: str, subject: str, payloads: Iterable[bytes | Json]) -> int:
    """Publishes payloads in order and returns their number once the server has stored them all."""
    client = await connect(url)
    try:
        bodies = [payload if isinstance(payload, bytes) else json.dumps(payload).encode() for payload in payloads]
        for body in bodies[:-1]:
            await client.publish(subject, body)
        await client.jetstream().publish(subject, bodies[-1], timeout=PATIENCE_S)
        return len(bodies)
    finally:
        await client.close()


def synced(user: str, *, day: int = 1, **fields: object) -> Json:
    """A ``signals.task.synced`` event."""
    return {"user_id": user, "provider": "todo", "synced_at": f"2026-03-{day:02}T08:00:00Z"} | fields


def rewarded(number: int, user: str = "u") -> Json:
    """A ``feedback.tip.rewarded`` event of DAY, worth 0.5."""
    facts = {"tip_id": f"t{number}", "request_id": f"r{number}", "reward": 0.5}
    return {"user_id": f"{user}{number % 50}", "occurred_at": f"{DAY}T10:00:00Z"} | facts
