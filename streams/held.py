"""The messages in a worker's hands: delivered, or taken out of the parked ones, and not committed yet."""

import asyncio
import time
from collections.abc import Iterator

from streams.runner import Item


class Held:
    """Items by sequence, with the bytes of their payloads; ``since`` is when the first one came to empty hands."""

    def __init__(self) -> None:
        self._items: dict[int, Item] = {}
        self.byte_count = 0
        self.since = 0.0
        self._awaited: Item | None = None
        self._has_gone = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items.values())

    def __contains__(self, item: Item) -> bool:
        """Whether this very item is held; another one of the same sequence does not count."""
        return self._items.get(item.seq) is item

    def get(self, seq: int) -> Item | None:
        """The item of a sequence."""
        return self._items.get(seq)

    def add(self, item: Item) -> None:
        """Takes an item; none of its sequence is held."""
        if not self._items:
            self.since = time.monotonic()
        self._items[item.seq] = item
        self.byte_count += len(item.message.payload)

    def discard(self, item: Item) -> None:
        """Lets an item go, if it is held."""
        if item in self:
            del self._items[item.seq]
            self.byte_count -= len(item.message.payload)
            if self._awaited is item:
                self._has_gone.set()

    def clear(self) -> None:
        """Lets everything go."""
        self._items.clear()
        self.byte_count = 0
        self._has_gone.set()

    async def gone(self, item: Item) -> None:
        """Waits until an item that is held is let go; one at a time can be waited for."""
        self._awaited = item
        self._has_gone.clear()
        await self._has_gone.wait()
