"""When to leave a model alone that fails: a circuit breaker, as a decision without a clock and without awaits.

It opens after some failures in a row, or when too large a share of the last calls failed; calls are refused from then
on. After a while one call is let through as a probe: it closes the breaker, or opens it for as long again. Who calls,
and what counts as a failure, is the business of prompts/gateway.py.
"""

from collections import deque
from typing import Literal

import attrs

from models.codec import between

State = Literal["closed", "open", "half_open"]


@attrs.frozen(kw_only=True)
class BreakerConfig:
    """When a breaker opens and for how long.

    Args:
        failures_in_row: opens after that many.
        window: how many of the last calls the share is taken of; it takes effect once there were so many.
        failed_ratio: opens when this share of them failed.
        open_s: seconds until a probe is let through.
    """

    failures_in_row: int = attrs.field(default=5, validator=between(1, 1000))
    window: int = attrs.field(default=20, validator=between(1, 10_000))
    failed_ratio: float = attrs.field(default=0.5, validator=between(0.01, 1))
    open_s: float = attrs.field(default=10.0, validator=between(0, 3600))


class Breaker:
    """The breaker of one model; ``now`` is in monotonic seconds, and never goes back."""

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        self._recent: deque[bool] = deque(maxlen=config.window)
        self._failures_in_row = 0
        self._opened_at: float | None = None
        self._is_probing = False
        self._permit = 0

    def state(self, now: float) -> State:
        """Whether calls are let through (``closed``), refused (``open``), or one of them may try (``half_open``)."""
        if self._opened_at is None:
            return "closed"
        return "half_open" if now - self._opened_at >= self._config.open_s else "open"

    def admit(self, now: float) -> int | None:
        """Lets a call through and returns its permit, or None; each permit is given back by record or release."""
        state = self.state(now)
        if state == "closed":
            return self._permit
        if state == "open" or self._is_probing:
            return None
        self._is_probing = True
        return self._permit

    def record(self, permit: int, *, is_good: bool, now: float) -> bool:
        """Takes note of how a call ended, and says whether that opened the breaker.

        What began before the breaker opened says nothing about now: it is ignored.
        """
        if permit != self._permit:
            return False
        if self._is_probing:
            return self._end_probe(is_good, now)
        self._recent.append(is_good)
        self._failures_in_row = 0 if is_good else self._failures_in_row + 1
        if is_good or not self._is_too_much():
            return False
        return self._open(now)

    def release(self, permit: int) -> None:
        """Gives a permit back without a verdict: the caller left before there was one."""
        if permit == self._permit:
            self._is_probing = False

    def _is_too_much(self) -> bool:
        if self._failures_in_row >= self._config.failures_in_row:
            return True
        failures = self._recent.count(False)
        return len(self._recent) == self._config.window and failures >= self._config.failed_ratio * self._config.window

    def _end_probe(self, is_good: bool, now: float) -> bool:
        if not is_good:
            return self._open(now)
        self._is_probing = False
        self._opened_at = None
        self._permit += 1
        return False

    def _open(self, now: float) -> bool:
        self._opened_at = now
        self._is_probing = False
        self._recent.clear()
        self._failures_in_row = 0
        self._permit += 1
        return True
