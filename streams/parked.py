"""Which lanes wait in the store, and when each may run again.

A parked lane holds no slot, no server resource and no payload in memory: the messages lie in the store, here are only
their number and the instant at which the first of them is due. Instants are Unix seconds, for they survive restarts.
"""

import heapq
from collections.abc import Mapping

from state.store import ParkedLane


class ParkedLanes:
    """The parked lanes of one subject table; ``message_count`` messages wait in all of them."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._due: list[tuple[float, str]] = []
        self._scheduled: set[str] = set()
        self.message_count = 0

    def load(self, lanes: Mapping[str, ParkedLane]) -> None:
        """Starts anew from what the store has."""
        self._counts = {key: lane.count for key, lane in lanes.items()}
        self._due = [(lane.due, key) for key, lane in lanes.items()]
        heapq.heapify(self._due)
        self._scheduled = set(self._counts)
        self.message_count = sum(self._counts.values())

    def discover(self, lanes: Mapping[str, ParkedLane]) -> None:
        """Takes the lanes over that another process has parked."""
        for key, lane in lanes.items():
            if key not in self._counts:
                self._counts[key] = lane.count
                self.message_count += lane.count
                self.schedule(key, lane.due)

    def __contains__(self, key: str) -> bool:
        return key in self._counts

    def join(self, key: str) -> None:
        """Counts one more message at the end of a lane, which becomes parked by it."""
        self._counts[key] = self._counts.get(key, 0) + 1
        self.message_count += 1

    def schedule(self, key: str, due: float) -> None:
        """Says when the first message of a lane may run; a lane that has its turn already keeps it."""
        if key not in self._scheduled:
            self._scheduled.add(key)
            heapq.heappush(self._due, (due, key))

    def is_due(self, now: float) -> bool:
        """Whether a lane may run now."""
        return bool(self._due) and self._due[0][0] <= now

    def take_due(self, now: float, limit: int) -> list[str]:
        """Lanes whose first message may run now, ``limit`` at most; each has no further turn until it is scheduled."""
        keys: list[str] = []
        while self._due and self._due[0][0] <= now and len(keys) < limit:
            key = heapq.heappop(self._due)[1]
            self._scheduled.discard(key)
            if key in self._counts:
                keys.append(key)
        return keys

    def finish_first(self, key: str, now: float) -> None:
        """Counts the first message of a lane out; the next one may run at once, and an empty lane is parked no more."""
        self._counts[key] -= 1
        self.message_count -= 1
        if self._counts[key] > 0:
            self.schedule(key, now)
        else:
            del self._counts[key]
