"""What /health asks of the worker of one subject table; streams/health.py judges it."""

import datetime as dt
import time
from collections.abc import Iterator

import attrs

from streams.consumer import Consumer
from streams.health import ConsumerHealth
from streams.outbox import Outbox
from streams.outcomes import Hand
from streams.slots import Running, Slots

WINDOW_LIMIT = 50_000


@attrs.frozen(kw_only=True)
class Limits:
    """NATS_MAX_DELIVER and PARKED_MAX."""

    max_deliver: int
    parked_max: int


class TableHealth:
    """The facts of one worker, read at any time."""

    def __init__(self, hand: Hand, limits: Limits, outbox: Outbox, *, slots: Slots, consumer: Consumer) -> None:
        self._hand, self._limits, self._outbox = hand, limits, outbox
        self._slots, self._consumer = slots, consumer

    @property
    def intake_stopped(self) -> str | None:
        """Why no message is taken at the moment, or None."""
        parked_count, position = self._hand.parked.message_count, self._hand.position
        parked_count = max(parked_count, self._hand.parked_elsewhere)
        if parked_count >= self._limits.parked_max:
            return f"{parked_count} messages are parked (PARKED_MAX={self._limits.parked_max})"
        if self._outbox.is_full:
            return f"{self._outbox.unsent_count} events wait to be published"
        if position and position.window_count > WINDOW_LIMIT:
            return f"{position.window_count} messages were handled beyond the slowest one"
        return None

    @property
    def held_count(self) -> int:
        """Messages in hand that have no outcome yet; parked ones are not in hand."""
        return len(self._hand.held)

    def unfinished(self, *, with_parked: bool) -> Iterator[str]:
        """What is under way here, in words.

        Args:
            with_parked: count what waits for a later run, too, and not only what is due.
        """
        hand = self._hand
        if not self._consumer.is_attached:
            yield f"not attached ({self._consumer.reason})"
        if len(hand.held):
            yield f"{len(hand.held)} messages in hand"
        if hand.letters:
            yield f"{len(hand.letters)} dead letters to be stored"
        if hand.parked.message_count and (with_parked or hand.parked.is_due(time.time())):
            yield f"{hand.parked.message_count} messages parked"

    def idle_s(self, quiet_at: float) -> float:
        """Seconds for which messages wait and nothing happens.

        Args:
            quiet_at: when the server had nothing for this durable last, in monotonic seconds.
        """
        begun_at = self._hand.held.since if len(self._hand.held) else quiet_at
        return time.monotonic() - max(self._hand.stats.last_outcome_at, self._consumer.attached_at, begun_at)

    def running(self) -> Running:
        """The attempts that run now."""
        return self._slots.running(time.monotonic())

    def describe(self, seen: ConsumerHealth, idle_s: float) -> ConsumerHealth:
        """Adds what this worker knows to what the server says of the durable."""
        handlers = self._hand.stats.by_handler()
        last_ts = self._hand.stats.last_ts
        return attrs.evolve(
            seen,
            last_msg_ts=dt.datetime.fromtimestamp(last_ts / 1e9, dt.UTC) if last_ts else None,
            processed=sum(counts.processed for counts in handlers.values()),
            errors=sum(counts.errors for counts in handlers.values()),
            dead_lettered=sum(counts.dead_lettered for counts in handlers.values()),
            parked=self._hand.parked.message_count,
            lag_s=self._lag_s(seen.pending, idle_s),
            handlers=handlers,
        )

    def _lag_s(self, pending: int, idle_s: float) -> float | None:
        """The age of the oldest message in hand; without one, how long nothing happened while some wait.

        Of messages that wait for a durable that was never attached nothing is known: None.
        """
        oldest = next(iter(self._hand.held), None)
        if oldest is not None:
            return round(max(0.0, time.time() - oldest.ts / 1e9), 3)
        if pending and not self._consumer.attached_at:
            return None
        return round(idle_s, 3) if pending else 0.0
