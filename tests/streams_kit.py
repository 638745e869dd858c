"""Builders of the records that tests of the store and the streams share; each fills what a test does not care about."""

import contextlib
import resource
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs

from state.store import Change, Floor, OutboxRow, ParkedMessage
from state.tables import AnyTable
from streams.context import Context, Effects, Rows, Scope
from streams.message import Message
from streams.policy import Policy
from streams.runner import Item
from streams.subjects import Handler

CREATED = "2026-01-01T00:00:00Z"
DURABLE = "tipstream-signals"


def make_floor(seq: int, ts: int | None = None, *, durable: str = DURABLE, created: str = CREATED) -> Floor:
    """A floor whose timestamp is, unless given, the one that ``make_message`` gives that sequence."""
    return Floor(durable=durable, stream="SIGNALS", created=created, seq=seq, ts=ts_of(seq) if ts is None else ts)


def ts_of(seq: int) -> int:
    """When a test's message was stored: each a second after the one before, sequence 0 at the start of time."""
    return seq * 1_000_000_000


def make_change(seq: int, *, durable: str = DURABLE, **fields: Any) -> Change:
    """The change of message ``seq``."""
    return Change(durable=durable, stream="SIGNALS", seq=seq, ts=ts_of(seq), **fields)


def make_parked(seq: int, *, durable: str = DURABLE, lane: str = "ana", **fields: Any) -> ParkedMessage:
    """A parked message of lane ``ana``."""
    base = ParkedMessage(
        durable=durable, seq=seq, ts=ts_of(seq), lane=lane, subject="signals.task.synced", payload=b"{}"
    )
    return attrs.evolve(base, **fields)


def make_outbox_row(n: int, **fields: Any) -> OutboxRow:
    """The event ``id-<n>`` of the outbox."""
    base = OutboxRow(id=f"id-{n}", lane="d:ana", subject="signals.nudge.due", payload=b"{}", headers={}, created=1.5)
    return attrs.evolve(base, **fields)


def make_message(seq: int = 1, payload: bytes = b"{}", **fields: Any) -> Message:
    """A delivered message of SIGNALS."""
    base = Message("SIGNALS", "signals.task.synced", payload, f"$JS.ACK.{seq}", seq, seq, ts_of(seq))
    return attrs.evolve(base, **fields)


@attrs.frozen(kw_only=True)
class Anything:
    """The event type of a handler that cares for none."""


async def do_nothing(event: Any, ctx: Context) -> None:
    """A handler without effects."""


def make_handler(name: str = "signals.task_synced", **fields: Any) -> Handler:
    """A handler that does nothing."""
    base = Handler(
        name=name,
        subject="signals.task.synced",
        policy=Policy(),
        event=Anything,
        function=do_nothing,
        decode=lambda payload: payload,
        key_of=lambda event: "ana",
    )
    return attrs.evolve(base, **fields)


def make_item(seq: int = 1, *, key: str = "ana", message: Message | None = None, **fields: Any) -> Item:
    """A message in the worker's hands, in lane ``ana``."""
    base = Item(message or make_message(seq), make_handler(), key, object())
    return attrs.evolve(base, **fields)


def make_scope(
    tables: Iterable[AnyTable] = (), *, rows: Mapping[tuple[str, str], bytes] | None = None, **fields: Any
) -> Scope:
    """A scope over committed rows in a mapping; events may go to ``signals.…``, up to 1,000 bytes."""
    committed = {} if rows is None else rows
    waiting: Rows = {}
    base = Scope(
        name="signals",
        tables={table.name: table for table in tables},
        fetch=lambda table, key: committed.get((table, key)),
        waiting=waiting,
        publishable=lambda subject: subject.startswith("signals."),
        max_payload_bytes=lambda: 1000,
    )
    return attrs.evolve(base, **fields)


class MemoryRows:
    """Committed rows in memory: runs handlers as the worker does and makes their effects real at once."""

    def __init__(self, tables: Iterable[AnyTable]) -> None:
        self.rows: dict[tuple[str, str], bytes] = {}
        self.counts: dict[tuple[str, str, str], int] = {}
        self.scope = make_scope(tables, rows=self.rows)

    async def run(
        self, function: Callable[[Any, Context], Awaitable[None]], event: Any, *, key: str, seq: int = 1
    ) -> Effects | None:
        """Runs a handler on an event in lane ``key``; returns what it asked for, after making it real."""
        ctx = Context(make_message(seq), key, self.scope)
        await function(event, ctx)
        effects = ctx.effects
        if effects is not None:
            for place, row in effects.puts.items():
                if row is None:
                    self.rows.pop(place, None)
                else:
                    self.rows[place] = row
            for table, row_key, field, n in effects.adds:
                place_of_field = (table, row_key, field)
                self.counts[place_of_field] = self.counts.get(place_of_field, 0) + n
        return effects


@contextlib.contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """Within the block no file of this process grows beyond ``limit_bytes``, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
