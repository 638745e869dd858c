"""The delivery policy of one handler: how often, how soon and for how long a message is tried.

A policy is checked where it is declared, in ``SubjectTable.on``, so that the error can name the table and the handler.
"""

import random
from collections.abc import Iterator
from typing import Any, Literal

import attrs

from models.errors import DeclarationError

DAY_S = 86_400.0


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
        isolate: ``process`` runs the handler in a process of its own, at most four of them at once, which is killed at
            ``timeout_s`` and whose crash is a failure of the message; for code that may block, loop or crash.
    """

    max_deliver: int | None = None
    backoff_s: tuple[float, ...] = (1, 5, 30)
    timeout_s: float = 30
    retry_for_s: float = DAY_S
    reject_on: tuple[type[Exception], ...] = ()
    retry_on: tuple[type[Exception], ...] = ()
    isolate: Literal["process"] | None = None

    def delay_s(self, attempt: int, rng: random.Random) -> float:
        """The wait after the ``attempt``-th attempt (from 1): its backoff, moved by up to a quarter either way."""
        base = self.backoff_s[min(attempt, len(self.backoff_s)) - 1]
        return base * rng.uniform(0.75, 1.25)


def check_policy(policy: Policy, where: str) -> None:
    """Refuses a policy that can't be carried out.

    Raises:
        DeclarationError: naming ``where``, the field, its value and what is accepted.
    """
    for problem in _problems(policy):
        raise DeclarationError(where, f"policy: {problem}")


def _problems(policy: Any) -> Iterator[str]:
    if not isinstance(policy, Policy):
        yield f"expected a Policy, got {policy!r}"
        return
    limit = policy.max_deliver
    if limit is not None and not (type(limit) is int and 1 <= limit <= 1000):
        yield f"max_deliver: expected an int from 1 to 1000, or None, got {limit!r}"
    delays = policy.backoff_s
    if not (isinstance(delays, tuple | list) and delays and all(_is_between(0, d, DAY_S) and d > 0 for d in delays)):
        yield f"backoff_s: expected one or more delays above 0 and up to 86400 seconds, got {delays!r}"
    if not _is_between(0.01, policy.timeout_s, 3600):
        yield f"timeout_s: expected 0.01 to 3600 seconds, got {policy.timeout_s!r}"
    if not _is_between(0, policy.retry_for_s, 30 * DAY_S):
        yield f"retry_for_s: expected 0 to 2592000 seconds, got {policy.retry_for_s!r}"
    if policy.isolate not in ("process", None):
        yield f"isolate: expected 'process' or None, got {policy.isolate!r}"
    for name in ("reject_on", "retry_on"):
        classes = getattr(policy, name)
        if not (isinstance(classes, tuple | list) and all(_is_error(cls) for cls in classes)):
            yield f"{name}: expected a tuple of exception classes, got {classes!r}"
    both = [cls.__name__ for cls in policy.reject_on if cls in policy.retry_on]
    if both:
        yield f"retry_on: {both[0]} is in reject_on too"


def _is_between(low: float, value: object, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_error(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, Exception)
