"""Counts of what one subject table did in this process, for /health and /metrics; nothing here is durable."""

import time
from collections.abc import Iterable

import attrs

from streams.health import HandlerCounts
from streams.runner import Item
from streams.verdict import Kind


@attrs.define
class Counter:
    """What one handler did."""

    processed: int = 0
    errors: int = 0
    dead_lettered: int = 0


class TableStats:
    """Counts by handler, and when the last outcome was committed.

    Args:
        names: the handlers' names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._counters = {name: Counter() for name in names}
        self.last_ts: int | None = None
        self.last_outcome_at = 0.0

    def failed(self, handler: str) -> None:
        """Counts an attempt that failed."""
        self._counters.setdefault(handler, Counter()).errors += 1

    def committed(self, item: Item, kind: Kind) -> None:
        """Counts an outcome that is durable; a parked message has none yet."""
        counter = self._counters.setdefault(item.handler.name, Counter())
        if kind == "applied":
            counter.processed += 1
        elif kind == "dead":
            counter.dead_lettered += 1
        self.last_ts = max(self.last_ts or 0, item.ts)

    def touched(self) -> None:
        """Takes note that outcomes were committed now."""
        self.last_outcome_at = time.monotonic()

    def by_handler(self) -> dict[str, HandlerCounts]:
        """The counts as /health shows them."""
        return {
            name: HandlerCounts(processed=c.processed, errors=c.errors, dead_lettered=c.dead_lettered)
            for name, c in self._counters.items()
        }
