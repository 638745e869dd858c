"""Handlers that run in processes of their own, in a module that such a process can import, and do as they are told."""

import ctypes
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from models.errors import Reject, Retry
from state.tables import Table
from streams.context import Context
from streams.policy import Policy
from streams.subjects import SubjectTable

SUBJECT = "signals.isolated"

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Order:
    user_id: str
    n: int
    what: str = "succeed"


@attrs.frozen(kw_only=True)
class Seen:
    """What was applied for one user, in order; the process that ran the last one; what was peeked at."""

    seen: tuple[int, ...] = ()
    pid: int = 0
    peeked: int | None = None


@attrs.frozen(kw_only=True)
class Total:
    count: int = 0


class Down(Exception):
    """A dependency is down."""


ROWS = Table("isolated", Seen)
TOTALS = Table("isolated_totals", Total, kind="counters")
subjects = SubjectTable("isolated", tables=[ROWS, TOTALS])


@subjects.on(SUBJECT, policy=Policy(isolate="process", timeout_s=1, backoff_s=(0.05,), max_deliver=2, retry_on=(Down,)))
async def obey(event: Order, ctx: Context) -> None:
    """Does as it is told, then records the step."""
    WAYS[event.what]()
    print("\x00\x00\x00\x01 noise on standard output", flush=True)
    row = ctx.get(ROWS, event.user_id) or Seen()
    other = ctx.peek(TOTALS, "all")
    ctx.add(TOTALS, "all", "count", 2**70 if event.what == "huge" else 1)
    ctx.publish("signals.echo", {"n": event.n, "id": ctx.new_id()})
    seen = Seen(seen=(*row.seen, event.n), pid=os.getpid(), peeked=other.count if other else None)
    ctx.put(ROWS, event.user_id, seen)
    log.warning("obeyed", extra={"fields": {"n": event.n, "policy": ctx}})


def loop() -> None:
    """Never ends, and never awaits."""
    while True:
        pass


def failing(error: Exception) -> Callable[[], None]:
    """Raises an error."""

    def fail() -> None:
        raise error

    return fail


def own_sockets() -> list[int]:
    """The descriptor through which this process speaks to its worker."""
    names = [(int(entry.name), os.readlink(entry)) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return [fd for fd, name in names if fd > 2 and name.startswith("socket:")]


def garble() -> None:
    """Says something that is no record."""
    for fd in own_sockets():
        os.write(fd, b"\x00\x00\x00\x01\xc1")


def close() -> None:
    """Closes the connection and lives on."""
    os.closerange(3, 100)
    time.sleep(60)


def leave() -> None:
    """Starts a program that outlives its own end."""
    subprocess.Popen(["sleep", "60"])
    os._exit(3)


WAYS: dict[str, Callable[[], object]] = {
    "succeed": lambda: None,
    "huge": lambda: None,
    "loop": loop,
    "sleep": lambda: time.sleep(60),
    "segfault": lambda: ctypes.string_at(0),
    "_exit": lambda: os._exit(3),
    "exit": lambda: sys.exit("enough"),
    "kill": lambda: os.kill(os.getpid(), 9),
    "reject": failing(Reject("no good")),
    "retry": failing(Retry("later", 0.01)),
    "down": failing(Down("gone")),
    "fail": failing(ValueError("bad")),
    "garble": garble,
    "close": close,
    "leave": leave,
    "connect": lambda: socket.create_connection(("127.0.0.1", 9)),
}
