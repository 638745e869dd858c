"""Subject tables: which handler reacts to which subject, declared beside the handlers and checked at once.

A SubjectTable is to subjects what aiohttp's RouteTableDef is to routes. It becomes one durable consumer. Nothing here
speaks to a server: streams/worker.py runs what is declared.
"""

import datetime as dt
import functools
import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import attrs

from models.codec import decoder_for, fingerprint
from models.errors import DeclarationError
from state.tables import NAME, AnyTable, Table
from streams.context import Context
from streams.patterns import check_pattern, matches, overlap
from streams.policy import Policy, check_policy
from streams.ticks import Tick, Timer, check_timer

HandlerFunction = Callable[[Any, Context], Awaitable[None]]
FunctionT = TypeVar("FunctionT", bound=HandlerFunction)
KeyFunction = Callable[[Any], str]


DECLARED_BY = "__tipstream__"
"""The attribute of a handler's function that lists the tables that declare it, for tests to find the way back."""

Order = Literal["key", "none"]
Delivery = Literal["pull", "push"]
Start = Literal["all", "new"] | dt.datetime | int


@attrs.frozen(kw_only=True, eq=False)
class Handler:
    """One handler as declared: its identity is ``name``, ``<table>.<function>``; ``former`` is what it was before."""

    name: str
    subject: str
    policy: Policy
    event: type
    function: HandlerFunction
    decode: Callable[[bytes], Any]
    key_of: KeyFunction
    former: str | None = None
    timer: Timer | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short hash of the event type's JSON schema, which a change of the type changes."""
        return fingerprint(self.event)


class SubjectTable:
    """Handlers by subject; one durable consumer.

    Args:
        name: matches ``[a-z][a-z0-9_]*``; the durable is ``<NATS_DURABLE_PREFIX>-<name>``.
        tables: the row tables that these handlers, and no others, write.
        order: ``key`` runs messages of one key one after the other, in stream order; ``none`` runs all side by side,
            shares them among all workers of a STATE_DIR, and takes tables of kind ``counters`` only.
        key: the attribute of every event, or a function of the event, whose value names the lane.
        delivery: ``pull``, or ``push``: the server sends unasked, up to 1,000 messages at a time whatever their size,
            and a connection that goes silent without closing keeps the durable busy until the server notices.
        start: where a new durable begins: ``all``, ``new``, an instant, or a sequence. Later changes move nothing.
        concurrency: handlers that may run at once.
        ack_wait_s: seconds after which the server delivers again what was neither acked nor kept alive.
        version: a new one makes a new durable, which goes on where the last one was.
        renamed_from: the table's former name; its position and waiting messages move along.

    Raises:
        DeclarationError: naming the table, the field, its value and what is accepted.
    """

    def __init__(  # noqa: PLR0913 (what one durable has, each by its keyword)
        self,
        name: str,
        *,
        tables: Sequence[AnyTable] = (),
        order: Order = "key",
        key: str | KeyFunction = "user_id",
        delivery: Delivery = "pull",
        start: Start = "all",
        concurrency: int = 100,
        ack_wait_s: float = 30,
        version: int = 1,
        renamed_from: str | None = None,
    ) -> None:
        caller = sys._getframe(1)
        self.made_at = caller.f_code.co_filename, caller.f_lineno
        self.name = name
        self.tables = tuple(tables)
        self.order: Order = order
        self.key = key
        self.delivery: Delivery = delivery
        self.start: Start = start
        self.concurrency = concurrency
        self.ack_wait_s = ack_wait_s
        self.version = version
        self.renamed_from = renamed_from
        self.handlers: list[Handler] = []
        self._is_sealed = False
        self._where = f"subject table {name!r}"
        for problem in self._problems():
            raise DeclarationError(self._where, problem)

    def _problems(self) -> Iterator[str]:
        """What is declared wrongly: field, value, and what is accepted."""
        for field, name in (("name", self.name), ("renamed_from", self.renamed_from or "a")):
            if not (isinstance(name, str) and NAME.fullmatch(name)):
                yield f"{field}: expected {NAME.pattern}, got {name!r}"
        for field, choices in (("order", ("key", "none")), ("delivery", ("pull", "push"))):
            if getattr(self, field) not in choices:
                yield f"{field}: expected {' or '.join(map(repr, choices))}, got {getattr(self, field)!r}"
        for field, low, high in (("concurrency", 1, 1000), ("version", 1, 10_000)):
            value = getattr(self, field)
            if not (type(value) is int and low <= value <= high):
                yield f"{field}: expected an int from {low} to {high}, got {value!r}"
        if not (isinstance(self.ack_wait_s, int | float) and 1 <= self.ack_wait_s <= 3600):
            yield f"ack_wait_s: expected 1 to 3600 seconds, got {self.ack_wait_s!r}"
        key: object = self.key
        if not (isinstance(key, str) or callable(key)):
            yield f"key: expected the name of an attribute or a function of the event, got {key!r}"
        if not self._is_start(self.start):
            wanted = "'all', 'new', a sequence from 1 on or an instant with a zone"
            yield f"start: expected {wanted}, got {self.start!r}"
        yield from self._table_problems()

    def _table_problems(self) -> Iterator[str]:
        tables: tuple[Any, ...] = self.tables
        for table in tables:
            if not isinstance(table, Table):
                yield f"tables: expected Table objects, got {table!r}"
            elif self.order == "none" and table.kind != "counters":
                yield f"tables: {table.name!r} is of kind {table.kind!r}, and order='none' takes kind 'counters' only"
        if self.order == "none" and self.delivery == "push":
            yield "delivery: 'push' goes to one worker, and order='none' is shared by all: expected 'pull'"

    @staticmethod
    def _is_start(start: object) -> bool:
        if isinstance(start, dt.datetime):
            return start.utcoffset() is not None
        return start in ("all", "new") or (type(start) is int and start >= 1)

    def on(
        self, subject: str, *, policy: Policy | None = None, renamed_from: str | None = None
    ) -> Callable[[FunctionT], FunctionT]:
        """Declares the decorated ``async def handler(event, ctx)`` as the handler of ``subject``.

        Args:
            subject: one subject, or a pattern with ``*`` and ``>``; no other handler of the table may match it.
            policy: the delivery policy; the default one when None.
            renamed_from: the function's former name, by which its dead letters are found.

        Raises:
            DeclarationError: naming the handler, the field, its value and what is accepted.
        """

        def declare(function: FunctionT) -> FunctionT:
            where = f"{self._where}, handler {getattr(function, '__name__', repr(function))!r}"
            event = _event_type(function, where)
            self._declare(function, subject, event, policy=policy, former=renamed_from)
            return function

        return declare

    def timer(
        self, *, every_s: float, policy: Policy | None = None, renamed_from: str | None = None
    ) -> Callable[[FunctionT], FunctionT]:
        """Declares the decorated ``async def handler(tick: Tick, ctx)`` as a timer that fires every so many seconds.

        Args:
            every_s: 1 to 2,678,400 seconds; the instants are multiples of it since 1970. One that passes while no
                worker runs is made up for, if it was the last one.

        Raises:
            DeclarationError: naming the handler, the field, its value and what is accepted.
        """
        return self._on_time(lambda name: Timer(name=name, every_s=every_s), policy, renamed_from)

    def cron(
        self, expression: str, *, tz: str = "UTC", policy: Policy | None = None, renamed_from: str | None = None
    ) -> Callable[[FunctionT], FunctionT]:
        """Declares the decorated ``async def handler(tick: Tick, ctx)`` as a timer that fires by the calendar.

        Args:
            expression: minute, hour, day, month and weekday as cron has them.
            tz: the time zone's name; an instant that the change to summer time skips comes right after it.

        Raises:
            DeclarationError: naming the handler, the field, its value and what is accepted.
        """
        return self._on_time(lambda name: Timer(name=name, cron=expression, tz=tz), policy, renamed_from)

    def _on_time(
        self, make: Callable[[str], Timer], policy: Policy | None, renamed_from: str | None
    ) -> Callable[[FunctionT], FunctionT]:
        def declare(function: FunctionT) -> FunctionT:
            where = f"{self._where}, timer {getattr(function, '__name__', repr(function))!r}"
            event = _event_type(function, where)
            if event is not Tick:
                raise DeclarationError(where, f"event: expected the first parameter annotated with Tick, got {event!r}")
            timer = make(f"{self.name}.{function.__name__}")
            check_timer(timer, where)
            self._declare(function, timer.subject, event, policy=policy, former=renamed_from)
            self.handlers[-1] = attrs.evolve(self.handlers[-1], timer=timer)
            return function

        return declare

    def _declare(
        self, function: HandlerFunction, subject: str, event: type, *, policy: Policy | None, former: str | None
    ) -> None:
        name = function.__name__
        where = f"{self._where}, handler {name!r}"
        if self._is_sealed:
            raise DeclarationError(where, "the table is in use: expected a handler beside it, or a table of its own")
        check_pattern(subject, where)
        check_policy(policy or Policy(), where)
        if former is not None and not NAME.fullmatch(former):
            raise DeclarationError(where, f"renamed_from: expected {NAME.pattern}, got {former!r}")
        for other in self.handlers:
            if overlap(other.subject, subject):
                raise DeclarationError(where, f"subject: {subject!r} overlaps {other.subject!r} of {other.name}")
            if f"{self.name}.{name}" in (other.name, other.former):
                raise DeclarationError(where, f"name: {other.name} handles {other.subject!r} already")
        self.handlers.append(
            Handler(
                name=f"{self.name}.{name}",
                subject=subject,
                policy=policy or Policy(),
                event=event,
                function=function,
                decode=decoder_for(event),
                key_of=self._key_function(event, where),
                former=former and f"{self.name}.{former}",
            )
        )
        vars(function).setdefault(DECLARED_BY, []).append(self)

    def seal(self) -> None:
        """Takes no more handlers from now on: an app has checked the table and runs it."""
        self._is_sealed = True

    def handler_for(self, subject: str) -> Handler | None:
        """Finds the handler of a message's subject."""
        return next((handler for handler in self.handlers if matches(handler.subject, subject)), None)

    def _key_function(self, event: type, where: str) -> KeyFunction:
        key = self.key
        if self.order == "none":
            return _no_key
        if event is Tick:
            return _reader_of("name")
        if not isinstance(key, str):
            return key
        if key not in {field.name for field in attrs.fields(event)}:
            raise DeclarationError(where, f"key: {event.__name__} has no attribute {key!r}")
        return _reader_of(key)


def _no_key(event: object) -> str:
    """Without order there are no lanes; each message runs for itself."""
    return ""


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
