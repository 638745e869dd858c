"""What a handler may ask for and the effects it returns.

A handler performs nothing: ``put``, ``delete``, ``add`` and ``publish`` are collected here and become real only when
streams/commit.py commits them together with the message's position, so a redelivered message changes nothing twice.
Time, randomness and ids come from the message, so that a replay sees the same ones.
"""

import datetime as dt
import random
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs

from models.codec import encode_json
from models.errors import DeclarationError, PayloadError, Retry, StoreError
from state.tables import AnyTable, Table
from streams.message import Message
from streams.patterns import is_subject

RowT = TypeVar("RowT")


@attrs.define(eq=False)
class Written:
    """A row that a handler wrote, None for a deleted one; each write is one of its own, even of an equal row."""

    row: Any


Rows = dict[tuple[str, str], Written]


@attrs.frozen(kw_only=True)
class Scope:
    """What the handlers of one subject table share.

    Args:
        name: the subject table's name, for errors.
        tables: the row tables that they own, by name.
        fetch: reads a committed row as JSON.
        peek: reads a row beyond the lane's own; a replay gives what was kept with the message.
        waiting: rows that lanes have written and no commit has made real yet; None stands for a deleted one.
        publishable: tells whether a subject lies in a stream that handlers may publish to.
        max_payload_bytes: the largest payload that JetStream takes.
    """

    name: str
    tables: Mapping[str, AnyTable]
    fetch: Callable[[str, str], bytes | None]
    waiting: Rows
    publishable: Callable[[str], bool]
    max_payload_bytes: Callable[[], int]
    peek: Callable[[str, str], bytes | None] = attrs.field(default=attrs.Factory(lambda scope: scope.fetch, True))


@attrs.define
class Effects:
    """What a handler asked for: rows by (table, key), increments, and events in order; and what it peeked at."""

    rows: Rows = attrs.field(factory=dict)
    puts: dict[tuple[str, str], bytes | None] = attrs.field(factory=dict)
    adds: list[tuple[str, str, str, int]] = attrs.field(factory=list)
    peeks: list[tuple[str, str, bytes | None]] = attrs.field(factory=list)
    publishes: list[tuple[str, bytes]] = attrs.field(factory=list)


class Context:
    """The second argument of a handler; it lives as long as one attempt."""

    __slots__ = ("_effects", "_ids", "_key", "_random", "_scope", "message")

    def __init__(self, message: Message, key: str, scope: Scope, *, effects: Effects | None = None) -> None:
        self.message = message
        self._key = key
        self._scope = scope
        self._effects = effects
        self._random: random.Random | None = None
        self._ids = 0

    @property
    def effects(self) -> Effects | None:
        """What was asked for so far; None when nothing was."""
        return self._effects

    @property
    def key(self) -> str:
        """The key of the lane that this message runs in."""
        return self._key

    @property
    def now(self) -> dt.datetime:
        """When the stream stored the message, to the microsecond; never this machine's clock."""
        seconds, nanoseconds = divmod(self.message.ts, 1_000_000_000)
        return dt.datetime.fromtimestamp(seconds, dt.UTC) + dt.timedelta(microseconds=nanoseconds // 1000)

    @property
    def random(self) -> random.Random:
        """A generator seeded by the message: the same numbers at every attempt and in every replay."""
        if self._random is None:
            self._random = random.Random(f"{self.message.stream}:{self.message.seq}:{self.message.ts}")
        return self._random

    def new_id(self) -> str:
        """A new id, derived from the message: the first, second, … call gives the same id at every attempt."""
        self._ids += 1
        name = f"{self._scope.name}:{self.message.stream}:{self.message.seq}:{self.message.ts}:{self._ids}"
        return str(uuid.uuid5(uuid.NAMESPACE_OID, name))

    def get(self, table: Table[RowT], key: str) -> RowT | None:
        """Reads a row of the lane's own key, with what earlier messages of the lane wrote.

        Raises:
            DeclarationError: the table or the key is not the lane's own.
            Retry: the row can't be read, or does not fit its class; this message is not to blame.
        """
        self._check_own(table, key, "get")
        place = (table.name, key)
        if self._effects is not None:
            written = self._effects.rows.get(place)
            if written is not None:
                return typing.cast(RowT | None, written.row)
        written = self._scope.waiting.get(place)
        if written is not None:
            return typing.cast(RowT | None, written.row)
        return self._decoded(table, self._read(self._scope.fetch, table, key, "get"), "get")

    def peek(self, table: Table[RowT], key: str) -> RowT | None:
        """Reads a committed row of any table and key; what was read is kept with the message, for a replay to use.

        Another lane may be writing it at this moment, so two messages may see its states in either order.

        Raises:
            Retry: the row can't be read, or does not fit its class; this message is not to blame.
        """
        key.encode()  # a lone surrogate is an error of the handler, not of the store
        stored = self._read(self._scope.peek, table, key, "peek")
        self._collect().peeks.append((table.name, key, stored))
        return self._decoded(table, stored, "peek")

    @staticmethod
    def _read(read: Callable[[str, str], bytes | None], table: AnyTable, key: str, verb: str) -> bytes | None:
        try:
            return read(table.name, key)
        except StoreError as error:
            raise Retry(f"{verb}: a row of {table.name!r} can't be read: {error}") from error

    def _decoded(self, table: Table[RowT], stored: bytes | None, verb: str) -> RowT | None:
        try:
            return None if stored is None else typing.cast(RowT, table.decode(stored))
        except PayloadError as error:  # as a Reject it would end every message of the lane
            raise Retry(f"{verb}: a row of {table.name!r} can't be read: {error}") from error

    def put(self, table: Table[RowT], key: str, row: RowT) -> None:
        """Writes a row of the lane's own key.

        Raises:
            DeclarationError: the table or the key is not the lane's own.
            TypeError: the row is of another class.
        """
        self._check_own(table, key, "put")
        self._record(table.name, key, row, table.encode(row))

    def delete(self, table: Table[Any], key: str) -> None:
        """Deletes a row of the lane's own key, if it is there.

        Raises:
            DeclarationError: the table or the key is not the lane's own.
        """
        self._check_own(table, key, "delete")
        self._record(table.name, key, None, None)

    def add(self, table: Table[Any], key: str, field: str, n: int) -> None:
        """Adds ``n`` to an integer field of any row of a counters table; a missing row starts at its defaults.

        Raises:
            DeclarationError: the table is not one of this subject table's counters, or has no such field.
            TypeError: ``n`` is no integer.
        """
        self._check_table(table, "counters", "add")
        if field not in table.fields:
            raise DeclarationError(self._where, f"add: table {table.name!r} has no field {field!r}")
        key.encode()  # a lone surrogate is an error of the handler, not of the store
        if type(n) is not int:
            raise TypeError(f"add: expected an int, got {n!r}")
        self._collect().adds.append((table.name, key, field, n))

    def publish(self, subject: str, event: object) -> None:
        """Publishes an event once this message's outcome is committed: exactly once, after it.

        Args:
            subject: a subject in one of the application's streams.
            event: an attrs record or anything else that JSON can hold; bytes are taken as they are.

        Raises:
            DeclarationError: no stream takes the subject, or the payload is too large.
        """
        payload = event if isinstance(event, bytes) else encode_json(event)
        subject.encode()  # a lone surrogate is an error of the handler, not of the store
        if not (is_subject(subject) and self._scope.publishable(subject)):
            raise DeclarationError(self._where, f"publish: no stream for handlers takes the subject {subject!r}")
        if len(payload) > (limit := self._scope.max_payload_bytes()):
            raise DeclarationError(self._where, f"publish: {len(payload)} bytes are above the limit of {limit}")
        self._collect().publishes.append((subject, payload))

    def _collect(self) -> Effects:
        if self._effects is None:
            self._effects = Effects()
        return self._effects

    def _record(self, table: str, key: str, row: object, encoded: bytes | None) -> None:
        effects = self._collect()
        effects.rows[table, key] = Written(row)
        effects.puts[table, key] = encoded

    @property
    def _where(self) -> str:
        return f"subject table {self._scope.name!r}"

    def _check_own(self, table: AnyTable, key: str, verb: str) -> None:
        self._check_table(table, "rows", verb)
        if key != self._key:
            raise DeclarationError(
                self._where, f"{verb}: {key!r} is not the lane's own key {self._key!r}; other keys take add() only"
            )

    def _check_table(self, table: AnyTable, kind: str, verb: str) -> None:
        if self._scope.tables.get(table.name) is not table:
            raise DeclarationError(self._where, f"{verb}: table {table.name!r} is not one of its tables")
        if table.kind != kind:
            raise DeclarationError(self._where, f"{verb}: table {table.name!r} is of kind {table.kind!r}, not {kind!r}")
