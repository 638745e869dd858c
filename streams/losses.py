"""Streams that are no longer the ones the store has read, and durables of other stores: what a person may accept.

Nothing here runs in a worker, which only refuses: these are the ways out, taken with every worker stopped.
"""

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import attrs

from models.errors import AttachRefused, BrokerError
from state.repair import Above
from state.sqlite import SqliteStore
from state.store import Floor
from streams.broker import Broker
from streams.position import check_stream
from streams.provision import check_identity, consumer_info, reset_consumer, seq_before, stream_info
from streams.topology import STORE_KEY, ConsumerSpec


@attrs.frozen(kw_only=True)
class Loss:
    """What a stream has lost, for one durable.

    Args:
        why: what gave it away.
        floor: where the durable stands once it is accepted.
        cut: the last sequence that the stream still has as the store knows it; everything above is lost.
        above: what the store has of the lost range.
    """

    durable: str
    stream: str
    why: str
    floor: Floor
    cut: int
    above: Above

    @property
    def is_over(self) -> bool:
        """Whether nothing of the lost range waits any more."""
        return not (self.above.parked or self.above.unsent)


async def find_losses(broker: Broker, store: SqliteStore, specs: Iterable[ConsumerSpec]) -> list[Loss]:
    """Compares each durable's position with its stream.

    Raises:
        BrokerError: a stream is not there at all.
    """
    return [loss for spec in specs if (loss := await _find_loss(broker, store, spec))]


async def _find_loss(broker: Broker, store: SqliteStore, spec: ConsumerSpec) -> Loss | None:
    loaded = store.load(spec.durable)
    floor = loaded.floor
    if floor is None:
        return None
    info = await stream_info(broker, spec.stream)
    if info is None:
        raise BrokerError(f"stream {spec.stream} is gone: make it anew with 'streams apply', or restore it")
    message = await broker.message_at(spec.stream, floor.seq) if floor.seq else None
    try:
        check_stream(floor, info, message.ts if message else None)
    except AttachRefused as error:
        why, cut = str(error), await _last_ours(broker, floor, info)
    else:
        why, cut = await _check_marks(broker, floor, info, loaded.marks)
    if not why:
        return None
    is_anew = info["created"] != floor.created
    seq = max(0, int(info["state"]["first_seq"]) - 1) if is_anew else min(cut, floor.seq)
    return Loss(
        durable=spec.durable,
        stream=spec.stream,
        why=why,
        floor=await _floor_at(broker, floor, info, seq),
        cut=cut,
        above=store.count_above(spec.durable, spec.table, spec.stream, cut),
    )


async def _check_marks(broker: Broker, floor: Floor, info: Any, marks: Mapping[int, int]) -> tuple[str, int]:
    """Compares the messages above the floor that have their outcome; what the stream has dropped says nothing.

    Returns:
        What gives a loss away, if there is one, and the last sequence before it.
    """
    cut = floor.seq
    for seq, ts in sorted(marks.items()):
        if seq > info["state"]["last_seq"]:
            return f"the stream ends before sequence {seq}, which has its outcome", cut
        found = await broker.message_at(floor.stream, seq)
        if found is not None and found.ts != ts:
            return f"the message at sequence {seq} is another one", cut
        cut = seq
    return "", cut


async def _last_ours(broker: Broker, floor: Floor, info: Any) -> int:
    """The last sequence that is older than the floor: whatever is younger came after the loss."""
    if info["created"] != floor.created:
        return 0
    last = int(info["state"]["last_seq"])
    if not floor.ts:
        return last
    seconds, nanoseconds = divmod(floor.ts + 1, 1_000_000_000)
    whole = dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return min(last, await seq_before(broker, floor.stream, f"{whole}.{nanoseconds:09}Z"))


async def _floor_at(broker: Broker, floor: Floor, info: Any, seq: int) -> Floor:
    message = await broker.message_at(floor.stream, seq) if seq else None
    return attrs.evolve(floor, created=info["created"], seq=seq, ts=message.ts if message else 0)


async def adopt(
    broker: Broker, store: SqliteStore, spec: ConsumerSpec, at: Literal["floor", "start"]
) -> tuple[int, bool] | None:
    """Makes a durable that belongs to another store this one's.

    Args:
        at: where this store goes on if it has no position of its own: after what the durable has acked, or at the
            stream's first message.

    Returns:
        The sequence after which it goes on, and whether anything was changed; None when there is no such durable.
    """
    info, stream = await consumer_info(broker, spec.stream, spec.durable), await stream_info(broker, spec.stream)
    if info is None or stream is None:
        return None
    known = store.load(spec.durable).floor
    try:
        check_identity(spec.durable, info["config"], store.store_id)
        return (known.seq if known else 0), False
    except AttachRefused:
        pass  # that is what is mended here
    if known is None:
        seq = info["ack_floor"]["stream_seq"] if at == "floor" else stream["state"]["first_seq"] - 1
        start = Floor(durable=spec.durable, stream=spec.stream, created=stream["created"], seq=0, ts=0)
        known = await _floor_at(broker, start, stream, max(0, seq))
        store.set_floor(known)
        filtered = info["config"].get("filter_subjects") or [info["config"].get("filter_subject", ">")]
        store.note_since(spec.durable, {subject: known.seq + 1 for subject in filtered})
    metadata = {**(info["config"].get("metadata") or {}), STORE_KEY: store.store_id}
    config = info["config"] | {"metadata": metadata}
    body = {"stream_name": spec.stream, "action": "update", "config": config}
    await broker.api(f"CONSUMER.CREATE.{spec.stream}.{spec.durable}", body)
    if spec.is_shared:  # no attach does it
        await reset_consumer(broker, spec, known.seq + 1, store_id=store.store_id)
    return known.seq, True
