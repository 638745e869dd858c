"""Reading stored messages of a stream in order, by an ephemeral consumer that needs no acks and moves nothing.

For whoever looks on: audits, replays, commands. A worker attaches a durable instead (streams/consumer.py).
"""

import contextlib
import datetime as dt
import itertools
from collections.abc import AsyncGenerator, Collection

from streams.broker import API_PREFIX, Broker
from streams.message import Message
from streams.patterns import covers, matches, overlap
from streams.topology import NANOSECONDS

SILENT_S = 10.0
INACTIVE_S = 3600
"""A reader that runs slow handlers may ask for nothing for long; it deletes its consumer when it ends."""

EARLIEST, LATEST = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.datetime(2262, 1, 1, tzinfo=dt.UTC)
"""The server counts nanoseconds in 64 bits; before and after that an instant turns into another one."""


async def read_messages(
    broker: Broker,
    stream: str,
    subjects: Collection[str],
    first_seq: int,
    last_seq: int,
    *,
    headers_only: bool = False,
) -> AsyncGenerator[Message, None]:
    """The messages of a stream that the subjects match, from one sequence to another, in order; without any, all.

    Raises:
        BrokerUnavailable, ApiError: the stream could not be read to its end.
    """
    if last_seq < first_seq:
        return
    start: dict[str, object] = {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, first_seq)}
    filters = separate(subjects)
    is_wider = bool(subjects) and not filters
    name, count = await _create(broker, stream, filters, start, headers_only=headers_only)
    try:
        async with contextlib.aclosing(broker.read(stream, name, count, silent_s=SILENT_S)) as messages:
            async for message, _ in messages:
                if message.seq > last_seq:
                    return
                if is_wider and not any(matches(pattern, message.subject) for pattern in subjects):
                    continue
                yield message
    finally:
        await broker.send(f"{API_PREFIX}CONSUMER.DELETE.{stream}.{name}")


def separate(subjects: Collection[str]) -> list[str]:
    """The same patterns so that no two overlap, which the server refuses; none at all when that can't be said."""
    wanted = sorted(set(subjects))
    kept = [one for one in wanted if not any(other != one and covers(other, one) for other in wanted)]
    return [] if any(overlap(one, other) for one, other in itertools.combinations(kept, 2)) else kept


async def seq_at(broker: Broker, stream: str, instant: dt.datetime) -> int | None:
    """The sequence of the first message that was stored at an instant or after it; None when there is none."""
    begin = min(max(instant, EARLIEST), LATEST).astimezone(dt.UTC).isoformat()
    start: dict[str, object] = {"deliver_policy": "by_start_time", "opt_start_time": begin}
    name, count = await _create(broker, stream, (), start, headers_only=True)
    try:
        async with contextlib.aclosing(broker.read(stream, name, min(count, 1), silent_s=SILENT_S)) as messages:
            async for message, _ in messages:
                return message.seq
    finally:
        await broker.send(f"{API_PREFIX}CONSUMER.DELETE.{stream}.{name}")
    return None


async def _create(
    broker: Broker, stream: str, subjects: Collection[str], start: dict[str, object], *, headers_only: bool
) -> tuple[str, int]:
    """Creates the consumer; returns its name and how many messages it has."""
    config = start | {
        "filter_subjects": list(subjects),
        "ack_policy": "none",
        "headers_only": headers_only,
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": INACTIVE_S * NANOSECONDS,
    }
    created = await broker.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
    return str(created["name"]), int(created["num_pending"])
