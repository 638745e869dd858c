"""Reading stored messages of a stream in order, by an ephemeral consumer that needs no acks and moves nothing.

For whoever looks on: audits, replays, commands. A worker attaches a durable instead (streams/consumer.py).
"""

import contextlib
import datetime as dt
from collections.abc import AsyncGenerator, Collection

from streams.broker import API_PREFIX, Broker
from streams.message import Message
from streams.topology import NANOSECONDS

SILENT_S = 10.0
INACTIVE_S = 3600
"""A reader that runs slow handlers may ask for nothing for long; it deletes its consumer when it ends."""


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
    name, count = await _create(broker, stream, subjects, start, headers_only=headers_only)
    try:
        async with contextlib.aclosing(broker.read(stream, name, count, silent_s=SILENT_S)) as messages:
            async for message, _ in messages:
                if message.seq > last_seq:
                    return
                yield message
    finally:
        await broker.send(f"{API_PREFIX}CONSUMER.DELETE.{stream}.{name}")


async def seq_at(broker: Broker, stream: str, instant: dt.datetime) -> int | None:
    """The sequence of the first message that was stored at an instant or after it; None when there is none."""
    begin = instant.astimezone(dt.UTC).isoformat()
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
