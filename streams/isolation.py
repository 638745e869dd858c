"""Runs handlers with ``isolate="process"`` in processes of their own, which can be killed and then stop nobody.

Each handler has a few processes, started when they are needed and used again. One that runs past its time, crashes or
exits is gone, and that is a failure of its message alone. The process (streams/isolation_program.py) is given the
message and its lane's rows, and hands back effects as bytes; nothing of the store or of NATS is open in it.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import attrs
import msgspec

from models.errors import DeclarationError, Retry, StoreError
from streams.context import Effects, Scope, Written
from streams.isolation_frames import (
    LENGTH_BYTES,
    Assignment,
    EffectsSent,
    KeyedRow,
    Logged,
    Peeked,
    Report,
    Task,
    decode_report,
    framed,
)
from streams.message import Message
from streams.subjects import Handler, SubjectTable
from streams.verdict import Fault

log = logging.getLogger(__name__)

PROCESS_LIMIT = 4
START_S = 30.0
END_S = 1.0
REAP_S = 5.0
STDERR_FD = 2
# sys.path comes first, so that the process can import whatever the worker can.
BOOT = (
    "import sys; fd, parent, *sys.path = sys.argv[1:]; "
    "from streams.isolation_program import main; main(int(fd), int(parent))"
)


def check_isolated(tables: Iterable[SubjectTable]) -> None:
    """Checks that each isolated handler can be found by a process that imports its module.

    Raises:
        DeclarationError: naming the handler and what is expected.
    """
    for table in tables:
        for handler in table.handlers:
            if handler.policy.isolate and (problem := _problem(table, handler)):
                raise DeclarationError(f"subject table {table.name!r}, handler {handler.name!r}", problem)


def _problem(table: SubjectTable, handler: Handler) -> str | None:
    name, module = handler.function.__name__, handler.function.__module__
    found = sys.modules.get(module)
    if found is None or module == "__main__":
        return f"isolate: expected a handler in a module that can be imported, got one in {module!r}"
    if getattr(found, name, None) is not handler.function:
        return f"isolate: expected {name!r} to be a function at the top of module {module!r}"
    if not any(value is table for value in vars(found).values()):
        return f"isolate: expected the SubjectTable {table.name!r} to be a name at the top of module {module!r}"
    return None


@attrs.define(eq=False)
class Process:
    """A process that runs one handler, and the worker's end of the connection to it."""

    popen: "subprocess.Popen[bytes]"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, record: object) -> None:
        """Sends one record."""
        self.writer.write(framed(record))
        await self.writer.drain()

    async def receive(self) -> Report:
        """Receives what is said next.

        Raises:
            EOFError, OSError: the process has ended.
            msgspec.DecodeError: something else has written to its end.
        """
        length = int.from_bytes(await self.reader.readexactly(LENGTH_BYTES), "big")
        return decode_report(await self.reader.readexactly(length))


@attrs.define(eq=False)
class Pool:
    """The processes of one handler: how many may run, and those that are idle."""

    places: asyncio.Semaphore = attrs.field(factory=lambda: asyncio.Semaphore(PROCESS_LIMIT))
    idle: list[Process] = attrs.field(factory=list)


class NotStarted(Exception):
    """A process did not get ready; the message is not to blame."""


class Isolation:
    """The processes of isolated handlers; an async context manager that leaves none behind.

    Args:
        offline: the handlers may make no outgoing connections.
        start_s: seconds that a process has to import its handler.
    """

    def __init__(self, *, offline: bool = False, start_s: float = START_S) -> None:
        self._start_s = start_s
        self._is_offline = offline
        self._pools: dict[str, Pool] = {}
        self._processes: set[Process] = set()
        self._reaping: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> list[int]:
        """The processes that live, or are about to be killed."""
        return [process.popen.pid for process in self._processes]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        idle = [process for pool in self._pools.values() for process in pool.idle]
        for process in idle:
            process.writer.close()  # at which it ends by itself
        await asyncio.gather(*(self._end_of(process) for process in idle))
        for process in list(self._processes):
            self._kill(process)
        if self._reaping:
            await asyncio.wait(self._reaping, timeout=REAP_S)

    async def run(
        self, handler: Handler, message: Message, key: str, *, scope: Scope, begin: Callable[[], None]
    ) -> Effects | Fault:
        """Runs one attempt; a cancellation kills its process.

        Args:
            begin: called when there is a process, to start the attempt's clock.
        """
        pool = self._pools.setdefault(handler.name, Pool())
        async with pool.places:
            try:
                process = self._idle(pool) or await self._start(handler)
            except NotStarted as error:
                return Fault(kind="retry", text=str(error))
            is_idle = False
            try:
                begin()
                await process.send(_task(message, key, scope))
                result = await self._result(process, scope)
                is_idle = True
            except (EOFError, OSError):
                return Fault(kind="failure", text=f"the handler's process ended ({await self._end_of(process)})")
            except msgspec.DecodeError as error:
                return Fault(kind="failure", text=f"the handler's process can't be understood ({error})")
            finally:
                pool.idle.append(process) if is_idle else self._kill(process)
            return result

    def _idle(self, pool: Pool) -> Process | None:
        while pool.idle:
            process = pool.idle.pop()
            if process.popen.poll() is None:
                return process
            self._kill(process)  # it has ended meanwhile; the next message is not to blame
        return None

    async def _start(self, handler: Handler) -> Process:
        try:
            process = await self._spawn()
        except OSError as error:
            raise NotStarted(f"the handler's process can't be started ({error})") from error
        is_ready = False
        try:
            async with asyncio.timeout(self._start_s):
                await process.send(self._assignment(handler))
                report = await self._answer(process)
            if report.fault:
                raise NotStarted(f"the handler's process can't import it ({report.fault.text})")
            is_ready = True
        except TimeoutError as error:
            raise NotStarted(f"the handler's process was not ready within {self._start_s:g} s") from error
        except (EOFError, OSError, msgspec.DecodeError) as error:
            raise NotStarted(f"the handler's process ended at its start ({await self._end_of(process)})") from error
        finally:
            if not is_ready:
                self._kill(process)
        return process

    async def _spawn(self) -> Process:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                popen = subprocess.Popen(
                    [sys.executable, "-c", BOOT, str(theirs.fileno()), str(os.getpid()), *sys.path],
                    stdin=subprocess.DEVNULL,
                    stdout=STDERR_FD if self._is_offline else None,  # a replay's own output is for programs
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C is for the worker, which drains first
                )
            except OSError:
                ours.close()
                raise
        process: Process | None = None
        try:
            process = Process(popen, *await asyncio.open_unix_connection(sock=ours))
        finally:
            if process is None:  # cancelled in between
                _kill_group(popen)
                popen.wait()
                ours.close()
        self._processes.add(process)
        return process

    def _assignment(self, handler: Handler) -> Assignment:
        return Assignment(
            module=handler.function.__module__,
            table=handler.name.partition(".")[0],
            handler=handler.name,
            is_offline=self._is_offline,
            log_level=logging.getLogger().getEffectiveLevel(),
        )

    async def _answer(self, process: Process) -> Report:
        """Receives what is no log record, and logs those."""
        while (logged := (report := await process.receive()).logged) is not None:
            _log(logged)
        return report

    async def _result(self, process: Process, scope: Scope) -> Effects | Fault:
        while (asked := (report := await self._answer(process)).peek) is not None:
            try:
                peeked = Peeked(row=scope.peek(*asked))
            except StoreError as error:
                peeked = Peeked(error=str(error))
            await process.send(peeked)
        if report.fault is not None:
            return report.fault
        assert report.effects is not None, "a task ends with a fault or with effects"
        return _effects(report.effects, scope)

    @staticmethod
    async def _end_of(process: Process) -> str:
        """How a process whose connection has ended came to its end."""
        try:
            code = await asyncio.to_thread(_wait, process.popen)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _kill(self, process: Process) -> None:
        if process in self._processes:
            self._processes.discard(process)
            _kill_group(process.popen)
            task = asyncio.create_task(_reap(process), name="isolation-reap")
            self._reaping.add(task)
            task.add_done_callback(self._reaping.discard)


def _kill_group(popen: "subprocess.Popen[bytes]") -> None:
    """Kills a process and those that it has started; not after its end was noted, for then its number is free."""
    if popen.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended by itself
            os.killpg(popen.pid, signal.SIGKILL)


def _wait(popen: "subprocess.Popen[bytes]") -> int:
    """Waits for a process's end, then kills what it has started: at once, while its number can't be another's yet."""
    code = popen.wait(END_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has left nothing behind
        os.killpg(popen.pid, signal.SIGKILL)
    return code


async def _reap(process: Process) -> None:
    """Takes note of the end of a process that was killed; in a thread, for a large one takes its time."""
    process.writer.transport.abort()
    await asyncio.to_thread(process.popen.wait)


def _task(message: Message, key: str, scope: Scope) -> Task:
    return Task(
        stream=message.stream,
        subject=message.subject,
        payload=message.payload,
        seq=message.seq,
        ts=message.ts,
        num_delivered=message.num_delivered,
        key=key,
        rows=[_row(name, key, scope) for name, table in scope.tables.items() if table.kind == "rows"],
        max_payload_bytes=scope.max_payload_bytes(),
    )


def _row(table: str, key: str, scope: Scope) -> KeyedRow:
    """A row as its lane sees it: as it was written last, committed or not."""
    written = scope.waiting.get((table, key))
    if written is not None:
        return table, key, None if written.row is None else scope.tables[table].encode(written.row)
    try:
        return table, key, scope.fetch(table, key)
    except StoreError as error:
        raise Retry(f"get: a row of {table!r} can't be read: {error}") from error


def _effects(sent: EffectsSent, scope: Scope) -> Effects:
    decoded: dict[tuple[str, str], Any] = {
        (table, key): None if row is None else scope.tables[table].decode(row) for table, key, row in sent.puts
    }
    return Effects(
        rows={place: Written(row) for place, row in decoded.items()},
        puts={(table, key): row for table, key, row in sent.puts},
        adds=sent.adds,
        peeks=sent.peeks,
        publishes=sent.publishes,
    )


def _log(logged: Logged) -> None:
    logger = logging.getLogger(logged.logger)
    if logger.isEnabledFor(logged.level):
        logger.log(logged.level, "%s", logged.message, extra={"fields": logged.fields})
