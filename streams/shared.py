"""What a process that shares a table with others has to follow: the server's floor, and what others have parked."""

import asyncio
import logging
import time

from models.errors import ApiError, BrokerUnavailable, StoreError
from state.store import Store
from streams.outcomes import Hand, Services
from streams.position import SharedPosition
from streams.provision import consumer_info
from streams.runner import Item
from streams.topology import ConsumerSpec
from streams.verdict import History

log = logging.getLogger(__name__)

SHARED_INTERVAL_S = 1.0


class SharedFollower:
    """Keeps one worker of a shared table up to date."""

    def __init__(self, spec: ConsumerSpec, hand: Hand, services: Services) -> None:
        self._spec, self._hand, self._services = spec, hand, services

    async def run(self) -> None:
        """Follows what other processes did to a shared table: the server's floor, and what waits in the store."""
        while True:
            await asyncio.sleep(SHARED_INTERVAL_S)
            try:
                await self._follow_floor()
                lanes = self._services.store.load_lanes(self._spec.durable)
            except (BrokerUnavailable, ApiError, StoreError) as error:
                log.debug("can't follow a shared table", extra={"fields": {"error": str(error)}})
                continue
            self._hand.parked_elsewhere = sum(lane.count for lane in lanes.values())
            if self._hand.runs_parked:
                self._hand.parked.discover(lanes)

    async def _follow_floor(self) -> None:
        position, spec = self._hand.position, self._spec
        info = await consumer_info(self._services.broker, spec.stream, spec.durable)
        if info is None or not isinstance(position, SharedPosition):
            return
        seq = info["ack_floor"]["stream_seq"]
        if seq > position.floor.seq:
            message = await self._services.broker.message_at(spec.stream, seq)
            position.note_server_floor(seq, message.ts if message else 0)


def recall(store: Store, durable: str, item: Item) -> History | None:
    """What the store knows of earlier attempts, here or in another process."""
    try:
        tried = store.fetch_tried(durable, item.seq)
    except StoreError:
        return None  # the commit of this failure will fail as well, and the message comes again
    if tried is None:
        return None
    age_s = time.time() - tried.since
    return History(failures=tried.failures, attempts=tried.attempts, age_s=age_s, journal=tried.journal)
