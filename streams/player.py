"""Runs handlers on stored messages against a scratch store: nothing they ask for becomes real.

What a worker gives a handler is given here too: its lane's rows, the message's time, random numbers and ids; and what
it peeked at when it ran for real, so that it decides as it did then. streams/replay.py chooses the messages.
"""

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from state.scratch import Place, Scratch
from streams.context import Effects, Rows, Scope
from streams.isolation import Isolation
from streams.message import Message
from streams.runner import CANCEL_AGAIN_S, Runner, Slot
from streams.subjects import Handler, SubjectTable
from streams.topology import EVENT_HEADER_BYTES, HEADER_BUDGET_BYTES, STREAMS, is_publishable
from streams.verdict import Verdict

TICK_S = 0.1
NO_EFFECTS = Effects()

PeekRow = tuple[str, str, bytes | None]


@attrs.frozen(kw_only=True)
class Played:
    """What a handler made of a message.

    Args:
        key: its lane; empty when the payload does not fit.
        event: the decoded payload, or None.
        effects: what it asked for; nothing unless it succeeded.
        before: the rows that it wrote, or added to, as JSON before that.
        guessed: peeks for which nothing was kept with the message, answered from the scratch store.
    """

    message: Message
    table: SubjectTable
    handler: Handler
    key: str
    event: Any
    verdict: Verdict
    effects: Effects
    before: Mapping[Place, bytes | None]
    guessed: int


class Player:
    """Runs messages one after the other; a context manager, whose clock cancels what runs past its time.

    Args:
        peeks: what was kept of a message's peeks: a function of the table's name and the sequence.
        max_payload_bytes: the largest payload that JetStream takes.
    """

    def __init__(
        self,
        tables: Iterable[SubjectTable],
        scratch: Scratch,
        *,
        peeks: Callable[[str, int], Iterable[PeekRow]],
        max_deliver: int,
        max_payload_bytes: int,
    ) -> None:
        self._scratch = scratch
        self._peeks = peeks
        self._limit = max_payload_bytes - HEADER_BUDGET_BYTES - EVENT_HEADER_BYTES
        self._waiting: dict[str, Rows] = {}
        self._kept: dict[Place, list[bytes | None]] | None = None
        self._now: tuple[str, int] = "", 0
        self._guessed = 0
        self._slot = Slot()
        self._task: asyncio.Task[Any] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._cancelled_at: float | None = None
        self._isolation = Isolation(offline=True)
        self._runners = {
            table.name: Runner(
                table,
                self._scope(table),
                max_deliver=max_deliver,
                rng=random.Random(0),
                isolation=self._isolation,
            )
            for table in tables
        }

    def _scope(self, table: SubjectTable) -> Scope:
        self._waiting[table.name] = {}
        return Scope(
            name=table.name,
            tables={rows.name: rows for rows in table.tables},
            fetch=self._scratch.fetch,
            waiting=self._waiting[table.name],
            publishable=lambda subject: is_publishable(subject, STREAMS),
            max_payload_bytes=lambda: self._limit,
            peek=self._peek,
        )

    async def __aenter__(self) -> "Player":
        self._task = asyncio.current_task()
        self._ticking = asyncio.create_task(self._tick(), name="player-clock")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._ticking:
            self._ticking.cancel()
            await asyncio.wait((self._ticking,))
        await self._isolation.__aexit__(None, None, None)

    async def _tick(self) -> None:
        """Cancels an attempt past its deadline; whoever else cancels the task wants the end of all."""
        while True:
            await asyncio.sleep(TICK_S)
            now, deadline = time.monotonic(), self._slot.deadline
            is_again = self._cancelled_at is not None and now - self._cancelled_at < CANCEL_AGAIN_S
            if self._task and deadline is not None and now > deadline and not is_again:
                self._cancelled_at = now
                self._task.cancel()

    async def _check_cancelled(self) -> None:
        """Takes the clock's cancellation back, and passes on any other one."""
        task = self._task
        if task is None or not task.cancelling():
            return
        if self._cancelled_at is None:
            raise asyncio.CancelledError
        self._cancelled_at, self._slot.task = None, task
        await self._slot.absorb_cancellation()
        self._slot.task = None

    def _peek(self, table: str, key: str) -> bytes | None:
        if self._kept is None:
            self._kept = {}
            for name, row_key, value in self._peeks(*self._now):
                self._kept.setdefault((name, row_key), []).append(value)
        kept = self._kept.get((table, key))
        if kept:
            return kept.pop(0) if len(kept) > 1 else kept[0]
        self._guessed += 1
        return self._scratch.fetch(table, key)

    async def play(self, table: SubjectTable, message: Message) -> Played | None:
        """Runs a message's handler in the caller's task, which entered the context; None when the table has none."""
        runner = self._runners[table.name]
        handler = runner.handler_for(message.subject)
        if handler is None:
            return None
        self._now, self._kept, self._guessed = (table.name, message.seq), None, 0
        item = runner.prepare(message, handler)
        effects = NO_EFFECTS
        if item.error is not None:
            verdict = runner.judge(item, item.error)
        else:
            with contextlib.redirect_stdout(sys.stderr):  # what a handler prints is not what the command prints
                verdict, ctx = await runner.run(item, self._slot)
            await self._check_cancelled()
            if verdict.kind == "applied" and ctx.effects is not None:
                effects = ctx.effects
        places = [*effects.puts, *((name, key) for name, key, _, _ in effects.adds)]
        return Played(
            message=message,
            table=table,
            handler=handler,
            key=item.key,
            event=item.event,
            verdict=verdict,
            effects=effects,
            before={place: self._scratch.fetch(*place) for place in places},
            guessed=self._guessed,
        )

    def keep(self, played: Played) -> None:
        """Writes the effects to the scratch store, for the messages that come after."""
        message, effects, scratch = played.message, played.effects, self._scratch
        for place, row in effects.puts.items():
            scratch.put(place, row, message.stream, message.seq)
        for table, key, field, n in effects.adds:
            scratch.add((table, key), field, n, message.stream, message.seq)
        self._waiting[played.table.name].update(effects.rows)
        if scratch.is_full:
            self.flush()

    def flush(self) -> None:
        """Has the scratch store write what it keeps in memory."""
        self._scratch.flush()
        for rows in self._waiting.values():
            rows.clear()
