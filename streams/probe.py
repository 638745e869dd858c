"""Looks at the server once a second, so that /health tells what is and not what was.

It reads each durable's INFO, and how many messages no handler matches. What it saw, and when, is kept here;
streams/health.py judges it.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from models.errors import ApiError, BrokerUnavailable
from streams.broker import Broker
from streams.provision import consumer_info
from streams.topology import ConsumerSpec, StreamSpec, consumer_config, differences, stream_config

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
STREAM_INTERVAL_S = 2.0
TIMEOUT_S = 0.8


@attrs.define
class Sight:
    """The last look at one durable: monotonic seconds, and what the server said (None: there is no such durable).

    ``quiet_at`` is the last look at which nothing waited there.
    """

    at: float | None = None
    quiet_at: float = 0.0
    info: Any = None
    drift: tuple[str, ...] = ()

    @property
    def age_s(self) -> float | None:
        """Seconds since the server answered; None when it never has."""
        return None if self.at is None else time.monotonic() - self.at


class Probe:
    """The eyes of /health.

    Args:
        specs: the durables of this process.
        streams: the streams that are compared with their declarations, and whose unhandled messages are counted.
    """

    def __init__(
        self, broker: Broker, specs: Sequence[ConsumerSpec], streams: Sequence[StreamSpec], *, replicas: int
    ) -> None:
        self._broker = broker
        self._specs = specs
        self._streams = list(streams)
        self._replicas = replicas
        self.sights = {spec.durable: Sight() for spec in specs}
        self.unhandled = 0
        self.stream_drift: dict[str, tuple[str, ...]] = {}

    async def run(self) -> None:
        """Looks once a second until cancelled; at the streams, which may be slow to answer, less often."""
        async with asyncio.TaskGroup() as group:
            for spec in self._specs:
                group.create_task(self._every(INTERVAL_S, functools.partial(self._look_at, spec)))
            group.create_task(self._every(STREAM_INTERVAL_S, self._look_at_streams))

    async def _every(self, interval_s: float, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._broker.connected.wait()
            started = time.monotonic()
            await look()
            await asyncio.sleep(max(0.05, interval_s - (time.monotonic() - started)))

    async def _look_at(self, spec: ConsumerSpec) -> None:
        sight = self.sights[spec.durable]
        try:
            sight.info = await consumer_info(self._broker, spec.stream, spec.durable, timeout_s=TIMEOUT_S)
        except (BrokerUnavailable, ApiError) as error:
            log.debug("no answer for a durable", extra={"fields": {"durable": spec.durable, "error": str(error)}})
            return
        sight.at = time.monotonic()
        info = sight.info or {}
        if not info.get("num_pending", 0) + info.get("num_ack_pending", 0):
            sight.quiet_at = sight.at
        if sight.info:
            wanted = consumer_config(spec, store_id="")
            del wanted["metadata"]
            sight.drift = tuple(str(difference) for difference in differences(wanted, sight.info["config"]))

    async def _look_at_streams(self) -> None:
        """Compares the streams with what is declared, and counts what they hold that no handler matches."""
        try:
            self.unhandled = sum([await self._look_at_stream(spec) for spec in self._streams])
        except (BrokerUnavailable, ApiError):
            log.debug("no answer for a stream", exc_info=True)

    async def _look_at_stream(self, stream: StreamSpec) -> int:
        info = await self._broker.api(f"STREAM.INFO.{stream.name}", timeout_s=TIMEOUT_S)
        wanted = stream_config(stream, replicas=self._replicas, max_payload_bytes=self._broker.max_payload_bytes)
        self.stream_drift[stream.name] = tuple(str(found) for found in differences(wanted, info["config"]))
        if not stream.is_public or stream.log_bytes is not None:
            return 0
        unhandled = int(info["state"]["messages"])
        for spec in self._specs:
            if spec.stream == stream.name:
                for subject in spec.subjects:
                    unhandled -= await self._count(stream.name, subject)
        return max(0, unhandled)

    async def _count(self, stream: str, subject: str) -> int:
        info = await self._broker.api(f"STREAM.INFO.{stream}", {"subjects_filter": subject}, timeout_s=TIMEOUT_S)
        return sum((info["state"].get("subjects") or {}).values())
