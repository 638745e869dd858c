"""Runs handlers: the one place where any exception becomes a verdict.

Whatever a handler does — return, raise, take too long — leaves here as a Verdict and, when it succeeded, its effects.
Only a cancellation by shutdown passes through, for then nothing is decided and the message comes again.
"""

import asyncio
import functools
import math
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from models.errors import DeclarationError, PayloadError
from streams.context import Context, Effects, Scope
from streams.isolation import Isolation
from streams.message import Message
from streams.policy import Policy
from streams.position import Place
from streams.subjects import Handler, HandlerFunction, SubjectTable
from streams.verdict import APPLIED, Fault, History, Verdict, decide, fault_of

CANCEL_AGAIN_S = 1.0


@attrs.define(eq=False)
class Item:
    """A message in the worker's hands.

    Args:
        key: its lane; empty when the payload does not decode.
        event: the decoded payload, or None with ``error`` set.
        place: its place among the deliveries since the last attach.
        is_parked: it comes from the store's parked messages and has been acked already.
        is_redriven: it was a dead letter before.
        is_shared: other processes may have been given it too.
        was_noted: it runs alone, as a crash suspect, and its start was noted.
    """

    message: Message
    handler: Handler
    key: str
    event: Any
    error: Exception | None = None
    place: Place | None = None
    is_parked: bool = False
    history: History | None = None
    is_redriven: bool = False
    is_shared: bool = False
    was_noted: bool = False

    @property
    def seq(self) -> int:
        """The message's sequence in its stream."""
        return self.message.seq

    @property
    def ts(self) -> int:
        """When the stream stored the message, in nanoseconds since 1970."""
        return self.message.ts


class Slot:
    """A place in which one handler runs at a time, with the deadline of its attempt.

    ``is_stopping`` is set when the worker ends, for only then does a cancellation mean that nothing is decided.
    """

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.handler = ""
        self.deadline: float | None = None
        self.cancelled_at: float | None = None
        self.is_stopping = False

    def begin_attempt(self, handler: str, timeout_s: float) -> None:
        """Starts the clock of an attempt."""
        self.handler = handler
        self.deadline = time.monotonic() + timeout_s

    def cancel_if_overdue(self, now: float) -> None:
        """Cancels the attempt that has run past its deadline, once a second; ``now`` is monotonic seconds."""
        if self.deadline is None or now < self.deadline or self.task is None:
            return
        if self.cancelled_at is None or now - self.cancelled_at >= CANCEL_AGAIN_S:
            self.cancelled_at = now
            self.task.cancel()

    def end_attempt(self) -> bool:
        """Stops the clock; tells whether the attempt ran past its deadline."""
        was_overdue = self.deadline is not None and time.monotonic() >= self.deadline
        self.deadline = self.cancelled_at = None
        return was_overdue

    @property
    def has_cancellation(self) -> bool:
        """Whether the task was cancelled during this attempt, by the deadline or by its own handler."""
        return self.task is not None and self.task.cancelling() > 0 and not self.is_stopping

    async def absorb_cancellation(self) -> None:
        """Takes every cancellation back; one that was not delivered yet is delivered here."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if self.is_stopping:
                raise
        while self.task and self.task.cancelling():
            self.task.uncancel()


class Runner:
    """Decodes and runs the messages of one subject table.

    Args:
        max_deliver: NATS_MAX_DELIVER, for policies without a number of their own.
        rng: the source of jitter.
        recall: finds the earlier attempts of a message that has just failed and brings none along.
        isolation: runs the handlers that want a process of their own.

    Raises:
        DeclarationError: a handler wants a process of its own, and there is no isolation.
    """

    def __init__(
        self,
        table: SubjectTable,
        scope: Scope,
        *,
        max_deliver: int,
        rng: random.Random,
        recall: Callable[[Item], History | None] | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        isolated = [handler.name for handler in table.handlers if handler.policy.isolate]
        if isolated and isolation is None:
            raise DeclarationError(f"handler {isolated[0]!r}", "isolate: there are no processes to run it in here")
        self._isolation = isolation
        self._recall = recall
        self._scope = scope
        self._max_deliver = max_deliver
        self._rng = rng
        self._by_subject: dict[str, Handler | None] = {h.subject: h for h in table.handlers if "*" not in h.subject}
        self._table = table

    def handler_for(self, subject: str) -> Handler | None:
        """Finds the handler of a subject."""
        handler = self._by_subject.get(subject)
        return handler if handler is not None else self._table.handler_for(subject)

    def prepare(self, message: Message, handler: Handler) -> Item:
        """Decodes a message and finds its lane; what can't be decoded becomes an item with an error."""
        try:
            event = handler.decode(message.payload)
            key = handler.key_of(event)
            if type(key) is not str:
                raise PayloadError(f"key: expected a str, got {key!r}")
            key.encode()  # a lone surrogate can't be stored
        except Exception as error:
            return Item(message, handler, "", None, error)
        return Item(message, handler, key, event)

    def orphan(self, message: Message) -> Item:
        """An item that can only be given up: a parked message whose handler was removed meanwhile."""
        error = PayloadError(f"no handler takes {message.subject!r} any more")
        handler = Handler(
            name=f"{self._table.name}.removed",
            subject=message.subject,
            policy=Policy(),
            event=type(None),
            function=_never,
            decode=bytes,
            key_of=str,
        )
        return Item(message, handler, "", None, error)

    async def run(self, item: Item, slot: Slot) -> tuple[Verdict, Context]:
        """Runs one attempt in the caller's task, which ``slot`` names.

        Raises:
            asyncio.CancelledError: the worker is stopping; nothing is decided.
        """
        handler = item.handler
        ctx = Context(item.message, item.key, self._scope)
        if handler.policy.isolate:
            result, ctx = await self._run_isolated(item, slot)
        else:
            slot.begin_attempt(handler.name, handler.policy.timeout_s)
            result = await attempt(handler.function, item.event, ctx)
        if slot.has_cancellation:
            await slot.absorb_cancellation()
        if slot.end_attempt():
            result = TimeoutError(f"ran longer than {handler.policy.timeout_s:g} s")
        if slot.is_stopping:  # even if the handler has swallowed the cancellation
            raise asyncio.CancelledError
        return (APPLIED if result is None else self.judge(item, result)), ctx

    async def _run_isolated(self, item: Item, slot: Slot) -> tuple[Exception | Fault | None, Context]:
        """Runs one attempt in a process; its clock begins when there is one."""
        isolation, handler = self._isolation, item.handler
        assert isolation is not None, "the constructor has checked it"
        slot.begin_attempt(handler.name, math.inf)
        begin = functools.partial(slot.begin_attempt, handler.name, handler.policy.timeout_s)
        returned: list[Effects | Fault] = []

        async def run(event: Any, ctx: Context) -> None:
            returned.append(await isolation.run(handler, item.message, item.key, scope=self._scope, begin=begin))

        ctx = Context(item.message, item.key, self._scope)
        error = await attempt(run, item.event, ctx)
        if error is not None:
            return error, ctx
        result = returned[0]
        if isinstance(result, Fault):
            return result, ctx
        return None, Context(item.message, item.key, self._scope, effects=result)

    def judge(self, item: Item, error: Exception | Fault) -> Verdict:
        """Decides what becomes of an item whose handler, or whose decoding, failed."""
        policy = item.handler.policy
        fault = error if isinstance(error, Fault) else fault_in(error, item.handler)
        if item.event is None:
            return Verdict(kind="dead", is_failure=True, error=fault.text)
        if item.history is None and self._recall is not None:
            item.history = self._recall(item)
        verdict = decide(fault, item.history or History(), policy, max_deliver=self._max_deliver, rng=self._rng)
        if verdict.kind == "dead" and isinstance(error, Exception):
            verdict = attrs.evolve(verdict, trace=_trace(error))
        return verdict


async def attempt(function: HandlerFunction, event: Any, ctx: Context) -> Exception | None:
    """Awaits a handler; whatever it raises, but a KeyboardInterrupt, is returned."""
    try:
        await function(event, ctx)
    except asyncio.CancelledError:  # the deadline's, the stop's, or of something that the handler awaited
        return RuntimeError("the handler, or what it waited for, was cancelled")
    except Exception as caught:
        return caught
    except BaseException as caught:  # sys.exit() among them: no handler ends the worker
        if isinstance(caught, KeyboardInterrupt | GeneratorExit):
            raise
        return RuntimeError(f"the handler raised {type(caught).__name__}({caught})")
    return None


def fault_in(error: Exception, handler: Handler, *, has_trace: bool = False) -> Fault:
    """Says what an error of a handler means, and where it was raised; with its traceback if asked."""
    error = _readable(error)
    fault = fault_of(error, handler.policy)
    return attrs.evolve(fault, where=_origin(error, handler), trace=_trace(error) if has_trace else None)


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(_readable(error)))


async def _never(event: Any, ctx: Context) -> None:
    """Stands where a handler was."""


def _origin(error: Exception, handler: Handler) -> str | None:
    """Where the error was raised: the last line of the handler's own file on the way there, else the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(handler.function, "__code__", None)
    own = [frame for frame in frames if code and frame.filename == code.co_filename]
    frame = next(reversed(own or frames), None)
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" if frame else None


def _readable(error: Exception) -> Exception:
    """The error itself, unless it can't even be turned into text."""
    try:
        str(error)
    except Exception:
        return RuntimeError(f"a {type(error).__name__} whose text can't be read")
    return error
