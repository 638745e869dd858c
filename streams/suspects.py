"""Crash suspects: after a process ended without saying so, the messages it may have died of run alone.

A message that kills the process leaves no outcome, so nothing in its own history tells it from its innocent neighbours.
What tells them apart: every message that had been delivered by then runs with nothing else beside it, between a durable
note of its start and the commit of its outcome. A note that survives the process names the message that ran. After
three such crashes it becomes a dead letter without another run.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping

from state.store import Started, Tried

CRASH_LIMIT = 3


class Gate:
    """Lets handlers run side by side, or one alone; who wants to be alone goes before those who come after."""

    def __init__(self) -> None:
        self._beside_count = 0
        self._alone_count = 0
        self._lock = asyncio.Lock()
        self._is_quiet = asyncio.Event()
        self._is_quiet.set()
        self._is_open = asyncio.Event()
        self._is_open.set()

    @property
    def is_free(self) -> bool:
        """Whether one may run beside others without waiting."""
        return self._alone_count == 0

    async def free(self) -> None:
        """Waits until one may run beside others."""
        await self._is_open.wait()

    def enter(self) -> None:
        """Begins a run beside others; only while the gate is free."""
        self._beside_count += 1
        self._is_quiet.clear()

    def leave(self) -> None:
        """Ends a run beside others."""
        self._beside_count -= 1
        if not self._beside_count:
            self._is_quiet.set()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Runs its body when nothing else runs, and nothing else while it does."""
        self._alone_count += 1
        self._is_open.clear()
        try:
            async with self._lock:
                await self._is_quiet.wait()
                yield
        finally:
            self._alone_count -= 1
            if not self._alone_count:
                self._is_open.set()


class Suspects:
    """Which messages of a durable are suspects, and how often each was running when the process died.

    Of a lane that waits in the store only the first message can have been running, for the next one is not taken before
    the first one's outcome is committed.

    Args:
        was_unclean: the last process ended without saying so.
        crashes: crashes by sequence.
        lanes: the lanes that wait in the store.
        alive: names the processes that live.
    """

    def __init__(
        self,
        *,
        was_unclean: bool,
        crashes: Mapping[int, int],
        lanes: Iterable[str] = (),
        alive: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._was_unclean = was_unclean
        self._alive = alive
        self._crashes = dict(crashes)
        self._lanes = set(lanes)
        self._until_seq: int | None = None

    def note_delivered(self, seq: int) -> None:
        """Takes the highest sequence that the server had delivered before this process attached first."""
        if self._until_seq is None:
            self._until_seq = seq

    def note_redelivered(self, seq: int, num_delivered: int, *, started: Started | None, tried: Tried | None) -> None:
        """Takes a message of a shared table that was delivered before: another process may have died of it.

        Args:
            started: the note of its last run alone, if there is one.
            tried: its earlier attempts, as far as they failed; they account for a delivery each.
        """
        if started is None and tried is not None and tried.attempts >= num_delivered - 1:
            return
        crashes = self._crashes.get(seq, 0)
        if started is not None:
            has_died = bool(started.runner) and started.runner not in self._alive()
            crashes = max(crashes, started.crashes + has_died)
        self._crashes[seq] = crashes

    def is_suspect(self, seq: int, parked_lane: str | None = None) -> bool:
        """Whether a message has to run alone; ``parked_lane`` is its lane when it comes out of the store."""
        if seq in self._crashes:
            return True
        if not self._was_unclean:
            return False
        if parked_lane is not None:
            return parked_lane in self._lanes
        return self._until_seq is None or seq <= self._until_seq

    def clear_lane(self, lane: str) -> None:
        """Takes note that the first message of a waiting lane has run."""
        self._lanes.discard(lane)

    def acquit(self, seq: int) -> None:
        """Forgets a message that has its outcome."""
        self._crashes.pop(seq, None)

    def crash_count(self, seq: int) -> int:
        """How often the process died while this message ran alone."""
        return self._crashes.get(seq, 0)
