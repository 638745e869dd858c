"""Lanes: messages of one key run one after the other, in stream order; different keys run side by side.

A pure data structure: streams/worker.py fills it, its slots empty it. A lane exists while it has messages.
"""

import collections
from typing import Generic, Protocol, TypeVar


class Keyed(Protocol):
    """What a lane holds."""

    key: str


ItemT = TypeVar("ItemT", bound=Keyed)


class Lanes(Generic[ItemT]):
    """Queues by key, and the keys whose first message may run now."""

    def __init__(self) -> None:
        self._queues: dict[str, collections.deque[ItemT]] = {}
        self._ready: collections.deque[ItemT] = collections.deque()

    def __len__(self) -> int:
        """The number of lanes that have a message waiting or running."""
        return len(self._queues)

    def add(self, item: ItemT) -> None:
        """Queues a message behind the others of its key."""
        queue = self._queues.get(item.key)
        if queue is None:
            self._queues[item.key] = collections.deque((item,))
            self._ready.append(item)
        else:
            queue.append(item)

    def take(self) -> ItemT | None:
        """Takes the next message that may run; its lane waits until ``release``."""
        return self._ready.popleft() if self._ready else None

    def release(self, item: ItemT) -> None:
        """Ends the turn of a message that was taken; the next one of its lane may run."""
        queue = self._queues[item.key]
        queue.popleft()
        if queue:
            self._ready.append(queue[0])
        else:
            del self._queues[item.key]

    def clear_behind(self, item: ItemT) -> list[ItemT]:
        """Ends the turn of a message that was taken and takes everything behind it out of its lane, in order."""
        queue = self._queues.pop(item.key)
        queue.popleft()
        return list(queue)

    def drop_waiting(self) -> list[ItemT]:
        """Takes out every message that has not been taken; the running ones stay."""
        dropped: list[ItemT] = []
        for item in self._ready:
            dropped.extend(self._queues.pop(item.key))
        self._ready.clear()
        for queue in self._queues.values():
            running = queue.popleft()
            dropped.extend(queue)
            queue.clear()
            queue.append(running)
        return dropped
