"""What the worker asks of a store, in records and one Protocol.

A store keeps four things that must change together or not at all: the rows of tables, how far each durable consumer
has got, messages that wait for a later run, and events that wait to be published. One ``commit`` is one transaction
over all of them. Where rows lie and how is the store's business (state/sqlite.py is the default).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import attrs


@attrs.frozen(kw_only=True)
class StoredRow:
    """A committed row as views show it, with the message that wrote it last."""

    table: str
    key: str
    row: dict[str, object]
    stream: str
    stream_seq: int


@attrs.frozen(kw_only=True)
class Floor:
    """How far a durable has got: every matching message up to ``seq`` has its outcome.

    ``created`` is the stream's creation instant as the server spells it, ``ts`` the timestamp of message ``seq`` in
    nanoseconds; together they tell a stream that lost its tail, or was made anew, from the one this store has read.
    """

    durable: str
    stream: str
    created: str
    seq: int
    ts: int


@attrs.frozen(kw_only=True)
class ParkedMessage:
    """A message that waits in the store, in order behind the others of its lane; already acked.

    ``due`` and ``since`` (its first attempt, 0 before one) are Unix seconds; only the first of a lane has a ``due``
    that matters. ``failures`` counts against the policy, ``attempts`` counts every run;
    ``journal`` has the failures, and is read with the message, not written with it.
    """

    durable: str
    seq: int
    ts: int
    lane: str
    subject: str
    payload: bytes
    due: float = 0.0
    since: float = 0.0
    failures: int = 0
    attempts: int = 0
    journal: tuple["Failure", ...] = ()


@attrs.frozen(kw_only=True)
class Failure:
    """One failed attempt: when (Unix seconds), and the error as text."""

    at: float
    error: str


@attrs.frozen(kw_only=True)
class OutboxRow:
    """An event that is committed and not yet stored by JetStream; ``n`` is its place in commit order."""

    n: int
    id: str
    lane: str
    subject: str
    payload: bytes
    headers: dict[str, str]
    created: float


@attrs.define(kw_only=True)
class Change:
    """What one message's outcome does to the store.

    Args:
        puts: (table, key, row as JSON or None to delete).
        adds: (table, key, field, increment).
        outbox: events to publish once this is committed.
        parked: the message itself, when its outcome is to wait.
        unparked: the message came from the parked ones and now has its final outcome.
        failure: the failed attempt that this outcome records.
        was_noted: its start was noted, as a crash suspect's; the outcome takes the note back.
    """

    durable: str
    stream: str
    seq: int
    ts: int
    puts: Sequence[tuple[str, str, bytes | None]] = ()
    adds: Sequence[tuple[str, str, str, int]] = ()
    outbox: Sequence[OutboxRow] = ()
    parked: ParkedMessage | None = None
    unparked: bool = False
    failure: Failure | None = None
    was_noted: bool = False


@attrs.frozen(kw_only=True)
class Loaded:
    """What a durable's worker starts from.

    Args:
        floor: how far it got; None before its first attach.
        marks: timestamps of outcomes above the floor, by sequence.
        lanes: what waits.
        was_unclean: the last process ended without saying so.
        crashes: how often a process died while a message ran alone, by sequence.
    """

    floor: Floor | None
    marks: dict[int, int]
    lanes: dict[str, "ParkedLane"]
    was_unclean: bool = False
    crashes: dict[int, int] = attrs.field(factory=dict)


@attrs.define(kw_only=True)
class ParkedLane:
    """A lane that waits: when its first message is due (Unix seconds), and how many messages wait in it."""

    due: float
    count: int


class Store(Protocol):
    """One writer, in a thread of its own; the readers run on the caller's thread and see committed rows only."""

    def commit(
        self, changes: Sequence[Change], floors: Sequence[Floor], *, marks: Sequence[Change], sent: Sequence[int]
    ) -> None:
        """Makes the changes real in one transaction, in order.

        Args:
            marks: those of ``changes`` that lie above their durable's floor and need a marker.
            sent: outbox rows that JetStream has stored.

        Raises:
            StoreUnwritable: nothing was written; the disk is full, read-only or failing.
            StoreFenced: nothing was written; another process owns the store now.
            StoreError: nothing was written, for another reason.
        """

    def load(self, durable: str) -> Loaded:
        """Reads where ``durable`` stands."""

    def fetch_row(self, table: str, key: str) -> bytes | None:
        """Reads a committed row as JSON, or None."""

    def fetch_parked(self, durable: str, lane: str) -> ParkedMessage | None:
        """Reads the first waiting message of a lane."""

    def fetch_outbox(self) -> list[OutboxRow]:
        """Reads every event that is not published yet, in commit order."""

    def note_start(self, durable: str, seq: int) -> None:
        """Notes that a crash suspect is about to run, in a transaction of its own.

        Raises:
            StoreError: as ``commit``.
        """


STORE_FILE = "state.db"


def store_path(state_dir: Path) -> Path:
    """The database of a STATE_DIR."""
    return state_dir / STORE_FILE
