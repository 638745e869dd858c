"""What tests need around real servers: a nats-server, a proxy that fails on demand, free ports, polling.

Nothing here knows the application, or is a fixture. Every process started here is ended by the object that started it.
"""

import asyncio
import inspect
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from streams.server_program import find_program

HOST = "127.0.0.1"
START_S = 15.0


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


async def wait_until(
    predicate: Callable[[], object] | Callable[[], Awaitable[object]],
    timeout_s: float = 10.0,
    *,
    what: str = "",
    poll_s: float = 0.01,
) -> None:
    """Return as soon as the predicate (a function or coroutine function) is true.

    Raises:
        AssertionError: it was still false after ``timeout_s``; says ``what``, or the predicate's name, and its value.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = predicate()
        value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return
        if time.monotonic() > deadline:
            name = what or getattr(predicate, "__qualname__", repr(predicate))
            raise AssertionError(f"not within {timeout_s:g} s: {name} (last value {value!r})")
        await asyncio.sleep(poll_s)


class NatsServer:
    """A real nats-server with JetStream in a folder of its own; a context manager that starts and stops it.

    Args:
        folder: holds configuration, log and store; must exist.
        extra: further text for the configuration file (``max_payload: 4096``, accounts, TLS …).
        jetstream: further text for the jetstream block (``max_file: 10MB``).
    """

    def __init__(self, folder: Path, *, extra: str = "", jetstream: str = "sync_interval: always") -> None:
        self.folder = folder
        self.extra = extra
        self.jetstream = jetstream
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._is_paused = False

    @property
    def url(self) -> str:
        """The URL for clients, the same after a restart."""
        return f"nats://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The process; only while it runs."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process exists; a paused one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_text(self) -> str:
        """All that the server has logged, restarts included."""
        return (self.folder / "nats.log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> Self:
        """Start it, at first on a free port, later on the same one, and wait until it greets."""
        config = self.folder / "nats.conf"
        config.write_text(
            f'listen: "{HOST}:{self.port or -1}"\n'
            'server_name: "test"\n'
            f'jetstream {{ store_dir: "store"\n{self.jetstream}\n}}\n'
            f"{self.extra}\n",
            encoding="utf-8",
        )
        command = [find_program(None), "-c", str(config), "--ports_file_dir", str(self.folder)]
        with (self.folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        self._is_paused = False
        deadline = time.monotonic() + START_S
        while not self._is_greeting():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"nats-server did not start: {self.log_text[-2000:]}")
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        """End it in order; by force if it does not end. Does nothing if it is not running."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGCONT):
            self._signal(number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill9(self) -> None:
        """End it at once, as a crash does."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Freeze it, and wait until each of its threads stands: connections stay open and nothing answers."""
        if self.is_running and not self._is_paused:
            os.kill(self.pid, signal.SIGSTOP)
            os.waitpid(self.pid, os.WUNTRACED)
            self._is_paused = True

    def resume(self) -> None:
        """Let it run on after a pause."""
        self._signal(signal.SIGCONT)
        self._is_paused = False

    def restart(self) -> None:
        """Stop it, unless it has ended already, and start it on the same port and store."""
        self.stop()
        self.start()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def _is_greeting(self) -> bool:
        if not self.port:
            self.port = self._port_of_ports_file()
        if not self.port:
            return False
        try:
            with socket.create_connection((HOST, self.port), 1.0) as connection:
                return connection.recv(4096).startswith(b"INFO ")
        except OSError:
            return False

    def _port_of_ports_file(self) -> int:
        try:
            text = (self.folder / f"nats-server_{self.pid}.ports").read_text(encoding="utf-8")
            return int(str(json.loads(text)["nats"][0]).rsplit(":", 1)[1])
        except (OSError, ValueError):  # not there yet, or only half written
            return 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class CommandFilter:
    """Cuts what one NATS client sends into its commands, wherever the reads ended, and leaves out what is unwanted.

    Args:
        is_unwanted: told the words of each command's first line.
    """

    def __init__(self, is_unwanted: Callable[[list[bytes]], bool]) -> None:
        self._is_unwanted = is_unwanted
        self._rest = bytearray()

    def __call__(self, data: bytes) -> bytes:
        """Takes what was read; returns the whole commands that go on."""
        rest, kept = self._rest, bytearray()
        rest += data
        start = 0
        while (end := rest.find(b"\r\n", start)) >= 0:
            words = bytes(rest[start:end]).split()
            after = end + 2
            if words and words[0].upper() in (b"PUB", b"HPUB"):
                after += int(words[-1]) + 2
            if len(rest) < after:
                break
            if not self._is_unwanted(words):
                kept += rest[start:after]
            start = after
        del rest[:start]
        return bytes(kept)


class TcpProxy:
    """Forwards a port of loopback to another one, and fails on demand; an async context manager.

    ``cut`` ends the connections that exist, ``blackhole`` keeps them (and new ones) open without forwarding a byte in
    either direction until ``heal``.

    Args:
        rewrite: bytes that are replaced in what the target sends, and others of the same length.
        outgoing: makes what each new connection's bytes pass on their way to the target.
    """

    def __init__(
        self,
        target_port: int,
        *,
        rewrite: tuple[bytes, bytes] | None = None,
        outgoing: Callable[[], Callable[[bytes], bytes]] | None = None,
    ) -> None:
        self.target_port = target_port
        self._incoming = (lambda data: data.replace(*rewrite)) if rewrite else _unchanged
        self._outgoing = outgoing or (lambda: _unchanged)
        self.port = 0
        self._healthy = asyncio.Event()
        self._healthy.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The URL of the proxy for NATS clients."""
        return f"nats://{HOST}:{self.port}"

    @property
    def connection_count(self) -> int:
        """Client connections that are open now."""
        return len(self._tasks)

    def cut(self) -> None:
        """Abort every connection, on both sides; new ones are accepted."""
        for writer in self._writers:
            writer.transport.abort()

    async def refuse(self) -> None:
        """End every connection, and refuse new ones, as the port of a dead server does."""
        if self._server is not None:
            self._server.close()
            self.cut()
            await self._server.wait_closed()
            self._server = None

    async def accept(self) -> None:
        """Take connections, at first on a free port, later on the same one."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, HOST, self.port)
            self.port = int(self._server.sockets[0].getsockname()[1])

    def blackhole(self) -> None:
        """Forward nothing from now on, and keep what comes."""
        self._healthy.clear()

    def heal(self) -> None:
        """Forward again, first what was kept."""
        self._healthy.set()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_writer = None
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self.target_port)
        except OSError:
            return
        finally:
            if far_writer is None:
                writer.transport.abort()
        both = {writer, far_writer}
        self._writers |= both
        pumps = [
            asyncio.create_task(self._pump(reader, far_writer, self._outgoing())),
            asyncio.create_task(self._pump(far_reader, writer, self._incoming)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for end in both:
                end.close()  # what was read already is still sent on, unless this was a cut
            self._writers -= both
            await asyncio.wait(pumps)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]
    ) -> None:
        try:
            while data := await reader.read(65_536):
                await self._healthy.wait()
                writer.write(change(data))
                await writer.drain()
        except OSError:
            return  # cut, by us or by an end


def _unchanged(data: bytes) -> bytes:
    return data
