"""The newest stored messages of one subject, read by ephemeral consumers that move nothing.

For whoever wants to see what comes on a subject, as ``new handler`` does. Nothing is decoded here.
"""

import contextlib

from streams.broker import API_PREFIX, Broker
from streams.provision import stream_info
from streams.topology import NANOSECONDS

SILENT_S = 10.0


async def newest_payloads(broker: Broker, stream: str, subject: str, count: int) -> list[bytes]:
    """The payloads of the last ``count`` messages of a subject, oldest first; none where there is no such stream.

    Raises:
        BrokerUnavailable, ApiError: the stream could not be read.
    """
    info = await stream_info(broker, stream)
    if info is None:
        return []
    first_seq, last_seq = info["state"]["first_seq"], info["state"]["last_seq"]
    start = await _start_of_last(broker, stream, subject, count, span=(first_seq, last_seq))
    found = []
    name, pending = await _create(broker, stream, subject, start)
    try:
        async with contextlib.aclosing(broker.read(stream, name, pending, silent_s=SILENT_S)) as messages:
            async for message, _ in messages:
                found.append(message.payload)
    finally:
        await _delete(broker, stream, name)
    return found[-count:]


async def _start_of_last(broker: Broker, stream: str, subject: str, count: int, *, span: tuple[int, int]) -> int:
    """The highest sequence from which at least ``count`` messages of a subject follow, or else the first of all."""
    low, high = max(1, span[0]), span[1] + 1
    while high - low > 1:
        middle = (low + high) // 2
        name, pending = await _create(broker, stream, subject, middle)
        await _delete(broker, stream, name)
        low, high = (middle, high) if pending >= count else (low, middle)
    return low


async def _create(broker: Broker, stream: str, subject: str, start: int) -> tuple[str, int]:
    """Creates a consumer of a subject; returns its name and how many messages it has."""
    config = {
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": start,
        "filter_subject": subject,
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": 30 * NANOSECONDS,
    }
    created = await broker.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
    return str(created["name"]), int(created["num_pending"])


async def _delete(broker: Broker, stream: str, name: str) -> None:
    await broker.send(f"{API_PREFIX}CONSUMER.DELETE.{stream}.{name}")
