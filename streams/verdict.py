"""The decision what becomes of a message, taken without I/O from its fault and its history.

The verdict lives in the exception: returning is success, ``Retry`` waits, ``Reject`` gives up, anything else is a
failure that is tried again until the policy's limit. ``fault_of`` says what an error means under a policy;
streams/runner.py turns every ending of a handler into a call of ``decide``; streams/worker.py carries the verdict out.
"""

import random
from typing import Literal

import attrs

from models.errors import Reject, Retry
from state.store import Failure
from streams.policy import DAY_S, Policy

Kind = Literal["applied", "parked", "dead"]


@attrs.frozen(kw_only=True)
class Verdict:
    """What becomes of a message.

    Args:
        kind: ``applied``; ``parked`` until ``delay_s`` have passed; ``dead``, with the reason.
        is_failure: this attempt counts against ``max_deliver``.
        error: the error as text, or None.
        where: the line that raised it, or None.
        trace: its traceback, or None.
    """

    kind: Kind
    delay_s: float = 0.0
    is_failure: bool = False
    error: str | None = None
    where: str | None = None
    trace: str | None = None


APPLIED = Verdict(kind="applied")


@attrs.frozen(kw_only=True)
class History:
    """What is known of a message's earlier attempts.

    Args:
        failures: those that count against the policy.
        attempts: all of them.
        age_s: seconds since the first one.
        journal: the failures, as stored.
    """

    failures: int = 0
    attempts: int = 0
    age_s: float = 0.0
    journal: tuple[Failure, ...] = ()


@attrs.frozen(kw_only=True)
class Fault:
    """What went wrong in an attempt, as plain data: it may come from another process.

    Args:
        kind: what the policy makes of the error's class: ``reject``, ``retry`` or ``failure``.
        text: the error in one line.
        asked_s: the delay that a Retry asks for, or None.
        where: the line that raised it, or None.
        trace: its traceback, or None.
    """

    kind: Literal["reject", "retry", "failure"]
    text: str
    asked_s: float | None = None
    where: str | None = None
    trace: str | None = None


def fault_of(error: Exception, policy: Policy) -> Fault:
    """Says what an error means under a policy."""
    return Fault(kind=_kind_of(error, policy), text=describe(error), asked_s=_asked_s(error))


def decide(fault: Fault, history: History, policy: Policy, *, max_deliver: int, rng: random.Random) -> Verdict:
    """Decides what becomes of a message whose attempt ended with a fault.

    Args:
        history: the attempts before this one.
        max_deliver: NATS_MAX_DELIVER; the policy's own number wins.
        rng: the source of jitter.
    """
    dead = Verdict(kind="dead", is_failure=True, error=fault.text, where=fault.where, trace=fault.trace)
    if fault.kind == "reject":
        return dead
    attempt = history.attempts + 1
    delay_s = policy.delay_s(attempt, rng) if fault.asked_s is None else fault.asked_s
    parked = Verdict(kind="parked", delay_s=delay_s, error=fault.text, where=fault.where)
    if fault.kind == "retry" and history.age_s < policy.retry_for_s:
        return parked
    limit = policy.max_deliver or max_deliver
    return dead if history.failures + 1 >= limit else attrs.evolve(parked, is_failure=True)


def _asked_s(error: Exception) -> float | None:
    """The delay that a Retry asks for; a subclass with an ``__init__`` of its own may have none, or a senseless one."""
    delay_s = getattr(error, "delay_s", None) if isinstance(error, Retry) else None
    if not isinstance(delay_s, int | float) or isinstance(delay_s, bool):
        return None
    return float(delay_s) if 0 <= delay_s <= DAY_S else None


def _kind_of(error: Exception, policy: Policy) -> Literal["reject", "retry", "failure"]:
    """Finds the nearest class of the error that says what it means."""
    for cls in type(error).__mro__:
        if cls is Reject or cls in policy.reject_on:
            return "reject"
        if cls is Retry or cls in policy.retry_on:
            return "retry"
    return "failure"


def describe(error: Exception) -> str:
    """An error in one line of at most 500 characters that UTF-8 can hold: its class, and what it says."""
    said = " ".join(str(error).encode("utf-8", "backslashreplace").decode().split())
    name = type(error).__name__
    return f"{name}: {said}"[:500] if said else name
