"""The delivery policy of one handler: how often, how soon and for how long a message is tried."""

import random
from collections.abc import Iterable
from typing import Any

import attrs


def _delays(value: Iterable[float]) -> tuple[float, ...]:
    return tuple(value)


def _classes(value: Iterable[type[Exception]]) -> tuple[type[Exception], ...]:
    return tuple(value)


def _durations(instance: object, attribute: "attrs.Attribute[Any]", value: tuple[float, ...]) -> None:
    if not value or any(not 0 < delay <= 86_400 for delay in value):
        raise ValueError(
            f"{attribute.name}: expected one or more delays above 0 and up to 86400 seconds, got {value!r}"
        )


def _errors(instance: object, attribute: "attrs.Attribute[Any]", value: tuple[type[Exception], ...]) -> None:
    for cls in value:
        if not (isinstance(cls, type) and issubclass(cls, Exception)):
            raise ValueError(f"{attribute.name}: expected exception classes, got {cls!r}")


def _in_range(low: float, high: float) -> Any:
    def check(instance: object, attribute: "attrs.Attribute[Any]", value: float | None) -> None:
        if value is not None and not low <= value <= high:
            raise ValueError(f"{attribute.name}: expected {low:g} to {high:g}, got {value!r}")

    return check


@attrs.frozen(kw_only=True)
class Policy:
    """What happens to a message that its handler can't finish.

    Args:
        max_deliver: failures of a message before it is a dead letter; None takes NATS_MAX_DELIVER.
        backoff_s: seconds before the second, third, … attempt, give or take a quarter; the last one repeats.
        timeout_s: seconds one attempt may run; a longer one is cancelled and counts as a failure.
        retry_for_s: seconds for which ``Retry`` and ``retry_on`` errors count as no failure, from the first one on.
        reject_on: exception classes that make a message a dead letter at once.
        retry_on: exception classes that mean "a dependency is down", like Retry. The nearest class in an error's
            method resolution order wins over a farther one.
    """

    max_deliver: int | None = attrs.field(default=None, validator=_in_range(1, 1000))
    backoff_s: tuple[float, ...] = attrs.field(default=(1, 5, 30), converter=_delays, validator=_durations)
    timeout_s: float = attrs.field(default=30, validator=_in_range(0.01, 3600))
    retry_for_s: float = attrs.field(default=86_400, validator=_in_range(0, 30 * 86_400))
    reject_on: tuple[type[Exception], ...] = attrs.field(default=(), converter=_classes, validator=_errors)
    retry_on: tuple[type[Exception], ...] = attrs.field(default=(), converter=_classes, validator=_errors)

    def delay_s(self, attempt: int, rng: random.Random) -> float:
        """The wait after the ``attempt``-th attempt (from 1): its backoff, moved by up to a quarter either way."""
        base = self.backoff_s[min(attempt, len(self.backoff_s)) - 1]
        return base * rng.uniform(0.75, 1.25)
