"""Watches the event loop from a thread of its own: names the handler that keeps it from turning.

A blocking call, or an endless loop, in one handler stops all others, the heartbeats and HTTP, and nothing in the loop
can say so. The thread asks the loop for a sign of life four times a second; what it found is one error in the log for
each standstill, and afterwards a reason in /health. It ends nothing: ``isolate="process"`` is for that.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import attrs

from streams.subjects import Handler

log = logging.getLogger(__name__)

TICK_S = 0.25
STILL_AFTER_S = 1.0
SHOWN_S = 60.0
STACK_LIMIT = 30
BUSY_RATIO = 0.5


@attrs.define
class Standstill:
    """One time in which the loop did not turn; ``ended_at`` is monotonic, None while it lasts."""

    place: str
    blocked_s: float
    ended_at: float | None = None


@attrs.define
class PatientClock:
    """Measures how long the loop gives no sign of life, in seconds in which this process ran.

    A process that was stopped, or a machine that was suspended, keeps this clock's own thread from running too, so a
    tick that comes much too late counts as one tick; unless the processor was busy for us all the while, as it is
    when a handler's C code keeps every thread of Python waiting.
    """

    blocked_s: float = 0.0

    def tick(self, elapsed_s: float, busy_s: float) -> None:
        """Takes the seconds since the last tick, and those of them for which this process used a processor."""
        is_ours = elapsed_s <= 2 * TICK_S or busy_s >= BUSY_RATIO * elapsed_s
        self.blocked_s += elapsed_s if is_ours else TICK_S


class Watchdog:
    """Watches the loop in which it is started.

    Args:
        find: finds the handler that a task runs; called in the thread, while the loop stands still.
    """

    def __init__(self, find: Callable[["asyncio.Task[Any] | None"], Handler | None]) -> None:
        self._find = find
        self._ended = threading.Event()
        self._answered = threading.Event()
        self._last: Standstill | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches the running loop while its body runs."""
        loop, ident = asyncio.get_running_loop(), threading.get_ident()
        self._ended.clear()
        thread = threading.Thread(target=self._watch, args=(loop, ident), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def trouble(self, now: float) -> str | None:
        """What /health shows for a while after a standstill; ``now`` is monotonic seconds."""
        last = self._last
        if last is None or last.ended_at is None or now - last.ended_at > SHOWN_S:
            return None
        return f"the event loop stood still for {last.blocked_s:.1f} s {last.place}"

    def _watch(self, loop: asyncio.AbstractEventLoop, ident: int) -> None:
        while not self._ended.is_set():
            self._answered.clear()
            loop.call_soon_threadsafe(self._answered.set)
            self._await_answer(loop, ident)
            self._ended.wait(TICK_S)

    def _await_answer(self, loop: asyncio.AbstractEventLoop, ident: int) -> None:
        clock, found = PatientClock(), None
        at, busy = time.monotonic(), time.process_time()
        while True:
            has_answered = self._answered.wait(TICK_S)
            then, at, busy_then, busy = at, time.monotonic(), busy, time.process_time()
            clock.tick(at - then, busy - busy_then)
            if found is None and clock.blocked_s >= STILL_AFTER_S:
                found = self._report(loop, ident, clock.blocked_s)
            if has_answered or self._ended.is_set():
                break
        if found is not None:
            found.blocked_s, found.ended_at = clock.blocked_s, at
            self._last = found
            facts = {"blocked_s": round(clock.blocked_s, 1), "place": found.place}
            log.warning("the event loop turns again", extra={"fields": facts})

    def _report(self, loop: asyncio.AbstractEventLoop, ident: int, blocked_s: float) -> Standstill:
        handler = self._find(asyncio.current_task(loop))
        frames = _frames(sys._current_frames().get(ident))
        where = where_of(frames, handler)
        found = Standstill(place=f"{f'in {handler.name}' if handler else 'outside of handlers'} ({where})", blocked_s=0)
        facts = {
            "handler": handler.name if handler else None,
            "where": where,
            "blocked_s": round(blocked_s, 1),
            "frames": [_line(*frame) for frame in frames[-STACK_LIMIT:]],
        }
        log.error("the event loop stands still", extra={"fields": facts})
        return found


Frame = tuple[str, int, str]


def where_of(frames: list[Frame], handler: Handler | None) -> str:
    """The line at which a stack stands: the innermost of the handler's own file, else the innermost of all."""
    code = getattr(handler.function, "__code__", None) if handler else None
    own = [frame for frame in frames if code and frame[0] == code.co_filename]
    frame = next(reversed(own or frames), None)
    return _line(*frame) if frame else "its line is not known"


def _frames(frame: FrameType | None) -> list[Frame]:
    """A thread's stack, the innermost last; no values, for they may be a user's."""
    found: list[Frame] = []
    while frame is not None:
        found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found[::-1]


def _line(path: str, line: int, function: str) -> str:
    return f"{Path(path).name}:{line} in {function}"
