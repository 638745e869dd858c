"""Runs one handler on one event without a broker or a store, and tells what would become of the message.

The runner is the worker's own: the payload is decoded, the lane found, the handler run with a real Context and what it
raised judged by its policy. Nothing becomes real here; streams/testing.py has what runs the whole application.
"""

import asyncio
import datetime as dt
import functools
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import msgspec

from models.codec import encode_json
from models.errors import DeclarationError
from state.tables import AnyTable, Table
from streams.context import Context, Effects, Scope
from streams.message import Message
from streams.patterns import matches
from streams.runner import Item, Runner, Slot
from streams.subjects import DECLARED_BY, Handler, HandlerFunction, SubjectTable
from streams.testing_scale import in_this_process
from streams.topology import EVENT_HEADER_BYTES, HEADER_BUDGET_BYTES, STREAMS, is_publishable, stream_of
from streams.verdict import History, Kind, Verdict

NOW = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
"""When a message was stored, unless a test says so itself."""
MAX_DELIVER = 5
EVENT_LIMIT_BYTES = 1024 * 1024 - HEADER_BUDGET_BYTES - EVENT_HEADER_BYTES
WHERE = "run_handler"
LOOK_S = 0.1
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MICROSECOND = dt.timedelta(microseconds=1)

Rows = Mapping[AnyTable, Mapping[str, Any]]
NO_ROWS: Rows = {}
NO_EFFECTS = Effects()


class _Steady(random.Random):
    """Jitter that a test can foresee: none."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


STEADY = _Steady(0)


@attrs.frozen(kw_only=True)
class Outcome:
    """What would become of the message. A handler that did not succeed has no effects.

    Args:
        verdict: ``applied``; ``parked`` for ``delay_s`` seconds; or ``dead``.
        is_failure: the attempt counts against ``max_deliver``.
        error: why it was not applied, as text.
        where: the line that raised it.
        key: the lane; empty when the payload does not fit.
        writes: the row put by table and key; None for a deleted one.
        adds: increments, as (table, key, field, n).
        publishes: events, as (subject, what the JSON says; bytes that are no JSON as they are).
        peeks: what was read beyond the lane's own rows, as (name of the table, key).
        state: the committed rows afterwards, for the next ``run_handler``.
    """

    verdict: Kind
    delay_s: float
    is_failure: bool
    error: str | None
    where: str | None
    key: str
    writes: dict[tuple[AnyTable, str], Any]
    adds: list[tuple[AnyTable, str, str, int]]
    publishes: list[tuple[str, Any]]
    peeks: list[tuple[str, str]]
    state: Rows


async def run_handler(
    handler: HandlerFunction | SubjectTable,
    event: object,
    *,
    state: Rows = NO_ROWS,
    subject: str | None = None,
    seq: int = 1,
    now: dt.datetime = NOW,
    failures: int | History = 0,
) -> Outcome:
    """Runs a handler on one event as a worker would, in this process also if it is isolated.

    Args:
        handler: the function that a subject table declares; or the table, with ``subject``.
        event: a record of the event's type, a dict or a record that is encoded as JSON, or the payload as bytes.
        state: the committed rows by table and key.
        subject: the message's; needed when the handler's own has ``*`` or ``>``.
        seq: the message's sequence, from which ``ctx.random`` and ``ctx.new_id`` come too.
        now: when the stream stored it.
        failures: how often it has failed before; a History says for how long, too.

    Raises:
        DeclarationError: an argument does not fit; names it.
    """
    table, found = _find(handler, subject)
    if found.policy.isolate:
        found = attrs.evolve(found, policy=attrs.evolve(found.policy, isolate=None))
    table = in_this_process(table)
    subject = found.subject if subject is None else subject
    runner = Runner(table, _scope(table, state), max_deliver=MAX_DELIVER, rng=STEADY)
    stream = _stream_of(subject, found.name)
    item = runner.prepare(Message(stream, subject, _payload(event, found), None, seq, seq, _nanoseconds(now)), found)
    if table.order == "none":
        item.key, item.is_shared = str(seq), True
    item.history = failures if isinstance(failures, History) else History(failures=failures, attempts=failures)
    if item.error is not None:
        return _outcome(table, item.key, runner.judge(item, item.error), NO_EFFECTS, state)
    verdict, ctx = await _run(runner, item)
    return _outcome(table, item.key, verdict, ctx.effects or NO_EFFECTS, state)


def _outcome(table: SubjectTable, key: str, verdict: Verdict, asked: Effects, state: Rows) -> Outcome:
    """What a verdict and what the handler asked for come to."""
    effects = asked if verdict.kind == "applied" else NO_EFFECTS
    own = {rows.name: rows for rows in table.tables}
    writes = {(own[name], row_key): written.row for (name, row_key), written in effects.rows.items()}
    adds = [(own[name], row_key, field, n) for name, row_key, field, n in effects.adds]
    return Outcome(
        verdict=verdict.kind,
        delay_s=verdict.delay_s,
        is_failure=verdict.is_failure,
        error=verdict.error,
        where=verdict.where,
        key=key,
        writes=writes,
        adds=adds,
        publishes=[(subject, read_json(payload)) for subject, payload in effects.publishes],
        peeks=[(name, row_key) for name, row_key, _ in asked.peeks],
        state=_after(state, writes, adds) if writes or adds else state,
    )


def _after(
    state: Rows, writes: Mapping[tuple[AnyTable, str], Any], adds: Iterable[tuple[AnyTable, str, str, int]]
) -> Rows:
    """The committed rows once effects are real."""
    after = {table: dict(rows) for table, rows in state.items()}
    for (table, key), row in writes.items():
        if row is None:
            after.setdefault(table, {}).pop(key, None)
        else:
            after.setdefault(table, {})[key] = row
    for table, key, field, n in adds:
        rows = after.setdefault(table, {})
        counted: Any = rows[key] if key in rows else table.row()
        rows[key] = attrs.evolve(counted, **{field: getattr(counted, field) + n})
    return after


class _Clocked(Slot):
    """A slot in the caller's task: its clock cancels an overdue attempt, and any other cancellation is the caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.task = asyncio.current_task()

    async def absorb_cancellation(self) -> None:
        if self.cancelled_at is None:
            raise asyncio.CancelledError
        await super().absorb_cancellation()

    def watch(self, timeout_s: float) -> None:
        """Looks at the deadline once it should have passed, and again and again if it is ignored."""

        def look() -> None:
            self.cancel_if_overdue(time.monotonic())
            self._clock = loop.call_later(LOOK_S, look)

        loop = asyncio.get_running_loop()
        self._clock = loop.call_later(timeout_s, look)

    def stop(self) -> None:
        """Ends the clock."""
        self._clock.cancel()


async def _run(runner: Runner, item: Item) -> tuple[Verdict, Context]:
    slot = _Clocked()
    slot.watch(item.handler.policy.timeout_s)
    try:
        return await runner.run(item, slot)
    finally:
        slot.stop()


def _find(handler: HandlerFunction | SubjectTable, subject: str | None) -> tuple[SubjectTable, Handler]:
    """Finds the table that declares a handler, and the handler as declared."""
    if isinstance(handler, SubjectTable):
        if subject is None:
            raise DeclarationError(WHERE, f"subject: expected one that table {handler.name!r} handles, got none")
        found = handler.handler_for(subject)
        if found is None:
            raise DeclarationError(WHERE, f"subject: table {handler.name!r} has no handler for {subject!r}")
        return handler, found
    tables: Sequence[SubjectTable] = getattr(handler, DECLARED_BY, ())
    if len(tables) != 1:
        names = f"the tables {', '.join(table.name for table in tables)} have" if tables else "no subject table has"
        problem = f"handler: expected a function that one table declares, or the table, but {names} {handler!r}"
        raise DeclarationError(WHERE, problem)
    found = next(found for found in tables[0].handlers if found.function == handler)
    if "*" in found.subject or ">" in found.subject:
        wanted = f"subject: expected one that {found.subject!r} matches, for {found.name} takes several"
        if subject is None or not matches(found.subject, subject):
            raise DeclarationError(WHERE, f"{wanted}, got {subject!r}")
    elif subject not in (None, found.subject):
        raise DeclarationError(WHERE, f"subject: {found.name} handles {found.subject!r}, got {subject!r}")
    return tables[0], found


@functools.lru_cache(maxsize=1000)
def _stream_of(subject: str, where: str) -> str:
    """The stream of a subject.

    Raises:
        DeclarationError: there is none.
    """
    return stream_of([subject], STREAMS, where).name


def _scope(table: SubjectTable, state: Rows) -> Scope:
    """What the handler may read and ask for; the rows of ``state`` are the committed ones."""
    named = {rows.name: rows for rows in table.tables}
    committed = {}
    for other, rows in state.items():
        if not isinstance(other, Table) or named.get(other.name, other) is not other:
            raise DeclarationError(WHERE, f"state: expected the Table objects of the handlers, got {other!r}")
        for key, row in rows.items():
            if type(key) is not str or type(row) is not other.row:
                wanted = f"expected {other.row.__name__} records by text"
                raise DeclarationError(WHERE, f"state: table {other.name!r}, key {key!r}: {wanted}, got {row!r}")
        committed[other.name] = other, rows

    def fetch(name: str, key: str) -> bytes | None:
        found = committed.get(name)
        row = found[1].get(key) if found else None
        return found[0].encode(row) if found and row is not None else None

    return Scope(
        name=table.name,
        tables=named,
        fetch=fetch,
        waiting={},
        publishable=_is_publishable,
        max_payload_bytes=_max_payload_bytes,
    )


def _is_publishable(subject: str) -> bool:
    return is_publishable(subject, STREAMS)


def _max_payload_bytes() -> int:
    return EVENT_LIMIT_BYTES


def encode_event(event: object, where: str = WHERE) -> bytes:
    """The payload of an event: bytes are taken as they are, all else as JSON.

    Raises:
        DeclarationError: JSON can't hold it.
    """
    if isinstance(event, bytes):
        return event
    try:
        return encode_json(event)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DeclarationError(where, f"event: expected a record, a dict or bytes ({error})") from error


def read_json(payload: bytes) -> Any:
    """What a payload says as JSON; one that is none is given as it is."""
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return payload


def _payload(event: object, handler: Handler) -> bytes:
    if attrs.has(type(event)) and not isinstance(event, handler.event):
        wanted = f"expected a {handler.event.__name__}, a dict or bytes, got a {type(event).__name__}"
        raise DeclarationError(WHERE, f"event: {wanted}")
    return encode_event(event)


def _nanoseconds(now: dt.datetime) -> int:
    """An instant as the server spells it."""
    if now.utcoffset() is None:
        raise DeclarationError(WHERE, f"now: expected an instant with a zone, got {now.isoformat()}")
    return (now - EPOCH) // MICROSECOND * 1000
