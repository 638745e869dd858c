"""Subject tables: which handler reacts to which subject, declared beside the handlers and checked at once.

A SubjectTable is to subjects what aiohttp's RouteTableDef is to routes. It becomes one durable consumer; all its
messages of one key run in order. Nothing here speaks to a server: streams/worker.py runs what is declared.
"""

import inspect
import typing
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import attrs

from models.codec import decoder_for
from models.errors import DeclarationError
from state.tables import NAME, AnyTable
from streams.context import Context
from streams.patterns import check_pattern, matches, overlap
from streams.policy import Policy

HandlerFunction = Callable[[Any, Context], Awaitable[None]]
FunctionT = TypeVar("FunctionT", bound=HandlerFunction)
KeyFunction = Callable[[Any], str]


@attrs.frozen(kw_only=True, eq=False)
class Handler:
    """One handler as declared: its identity is ``name``, ``<table>.<function>``."""

    name: str
    subject: str
    policy: Policy
    event: type
    function: HandlerFunction
    decode: Callable[[bytes], Any]
    key_of: KeyFunction


class SubjectTable:
    """Handlers by subject; one durable consumer, in order per key.

    Args:
        name: matches ``[a-z][a-z0-9_]*``; the durable is ``<NATS_DURABLE_PREFIX>-<name>``.
        tables: the row tables that these handlers, and no others, write.
        key: the attribute of every event, or a function of the event, whose value names the lane: messages of one key
            run one after the other in stream order, different keys run side by side.
        concurrency: handlers that may run at once.
        ack_wait_s: seconds after which the server delivers again what was neither acked nor kept alive.

    Raises:
        DeclarationError: naming the table, the field, its value and what is accepted.
    """

    def __init__(
        self,
        name: str,
        *,
        tables: Sequence[AnyTable] = (),
        key: str | KeyFunction = "user_id",
        concurrency: int = 100,
        ack_wait_s: float = 30,
    ) -> None:
        self._where = f"subject table {name!r}"
        if not NAME.fullmatch(name):
            raise DeclarationError(self._where, f"name: expected {NAME.pattern}, got {name!r}")
        if not 1 <= concurrency <= 1000:
            raise DeclarationError(self._where, f"concurrency: expected 1 to 1000, got {concurrency!r}")
        if not 1 <= ack_wait_s <= 3600:
            raise DeclarationError(self._where, f"ack_wait_s: expected 1 to 3600 seconds, got {ack_wait_s!r}")
        self.name = name
        self.tables = tuple(tables)
        self.key = key
        self.concurrency = concurrency
        self.ack_wait_s = ack_wait_s
        self.handlers: list[Handler] = []

    def on(self, subject: str, *, policy: Policy | None = None) -> Callable[[FunctionT], FunctionT]:
        """Declares the decorated ``async def handler(event, ctx)`` as the handler of ``subject``.

        Args:
            subject: one subject, or a pattern with ``*`` and ``>``; no other handler of the table may match it.
            policy: the delivery policy; the default one when None.

        Raises:
            DeclarationError: naming the handler, the field, its value and what is accepted.
        """

        def declare(function: FunctionT) -> FunctionT:
            name = getattr(function, "__name__", repr(function))
            where = f"{self._where}, handler {name!r}"
            check_pattern(subject, where)
            for other in self.handlers:
                if overlap(other.subject, subject):
                    raise DeclarationError(where, f"subject: {subject!r} overlaps {other.subject!r} of {other.name}")
                if other.name == f"{self.name}.{name}":
                    raise DeclarationError(where, f"name: {other.name} handles {other.subject!r} already")
            event = _event_type(function, where)
            self.handlers.append(
                Handler(
                    name=f"{self.name}.{name}",
                    subject=subject,
                    policy=policy or Policy(),
                    event=event,
                    function=function,
                    decode=decoder_for(event),
                    key_of=self._key_function(event, where),
                )
            )
            return function

        return declare

    def handler_for(self, subject: str) -> Handler | None:
        """Finds the handler of a message's subject."""
        return next((handler for handler in self.handlers if matches(handler.subject, subject)), None)

    def _key_function(self, event: type, where: str) -> KeyFunction:
        key = self.key
        if not isinstance(key, str):
            return key
        if key not in {field.name for field in attrs.fields(event)}:
            raise DeclarationError(where, f"key: {event.__name__} has no attribute {key!r}")
        return _reader_of(key)


def _reader_of(attribute: str) -> KeyFunction:
    def read(event: object) -> str:
        return typing.cast(str, getattr(event, attribute))

    return read


def _event_type(function: HandlerFunction, where: str) -> type:
    """Reads the event type from the annotation of a handler's first parameter."""
    if not inspect.iscoroutinefunction(function):
        raise DeclarationError(where, "expected an 'async def' function")
    if not NAME.fullmatch(function.__name__):
        raise DeclarationError(where, f"name: expected {NAME.pattern}, got {function.__name__!r}")
    parameters = list(inspect.signature(function).parameters)
    if len(parameters) != 2:
        raise DeclarationError(where, f"expected two parameters (event, ctx), got {parameters}")
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise DeclarationError(where, f"annotation: {error}") from error
    event = hints.get(parameters[0])
    if not (isinstance(event, type) and attrs.has(event)):
        raise DeclarationError(where, f"event: expected {parameters[0]!r} annotated with an attrs class, got {event!r}")
    return event
