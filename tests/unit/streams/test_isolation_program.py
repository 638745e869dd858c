"""The process of an isolated handler: how it finds its handler, speaks, logs and ends."""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from isolated_handlers import ROWS, subjects

from streams.isolation import BOOT
from streams.isolation_frames import Assignment, Report, decode_report, framed, plain
from streams.isolation_program import Forwarding, Line, find


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def assignment(handler: str) -> Assignment:
    """Work on a handler of the module of isolated handlers."""
    return Assignment(module="isolated_handlers", table="isolated", handler=handler, is_offline=False, log_level=30)


def test_program_finds_its_handler_by_name() -> None:
    """The module's SubjectTable of that name has the handler of that name, or it is said that there is none."""
    table, handler = find(assignment("isolated.obey"))
    assert table is subjects and handler is subjects.handlers[0] and table.tables[0] is ROWS
    with pytest.raises(LookupError, match="'isolated_handlers' has no handler 'isolated.other'"):
        find(assignment("isolated.other"))


def test_line_puts_parts_together_and_ends_with_the_worker(ends: tuple[socket.socket, socket.socket]) -> None:
    """A record arrives whole although its bytes come in parts; the end of the connection is an orderly exit."""
    ours, theirs = ends
    sent = framed(Report(peek=("a", "b")))
    ours.sendall(sent[:6])
    ours.sendall(sent[6:])
    line = Line(theirs)
    assert decode_report(line.receive()) == Report(peek=("a", "b"))
    ours.close()
    with pytest.raises(SystemExit) as caught:
        line.receive()
    assert caught.value.code == 0


def test_forwarding_sends_fields_as_plain_values(ends: tuple[socket.socket, socket.socket]) -> None:
    """What msgpack can't hold goes as its text; an exception goes as its traceback."""
    ours, theirs = ends
    try:
        raise ValueError("bad")
    except ValueError:
        record = logging.LogRecord("h", logging.ERROR, "h.py", 1, "failed %d", (7,), sys.exc_info())
    record.__dict__["fields"] = {"n": 1, "what": [1]}
    Forwarding(Line(theirs)).emit(record)
    logged = decode_report(Line(ours).receive()).logged
    assert logged is not None and (logged.logger, logged.level, logged.message) == ("h", logging.ERROR, "failed 7")
    assert logged.fields.items() >= {"n": 1, "what": "[1]"}.items()
    assert "ValueError: bad" in str(logged.fields["trace"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), (True, True), (1.5, 1.5), ("a", "a"), (2**63 - 1, 2**63 - 1), (2**63, str(2**63)), ((1,), "(1,)")],
)
def test_plain_keeps_what_a_frame_can_hold(value: object, expected: object) -> None:
    """Numbers of 64 bits, text and truth values stay; all else becomes text."""
    assert plain(value) == expected


def test_program_whose_worker_is_gone_ends_at_once() -> None:
    """The worker may die before the process can ask the kernel to be told of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", BOOT, str(theirs.fileno()), str(os.getpid() + 1), *sys.path]
        assert subprocess.run(command, pass_fds=(theirs.fileno(),), timeout=30, check=False).returncode == 0
