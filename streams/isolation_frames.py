"""What a worker and the process of an isolated handler say to each other: records in msgpack, each after its length.

The worker sends one Assignment, then one Task after another. The process answers with Reports: that it is ready, what
was logged, a row that it peeks at (answered by a Peeked), and for each task in the end its effects or its fault.
"""

from typing import Any

import attrs
import msgspec

from streams.verdict import Fault

LENGTH_BYTES = 4

KeyedRow = tuple[str, str, bytes | None]


@attrs.frozen(kw_only=True)
class Assignment:
    """Which handler a process runs; ``is_offline`` has it refuse outgoing connections."""

    module: str
    table: str
    handler: str
    is_offline: bool
    log_level: int


@attrs.frozen(kw_only=True)
class Task:
    """One message, with the rows of its lane as the worker sees them."""

    stream: str
    subject: str
    payload: bytes
    seq: int
    ts: int
    num_delivered: int
    key: str
    rows: list[KeyedRow]
    max_payload_bytes: int


@attrs.frozen(kw_only=True)
class Peeked:
    """The row that was asked for, or why it can't be read."""

    row: bytes | None = None
    error: str | None = None


@attrs.frozen(kw_only=True)
class Logged:
    """A log record; ``fields`` are its plain values."""

    logger: str
    level: int
    message: str
    fields: dict[str, str | int | float | bool | None]


@attrs.frozen(kw_only=True)
class EffectsSent:
    """The effects of a handler, as streams/context.py has them."""

    puts: list[KeyedRow]
    adds: list[tuple[str, str, str, int]]
    peeks: list[KeyedRow]
    publishes: list[tuple[str, bytes]]


@attrs.frozen(kw_only=True)
class Report:
    """What the process says: one of its fields, and none of them when it is ready for a task."""

    logged: Logged | None = None
    peek: tuple[str, str] | None = None
    effects: EffectsSent | None = None
    fault: Fault | None = None


def framed(record: object) -> bytes:
    """Encodes a record with its length before it.

    Raises:
        OverflowError, TypeError: it holds what msgpack can't, as an integer beyond 64 bits.
    """
    body = msgspec.msgpack.encode(record)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


decode_report = msgspec.msgpack.Decoder(Report).decode
decode_assignment = msgspec.msgpack.Decoder(Assignment).decode
decode_task = msgspec.msgpack.Decoder(Task).decode
decode_peeked = msgspec.msgpack.Decoder(Peeked).decode


def plain(value: Any) -> str | int | float | bool | None:
    """A value that a frame can hold: itself, or its text."""
    if value is None or isinstance(value, str | float | bool):
        return value
    return value if isinstance(value, int) and abs(value) < 2**63 else str(value)
