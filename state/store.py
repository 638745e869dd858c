"""What the worker asks of a store, in records and one Protocol.

A store keeps four things that must change together or not at all: the rows of tables, how far each durable consumer
has got, messages that wait for a later run, and events that wait to be published. One ``commit`` is one transaction
over all of them. Where rows lie and how is the store's business (state/sqlite.py is the default).
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Literal, Protocol

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
class EncodedRow:
    """A committed row as the JSON that is stored, with the message that wrote it last."""

    row: bytes
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
    is_redriven: bool = False
    journal: tuple["Failure", ...] = ()


@attrs.frozen(kw_only=True)
class Started:
    """The note of a crash suspect's start: earlier crashes, and the process that runs it, empty when none does."""

    crashes: int
    runner: str


@attrs.frozen(kw_only=True)
class Failure:
    """One failed attempt: when (Unix seconds), and the error as text."""

    at: float
    error: str


@attrs.frozen(kw_only=True)
class Tried:
    """Earlier attempts of a message that the server keeps for a later one (``order="none"``); Unix seconds."""

    due: float
    since: float
    failures: int
    attempts: int
    journal: tuple["Failure", ...] = ()


DeadState = Literal["dead", "applied", "dropped"]


@attrs.frozen(kw_only=True)
class DeadLetter:
    """A message that was given up; ``state`` tells what became of it since, ``note`` why.

    Instants are Unix seconds; ``ts`` is the message's own, in nanoseconds. It ``is_waiting`` when its message is to run
    once more and waits in a parked lane.
    """

    handler: str
    at: float
    error: str
    ts: int = 0
    state: DeadState = "dead"
    redrives: int = 0
    resolved_at: float | None = None
    note: str = ""
    is_waiting: bool = False


@attrs.frozen(kw_only=True)
class OutboxRow:
    """An event that is committed and not yet stored by JetStream; the store keeps the order of commits."""

    id: str
    lane: str
    subject: str
    payload: bytes
    headers: dict[str, str]
    created: float

    @property
    def size_bytes(self) -> int:
        """The payload's size."""
        return len(self.payload)

    @property
    def entry(self) -> "OutboxEntry":
        """All but payload and headers."""
        return OutboxEntry(
            id=self.id, lane=self.lane, subject=self.subject, size_bytes=self.size_bytes, created=self.created
        )


@attrs.frozen(kw_only=True)
class OutboxEntry:
    """An event of the outbox without payload and headers, of which there may be more than fits the memory."""

    id: str
    lane: str
    subject: str
    size_bytes: int
    created: float


@attrs.define(kw_only=True)
class Change:
    """What one message's outcome does to the store. Without ``parked``, ``tried`` and ``dead`` it is applied.

    Args:
        puts: (table, key, row as JSON or None to delete).
        adds: (table, key, field, increment).
        peeks: (name, key, value as JSON or None) of what the handler read beyond its own rows, in order.
        outbox: events to publish once this is committed.
        parked: the message itself, when its outcome is to wait here.
        tried: what is known of its attempts, when the server keeps it for the next one.
        dead: why it is given up.
        failure: the failed attempt that this outcome records.
        unparked: the message came from the parked ones and now has its final outcome.
        is_redriven: it was a dead letter before; this outcome resolves that, or keeps it.
        is_shared: other processes may have given it an outcome; the first one counts.
        was_noted: its start was noted, as a crash suspect's; the outcome takes the note back.
    """

    durable: str
    stream: str
    seq: int
    ts: int
    puts: Sequence[tuple[str, str, bytes | None]] = ()
    adds: Sequence[tuple[str, str, str, int]] = ()
    peeks: Sequence[tuple[str, str, bytes | None]] = ()
    outbox: Sequence[OutboxRow] = ()
    parked: ParkedMessage | None = None
    tried: Tried | None = None
    dead: DeadLetter | None = None
    failure: Failure | None = None
    unparked: bool = False
    is_redriven: bool = False
    is_shared: bool = False
    was_noted: bool = False

    @property
    def is_applied(self) -> bool:
        """Whether the handler succeeded."""
        return self.parked is None and self.tried is None and self.dead is None


@attrs.frozen(kw_only=True)
class Loaded:
    """What a durable's worker starts from.

    Args:
        floor: how far it got; None before its first attach.
        marks: timestamps of outcomes above the floor, by sequence.
        lanes: what waits.
        was_unclean: the last process ended without saying so.
        crashes: how often a process died while a message ran alone, by sequence.
        since: the first sequence that each of its subjects was read from.
    """

    floor: Floor | None
    marks: dict[int, int]
    lanes: dict[str, "ParkedLane"]
    was_unclean: bool = False
    crashes: dict[int, int] = attrs.field(factory=dict)
    since: dict[str, int] = attrs.field(factory=dict)


@attrs.define(kw_only=True)
class ParkedLane:
    """A lane that waits: when its first message is due (Unix seconds), and how many messages wait in it."""

    due: float
    count: int


Place = tuple[str, int]
"""A message's place: durable and sequence."""


class Store(Protocol):
    """One writer, in a thread of its own; the readers run on the caller's thread and see committed rows only.

    ``is_owner`` is false for the store of tables that all processes serve.
    """

    is_owner: bool

    def commit(
        self, changes: Sequence[Change], floors: Sequence[Floor], *, marks: Sequence[Change], sent: Sequence[str]
    ) -> Set[Place]:
        """Makes the changes real in one transaction, in order.

        Args:
            marks: those of ``changes`` that lie above their durable's floor and need a marker.
            sent: ids of outbox rows that JetStream has stored.

        Returns:
            The places of shared changes that were not made, since another process had given them an outcome.

        Raises:
            StoreUnwritable: nothing was written; the disk is full, read-only or failing.
            StoreFenced: nothing was written; another process owns the store now.
            StoreError: nothing was written, for another reason.
        """

    def load(self, durable: str) -> Loaded:
        """Reads where ``durable`` stands."""

    def load_lanes(self, durable: str) -> dict[str, "ParkedLane"]:
        """Reads which lanes wait."""

    def fetch_row(self, table: str, key: str) -> bytes | None:
        """Reads a committed row as JSON, or None."""

    def fetch_parked(self, durable: str, lane: str) -> ParkedMessage | None:
        """Reads the first waiting message of a lane."""

    def fetch_tried(self, durable: str, seq: int) -> Tried | None:
        """Reads the earlier attempts of a message that the server keeps."""

    def has_mark(self, durable: str, seq: int) -> bool:
        """Whether a message above the floor has its outcome."""

    def fetch_started(self, durable: str, seq: int) -> Started | None:
        """Reads the note of a message's start."""

    def fetch_dead(self, durable: str, seq: int) -> DeadLetter | None:
        """Reads what is known of a message that was given up."""

    def count_tried(self, durable: str, now: float) -> int:
        """Counts the messages that the server keeps until an instant after ``now``."""

    def fetch_outbox(self, *, before: float | None = None) -> list[OutboxEntry]:
        """Lists every event that is not published yet, in commit order; with ``before``, those created earlier only."""

    def fetch_outbox_row(self, row_id: str) -> OutboxRow | None:
        """Reads one event that is not published yet."""

    def note_start(self, durable: str, seq: int, crashes: int) -> None:
        """Notes that a crash suspect is about to run, in a transaction of its own.

        Raises:
            StoreError: as ``commit``.
        """

    def note_since(self, durable: str, since: Mapping[str, int]) -> None:
        """Notes from which sequence on subjects are read, unless that is known.

        Raises:
            StoreError: as ``commit``.
        """

    def drop_dead(self, durable: str, seq: int, note: str) -> None:
        """Lets a dead letter go for good, for the reason in ``note``.

        Raises:
            StoreError: as ``commit``.
        """

    def set_floor(self, floor: Floor) -> None:
        """Writes where a durable stands, in a transaction of its own.

        Raises:
            StoreError: as ``commit``.
        """

    def note_gone(self, durable: str, first_seq: int, last_seq: int, what: str) -> None:
        """Notes a range that can't be read any more: ``expired``, or ``lost`` with its stream's end.

        Raises:
            StoreError: as ``commit``.
        """


STORE_FILE = "state.db"


def store_path(state_dir: Path) -> Path:
    """The database of a STATE_DIR."""
    return state_dir / STORE_FILE
