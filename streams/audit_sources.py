"""What the audit reads: the store in one read transaction, a stream's matching messages, and the dead letters there.

Nothing is decided here, and nothing is written: see streams/audit.py.
"""

import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from models.errors import ApiError
from state import ledger
from state.schema import connect_readonly, examine_database, has_database, translate
from state.store import Floor
from streams.broker import API_PREFIX, STREAM_NOT_FOUND, Broker
from streams.topology import DEAD_LETTER_PREFIX, DEAD_LETTERS, NANOSECONDS, ConsumerSpec

SILENT_S = 10.0


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

    def has_bit(self, seq: int) -> bool:
        """Whether the ledger says that a sequence was applied."""
        bits = self.segments.get(ledger.segment_of(seq))
        return bits is not None and ledger.has(bits, seq)


def read_known(path: Path, spec: ConsumerSpec) -> Known:
    """Reads what the store knows of a durable, all of one moment.

    Raises:
        StoreError: the store can't be read, or is a newer version's.
    """
    if not has_database(path):
        return Known()
    store_id = examine_database(path, is_deep=False)
    connection = connect_readonly(path)
    try:
        connection.execute("begin")
        return _known(connection, spec, store_id)
    except sqlite3.Error as error:
        raise translate(path, error) from error
    finally:
        connection.close()


def _known(connection: sqlite3.Connection, spec: ConsumerSpec, store_id: str) -> Known:
    def select(columns: str, table: str) -> Iterator[Any]:
        return connection.execute(f"select {columns} from {table} where durable = ?", (spec.durable,))

    floors = select("durable, stream, created, seq, ts", "floors")
    floor = next((Floor(durable=d, stream=s, created=c, seq=seq, ts=ts) for d, s, c, seq, ts in floors), None)
    found = list(select("segment, bits, again", "ledger"))
    waiting = {seq for seq, is_redriven in select("seq, is_redriven", "parked") if not is_redriven}
    waiting |= {seq for (seq,) in select("seq", "tried")}
    return Known(
        store_id=store_id,
        floor=floor,
        floor_seq=floor.seq if floor else None,
        since=dict(select("subject, seq", "since")),
        segments={segment: bits for segment, bits, _ in found},
        again_count=sum(again for _, _, again in found),
        dead={seq: (handler, state) for seq, handler, state in select("seq, handler, state", "dead")},
        waiting=frozenset(waiting),
        gone=list(select("first_seq, last_seq, what", "gone")),
        unsent=frozenset(row_id for (row_id,) in connection.execute("select id from outbox where id like '%:dead'")),
    )


async def matching(
    broker: Broker, stream: str, subjects: Collection[str], first_seq: int, last_seq: int
) -> AsyncGenerator[tuple[int, str], None]:
    """Sequence and subject of each message of a stream that the subjects match, in order; without any, of all.

    Raises:
        BrokerUnavailable, ApiError: the stream could not be read to its end.
    """
    if last_seq < first_seq:
        return
    config = {
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": max(1, first_seq),
        "filter_subjects": list(subjects),
        "ack_policy": "none",
        "headers_only": True,
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": 30 * NANOSECONDS,
    }
    created = await broker.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
    name, count = created["name"], created["num_pending"]
    try:
        async with contextlib.aclosing(broker.read(stream, name, count, silent_s=SILENT_S)) as messages:
            async for message, _ in messages:
                if message.seq > last_seq:
                    return
                yield message.seq, message.subject
    finally:
        await broker.send(f"{API_PREFIX}CONSUMER.DELETE.{stream}.{name}")


async def stored_letters(broker: Broker, stream: str) -> set[str]:
    """The subjects of the dead letters that are stored for messages of a stream; the server tells them in pages."""
    found: set[str] = set()
    while True:
        body = {"subjects_filter": f"{DEAD_LETTER_PREFIX}{stream}.>", "offset": len(found)}
        try:
            info = await broker.api(f"STREAM.INFO.{DEAD_LETTERS}", body)
        except ApiError as error:
            if error.code == STREAM_NOT_FOUND:
                return found
            raise
        page = (info["state"].get("subjects") or {}).keys() - found
        found |= page
        if not page or len(found) >= info.get("total", 0):
            return found
