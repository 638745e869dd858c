"""The process in which one isolated handler runs, message after message, as told by its worker.

It has no store and no NATS: the rows of the lane come with each message, a peek asks the worker, and effects go back as
bytes. It dies with its worker. streams/isolation.py is the other side; standard output is free for the handler.
"""

import asyncio
import contextlib
import ctypes
import importlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.errors import StoreError
from streams.context import Context, Effects, Scope
from streams.isolation_frames import (
    LENGTH_BYTES,
    Assignment,
    EffectsSent,
    Logged,
    Peeked,
    Report,
    Task,
    decode_assignment,
    decode_peeked,
    decode_task,
    framed,
    plain,
)
from streams.message import Message
from streams.offline import Offline
from streams.runner import attempt, fault_in
from streams.subjects import Handler, SubjectTable
from streams.topology import STREAMS, is_publishable
from streams.verdict import Fault, describe

PR_SET_PDEATHSIG = 1


class Line:
    """The process's end of the connection; threads of the handler may log at the same time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, record: object) -> None:
        """Sends one record."""
        body = framed(record)
        with self._lock:
            self._sock.sendall(body)

    def receive(self) -> bytes:
        """Receives one record's bytes; ends the process when the worker is gone."""
        return self._exactly(int.from_bytes(self._exactly(LENGTH_BYTES), "big"))

    def _exactly(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            part = self._sock.recv(count - len(found))
            if not part:
                raise SystemExit(0)
            found += part
        return bytes(found)


class Forwarding(logging.Handler):
    """Hands log records to the worker, which writes them as it writes its own."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Sends a record; a value that is not plain goes as its text."""
        given = getattr(record, "fields", None)
        fields = {str(key): plain(value) for key, value in given.items()} if isinstance(given, Mapping) else {}
        if record.exc_info and record.exc_info[0] is not None:
            fields["trace"] = logging.Formatter().formatException(record.exc_info)
        logged = Logged(logger=record.name, level=record.levelno, message=record.getMessage(), fields=fields)
        self._line.send(Report(logged=logged))


class Program:
    """Runs the handler that it is assigned.

    Args:
        line: where tasks come from.
    """

    def __init__(self, line: Line, table: SubjectTable, handler: Handler) -> None:
        self._line = line
        self._table = table
        self._handler = handler

    def run(self) -> None:
        """Runs one task after another, all in one event loop, until the worker is gone."""
        with asyncio.Runner() as runner:
            while True:
                task = decode_task(self._line.receive())
                report = runner.run(self._report(task))
                try:
                    self._line.send(report)
                except (OverflowError, TypeError) as error:
                    fault = Fault(kind="failure", text=f"the effects can't be handed over ({describe(error)})")
                    self._line.send(Report(fault=fault))

    async def _report(self, task: Task) -> Report:
        message = Message(
            task.stream, task.subject, task.payload, None, task.seq, 0, task.ts, num_delivered=task.num_delivered
        )
        ctx = Context(message, task.key, self._scope(task))
        error = await attempt(self._handler.function, self._handler.decode(task.payload), ctx)
        if error is not None:
            return Report(fault=fault_in(error, self._handler, has_trace=True))
        return Report(effects=_sent(ctx.effects or Effects()))

    def _scope(self, task: Task) -> Scope:
        rows = {(table, key): row for table, key, row in task.rows}
        return Scope(
            name=self._table.name,
            tables={table.name: table for table in self._table.tables},
            fetch=lambda table, key: rows[table, key],
            waiting={},
            publishable=lambda subject: is_publishable(subject, STREAMS),
            max_payload_bytes=lambda: task.max_payload_bytes,
            peek=self._peek,
        )

    def _peek(self, table: str, key: str) -> bytes | None:
        self._line.send(Report(peek=(table, key)))
        peeked: Peeked = decode_peeked(self._line.receive())
        if peeked.error is not None:
            raise StoreError(Path(), peeked.error)
        return peeked.row


def _sent(effects: Effects) -> EffectsSent:
    return EffectsSent(
        puts=[(table, key, row) for (table, key), row in effects.puts.items()],
        adds=effects.adds,
        peeks=effects.peeks,
        publishes=effects.publishes,
    )


def find(assignment: Assignment) -> tuple[SubjectTable, Handler]:
    """Imports the handler's module and finds the handler in its subject table.

    Raises:
        LookupError: the module has other handlers than it had in the worker.
    """
    values: list[Any] = list(vars(importlib.import_module(assignment.module)).values())
    for table in values:
        if isinstance(table, SubjectTable) and table.name == assignment.table:
            for handler in table.handlers:
                if handler.name == assignment.handler:
                    return table, handler
    raise LookupError(f"module {assignment.module!r} has no handler {assignment.handler!r}")


def die_with(parent: int) -> None:
    """Has the kernel, where it is Linux, kill this process when the worker dies, even in an endless loop."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has died before that
        raise SystemExit(0)


def main(fd: int, parent: int) -> None:
    """Runs the process on the connection ``fd`` of the worker ``parent``."""
    die_with(parent)
    line = Line(socket.socket(fileno=fd))
    os.set_inheritable(fd, False)  # programs that the handler starts have no business with it
    assignment = decode_assignment(line.receive())
    root = logging.getLogger()
    root.addHandler(Forwarding(line))
    root.setLevel(assignment.log_level)
    with contextlib.ExitStack() as stack:
        if assignment.is_offline:
            stack.enter_context(Offline(()))
        try:
            table, handler = find(assignment)
        except Exception as error:
            line.send(Report(fault=Fault(kind="failure", text=describe(error))))
            return
        line.send(Report())
        Program(line, table, handler).run()
