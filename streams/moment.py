"""The store as of one moment: what it knows of each durable, its rows and what handlers have peeked at.

For whoever looks on beside a worker: a read transaction that stays open sees one state, whatever is committed
meanwhile. Nothing here writes.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

from state import ledger
from state.schema import connect_readonly, examine_database, has_database, translate
from state.store import Floor
from streams.topology import ConsumerSpec


@attrs.frozen(kw_only=True)
class Known:
    """What the store knows of one durable.

    Args:
        store_id: the store's identity; empty when there is none.
        floor: the committed floor; None when nothing was read yet.
        floor_seq: up to here everything has its outcome, as the store, or for a shared durable the server, says.
        since: the first sequence that each subject, or pattern, is read from.
        segments: the ledger's bitmaps.
        again_count: bits of the ledger that were set twice.
        dead: handler and state of what was given up, by sequence.
        waiting: sequences that are parked, or that the server keeps for their next attempt.
        gone: first and last sequence, and what became of them.
        unsent: ids of dead letters that are not published yet.
        redriven: when a message that had been given up was applied after all, in Unix seconds, by sequence.
    """

    store_id: str = ""
    floor: Floor | None = None
    floor_seq: int | None = None
    since: Mapping[str, int] = attrs.field(factory=dict)
    segments: Mapping[int, bytes] = attrs.field(factory=dict)
    again_count: int = 0
    dead: Mapping[int, tuple[str, str]] = attrs.field(factory=dict)
    waiting: frozenset[int] = frozenset()
    gone: Sequence[tuple[int, int, str]] = ()
    unsent: frozenset[str] = frozenset()
    redriven: Mapping[int, float] = attrs.field(factory=dict)

    def has_bit(self, seq: int) -> bool:
        """Whether the ledger says that a sequence was applied."""
        bits = self.segments.get(ledger.segment_of(seq))
        return bits is not None and ledger.has(bits, seq)

    def outcome_of(self, seq: int) -> str:
        """What became of a message: applied, dead, dropped, parked, pending, or none below the floor."""
        if self.has_bit(seq):
            return "applied"
        if seq in self.dead:
            return self.dead[seq][1]
        if seq in self.waiting:
            return "parked"
        return "none" if seq <= (self.floor_seq or 0) else "pending"


class Moment:
    """A database of ours as it is when this is entered; a context manager. Without a database everything is empty.

    Raises:
        StoreError: on entering, or later: the database can't be read, or is a newer version's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self.store_id = ""

    def __enter__(self) -> Self:
        if has_database(self._path):
            self.store_id = examine_database(self._path, is_deep=False)
            self._connection = connect_readonly(self._path)
            self._select("begin")
            self._select("select count(*) from meta")  # SQLite fixes the moment at the first read
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection:
            self._connection.close()

    def let_go(self) -> None:
        """Ends the one moment: what is read afterwards is as it is then.

        While it lasts, SQLite can't use the store's log anew, so that it grows by all that a worker commits.
        """
        self._select("commit")

    def known(self, spec: ConsumerSpec) -> Known:
        """What is known of a durable; of its former names when it has none of its own yet."""
        for durable in (spec.durable, *spec.former):
            floors = self._select("select durable, stream, created, seq, ts from floors where durable = ?", durable)
            if floors:
                return self._known(durable, Floor(**dict(zip(_FLOOR, floors[0], strict=True))))
        return self._known(spec.durable, None)

    def _known(self, durable: str, floor: Floor | None) -> Known:
        def select(columns: str, table: str) -> list[Any]:
            return self._select(f"select {columns} from {table} where durable = ?", durable)

        found = select("segment, bits, again", "ledger")
        waiting = {seq for seq, is_redriven in select("seq, is_redriven", "parked") if not is_redriven}
        waiting |= {seq for (seq,) in select("seq", "tried")}
        dead = select("seq, handler, state, resolved_at", "dead")
        unsent = self._select("select id from outbox where id like '%:dead'")
        return Known(
            store_id=self.store_id,
            floor=floor,
            floor_seq=floor.seq if floor else None,
            since=dict(select("subject, seq", "since")),
            segments={segment: bits for segment, bits, _ in found},
            again_count=sum(again for _, _, again in found),
            dead={seq: (handler, state) for seq, handler, state, _ in dead},
            waiting=frozenset(waiting),
            gone=select("first_seq, last_seq, what", "gone"),
            unsent=frozenset(row_id for (row_id,) in unsent),
            redriven={seq: at for seq, _, state, at in dead if state == "applied"},
        )

    def peeks(self, durable: str, seq: int) -> list[tuple[str, str, bytes | None]]:
        """What the handler of a message peeked at, in order: (table, key, row as JSON or None)."""
        query = "select name, key, cast(value as blob) from peeks where durable = ? and seq = ? order by n"
        return self._select(query, durable, seq)

    def rows(self, table: str) -> Iterator[tuple[str, bytes]]:
        """Every row of a table as (key, JSON), by key."""
        if self._connection is None:
            return
        try:
            query = "select key, cast(row as blob) from rows where table_name = ? order by key"
            yield from self._connection.execute(query, (table,))
        except sqlite3.Error as error:
            raise translate(self._path, error) from error

    def _select(self, query: str, *values: object) -> list[Any]:
        if self._connection is None:
            return []
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise translate(self._path, error) from error


_FLOOR = ("durable", "stream", "created", "seq", "ts")


def read_known(path: Path, spec: ConsumerSpec) -> Known:
    """Reads what the store knows of a durable, all of one moment.

    Raises:
        StoreError: the store can't be read, or is a newer version's.
    """
    with Moment(path) as moment:
        return moment.known(spec)
