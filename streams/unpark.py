"""Brings parked lanes back when their time has come, as many as there is room for."""

import logging
from collections.abc import Callable

from models.errors import StoreError
from state.store import ParkedMessage, Store
from streams.outcomes import Hand
from streams.topology import MAX_ACK_PENDING

log = logging.getLogger(__name__)

HELD_LIMIT_BYTES = 32 * 1024 * 1024
STORE_RETRY_S = 0.05


class Unparker:
    """Takes due lanes out of the store.

    Args:
        enter: takes a message and the Unix time; it runs, or waits, from there.
    """

    def __init__(self, hand: Hand, store: Store, enter: Callable[[ParkedMessage, float], None]) -> None:
        self._hand, self._store, self._enter = hand, store, enter

    def take_due(self, now: float) -> None:
        """Takes as many due lanes as there is room for; the others keep their turn."""
        held, parked = self._hand.held, self._hand.parked
        for _ in range(max(0, MAX_ACK_PENDING - len(held))):
            if held.byte_count > HELD_LIMIT_BYTES or not (keys := parked.take_due(now, 1)):
                return
            try:
                message = self._store.fetch_parked(self._hand.durable, keys[0])
            except StoreError as error:
                log.error("can't read parked messages", extra={"fields": {"error": str(error)}})
                message = None
            if message is None:  # its commit is still under way
                parked.schedule(keys[0], now + STORE_RETRY_S)
            else:
                self._enter(message, now)
