"""How many calls may run at once, and how many may wait for that: more are refused at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from models.errors import GatewayError


class CallSlots:
    """A bounded number of places and a bounded queue before them, first come, first served."""

    def __init__(self, *, max_running: int, max_waiting: int) -> None:
        self._places = asyncio.Semaphore(max_running)
        self._max_waiting = max_waiting
        self.running = 0
        self.waiting = 0

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Holds a place.

        Raises:
            GatewayError: every place is taken, and as many wait as may.
        """
        if self._places.locked() and self.waiting >= self._max_waiting:
            detail = f"{self.running} calls run and {self.waiting} wait"
            raise GatewayError("overloaded", detail, may_retry=True)
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._places.release()
