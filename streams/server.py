"""The embedded nats-server: one per STATE_DIR, shared by every process that uses that folder.

This module owns its start, its supervision and its stop. Three files in STATE_DIR carry the agreement:

* ``server.lock``: locked exactly as long as a server runs, because whoever takes the lock starts the server, hands it
  the descriptor and closes its own copy. So a server that outlives its starter is still seen, and two never share the
  streams on disk (which would lose acked messages).
* ``server.json``: the address. It can be stale, so a joiner believes it only if the server there calls itself by a
  name made from the lock file's inode.
* ``server.users``: locked in common by each process that uses the server. Who leaves tries to take it alone; who
  succeeds is the last one and stops the server, while joiners wait.

It speaks no NATS beyond the server's greeting: the connection is the business of streams/broker.py. The program itself
is handled in streams/server_program.py.
"""

import asyncio
import contextlib
import datetime as dt
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs

from models.errors import AppError, BrokerError, StoreUnwritable
from streams.locks import LockFile, read_mounts, refuse_network_filesystem
from streams.server_program import (
    Address,
    check_version,
    choose_port,
    find_program,
    is_answering,
    read_address,
    read_pid,
    read_tail,
    replace_file,
    server_config,
    server_name,
    spawn,
    write_address,
)

POLL_S = 0.01
SUPERVISE_S = 0.2
STABLE_S = 30.0
KILL_S = 5.0
LOOK_S = 0.5
LOG = logging.getLogger(__name__)


class EmbeddedServer:
    """Joins the server of a STATE_DIR, starting it if none runs; an async context manager, entered once.

    Entering returns when the server answers with JetStream enabled. While entered, a server that dies is started again
    on the same port by one of its users. Leaving stops it if nobody else uses it. Cancelling either leaves no lock
    behind; a cancelled leave may leave the server running, and the next process joins it.

    Args:
        state_dir: the folder; created if missing.
        port: NATS_EMBEDDED_PORT; 0 takes that of the previous run, or a free one. A server that runs is joined on
            whatever port it has.
        search: folders in which the program is looked for; default: this Python's, then those of PATH.
        start_s: seconds after which a server that does not answer is given up.
        term_s: seconds that a server has to end by itself when its last user leaves, before it is killed.

    Raises:
        ServerMissing: there is no program.
        BrokerError: it is too old, exits, does not answer, or the port is taken.
        StoreError: STATE_DIR is on a network file system, or can't be written.
    """

    def __init__(
        self,
        state_dir: Path,
        port: int = 0,
        *,
        search: Sequence[str] | None = None,
        start_s: float = 15.0,
        term_s: float = 10.0,
    ) -> None:
        self._dir = state_dir.resolve()
        self._fixed_port = port
        self._search = search
        self._start_s = start_s
        self._term_s = term_s
        self._program: str | None = None
        self._address: Address | None = None
        self._is_starter = False
        self._exit = contextlib.AsyncExitStack()

    @property
    def address(self) -> Address:
        """The address as this process saw it last; its port and URL stay the same through restarts."""
        if self._address is None:
            raise BrokerError("the embedded nats-server is not running yet")
        return self._address

    @property
    def url(self) -> str:
        """The URL for clients."""
        return self.address.url

    @property
    def is_starter(self) -> bool:
        """Whether this process has spawned a server, at first or after a crash."""
        return self._is_starter

    async def __aenter__(self) -> Self:
        refuse_network_filesystem(self._dir, read_mounts())
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnwritable(self._dir, f"can't create the folder: {error.strerror}") from error
        async with contextlib.AsyncExitStack() as undo:
            users = LockFile.open(self._dir / "server.users")
            undo.callback(users.release)
            if not await _comes_true(users.try_shared, self._term_s + self._start_s):
                raise BrokerError(f"another process has been stopping the nats-server of {self._dir} for too long")
            undo.push_async_callback(self._stop_if_last, users)
            await self._join()
            undo.push_async_callback(_cancel, asyncio.create_task(self._supervise(), name="nats-server supervisor"))
            self._exit = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.aclose()

    async def _join(self) -> None:
        """Start the server, or wait until the one that holds the lock answers."""
        deadline = time.monotonic() + self._start_s
        while True:
            with contextlib.closing(LockFile.open(self._dir / "server.lock")) as lock:
                if lock.try_exclusive():
                    return await self._start(lock, self._ports())
                name = server_name(lock)
            address = read_address(self._dir)
            if address and address.name == name and await is_answering(address):
                self._address = address
                return None
            if time.monotonic() > deadline:
                problem = f"the nats-server that holds {self._dir / 'server.lock'} does not answer"
                raise BrokerError(f"{problem} after {self._start_s:g} s: see {self._dir / 'server.log'}")
            await asyncio.sleep(POLL_S)

    def _ports(self) -> Iterator[int]:
        """The ports to try, found one by one: a fixed one alone, else that of the previous run and some free ones."""
        if self._fixed_port:
            yield self._fixed_port
            return
        previous = read_address(self._dir)
        if previous:
            yield previous.port
        for _ in range(5):
            yield choose_port()

    async def _start(self, lock: LockFile, ports: Iterable[int]) -> None:
        """Start a server on the first port that is not taken; the lock must be held."""
        if self._program is None:
            program = find_program(self._search)
            await asyncio.to_thread(check_version, program)
            self._program = program
        port = 0
        for port in ports:
            if await self._start_on(lock, self._program, port):
                return
        way_out = f"NATS_EMBEDDED_PORT={port} can't be used" if self._fixed_port else "nats-server can't listen"
        raise BrokerError(f"{way_out}: another program has port {port} of 127.0.0.1")

    async def _start_on(self, lock: LockFile, program: str, port: int) -> bool:
        """Start a server on this port and wait until it answers; False means that the port is taken."""
        now = dt.datetime.now(dt.UTC)
        address = Address(url=f"nats://127.0.0.1:{port}", port=port, name=server_name(lock), pid=None, started=now)
        config, log = self._dir / "server.conf", self._dir / "server.log"
        replace_file(config, server_config(address).encode())
        # Written before the spawn too: if we are killed in between, joiners still find the server.
        write_address(self._dir, address)
        log_start = log.stat().st_size if log.exists() else 0
        process = spawn(program, config=config, log=log, lock=lock)
        self._address, self._is_starter = attrs.evolve(address, pid=process.pid), True
        write_address(self._dir, self._address)
        deadline = time.monotonic() + self._start_s
        while not await is_answering(address):
            if process.poll() is not None:
                tail = read_tail(log, log_start)
                if "address already in use" in tail:
                    return False
                raise BrokerError(f"nats-server exited with {process.returncode} at its start: {tail}")
            if time.monotonic() > deadline:
                tail = read_tail(log, log_start)
                raise BrokerError(f"nats-server does not answer after {self._start_s:g} s: {tail}")
            await asyncio.sleep(POLL_S)
        return True

    async def _supervise(self) -> None:
        """Start the server again whenever its lock turns out to be free; any of its users may come first."""
        restarts, last = 0, 0.0
        while True:
            await asyncio.sleep(restart_delay_s(restarts))
            try:
                with contextlib.closing(LockFile.open(self._dir / "server.lock")) as lock:
                    if not lock.try_exclusive():
                        restarts = 0 if time.monotonic() - last > STABLE_S else restarts
                        continue
                    restarts, last = restarts + 1, time.monotonic()
                    LOG.warning("nats-server has died; starting it again at %s (%d)", self.url, restarts)
                    await self._start(lock, [self.address.port])
            except (AppError, OSError) as error:
                LOG.error("nats-server could not be started again: %s", error)

    async def _stop_if_last(self, users: LockFile) -> None:
        if not users.try_exclusive():
            return
        with contextlib.closing(LockFile.open(self._dir / "server.lock")) as lock:
            for number, patience_s in ((signal.SIGTERM, self._term_s), (signal.SIGKILL, KILL_S)):
                # A spawn elsewhere in this process holds a copy of the lock for a moment, and a server that was just
                # spawned has not written its pid file yet: hence more than one look.
                await _comes_true(lambda: lock.try_exclusive() or self._server_pid(lock) is not None, LOOK_S)
                if lock.try_exclusive():
                    return
                pid = self._server_pid(lock)
                if pid is None:
                    LOG.error("nats-server of %s was left running: its process is not known here", self._dir)
                    return
                with contextlib.suppress(ProcessLookupError):  # it ended just now, and the lock will say so
                    os.kill(pid, number)
                if await _comes_true(lock.try_exclusive, patience_s):
                    return
            LOG.error("nats-server of %s does not end", self._dir)

    def _server_pid(self, lock: LockFile) -> int | None:
        """The process to signal: the one of the address or of the server's pid file, if it has the lock file open."""
        address = read_address(self._dir)
        pids = {address.pid if address else None, read_pid(self._dir / "server.pid")} - {None, os.getpid()}
        return next((pid for pid in pids if pid is not None and lock.is_open_in(pid)), None)


def restart_delay_s(restarts: int) -> float:
    """Seconds until the next look at the server: doubled with each restart, up to 6.4 s."""
    return float(SUPERVISE_S * 2 ** min(restarts, 5))


async def _comes_true(is_done: Callable[[], bool], patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not is_done():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
