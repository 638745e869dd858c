"""Looks up which events a stream holds already, by their ids.

A publisher that was away for longer than a stream's dedupe window can't tell by sending again whether an event is
stored: it would be stored a second time. So it asks first, by reading the headers of what the stream has got since.
"""

import contextlib
from collections.abc import Collection

from streams.broker import API_PREFIX, Broker
from streams.topology import NANOSECONDS

MSG_ID = "Nats-Msg-Id"
SILENT_S = 5.0
KEPT_S = 30


async def stored_ids(
    broker: Broker, stream: str, *, subjects: Collection[str], since: str, wanted: Collection[str]
) -> set[str]:
    """Finds those of the wanted ids that the stream holds.

    Args:
        subjects: the subjects on which they would be.
        since: the instant (RFC 3339) from which on they could have been stored.

    Raises:
        BrokerUnavailable, ApiError: the stream could not be read to its end; nothing is known.
    """
    config = {
        "deliver_policy": "by_start_time",
        "opt_start_time": since,
        "filter_subjects": sorted(subjects),
        "ack_policy": "none",
        "headers_only": True,
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": KEPT_S * NANOSECONDS,
    }
    created = await broker.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
    found: set[str] = set()
    name, left = created["name"], created["num_pending"]
    try:
        async with contextlib.aclosing(broker.read(stream, name, left, silent_s=SILENT_S)) as messages:
            async for _, headers in messages:
                if (message_id := headers.get(MSG_ID, "")) in wanted:
                    found.add(message_id)
    finally:
        await broker.send(f"{API_PREFIX}CONSUMER.DELETE.{stream}.{name}")
    return found
