"""Subject patterns as NATS matches them: ``*`` stands for one token, a final ``>`` for one or more."""

import re
from collections.abc import Iterable

from models.errors import DeclarationError

_TOKEN = re.compile(r"[^\s.*>\x00-\x1f\x7f]+")


def check_pattern(pattern: str, where: str) -> None:
    """Refuses what NATS would not take as a subject to subscribe to.

    Raises:
        DeclarationError: naming the pattern and what is accepted.
    """
    tokens = pattern.split(".")
    for place, token in enumerate(tokens):
        is_last = place == len(tokens) - 1
        if not (token == "*" or (token == ">" and is_last) or _TOKEN.fullmatch(token)):
            raise DeclarationError(
                where,
                f"subject: expected tokens parted by dots, '*' for one and a final '>' for the rest, got {pattern!r}",
            )


def is_subject(text: str) -> bool:
    """Whether a message can be published on ``text``: tokens without blanks, ``*`` or ``>``."""
    return all(_TOKEN.fullmatch(token) for token in text.split("."))


def matches(pattern: str, subject: str) -> bool:
    """Whether a message on ``subject`` is delivered to a subscription on ``pattern``."""
    wanted, found = pattern.split("."), subject.split(".")
    for place, token in enumerate(wanted):
        if token == ">":
            return len(found) > place
        if place >= len(found) or token not in ("*", found[place]):
            return False
    return len(wanted) == len(found)


def overlap(one: str, other: str) -> bool:
    """Whether some subject matches both patterns."""
    left, right = one.split("."), other.split(".")
    for a, b in zip(left, right, strict=False):
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(left) == len(right)


def covers(pattern: str, other: str) -> bool:
    """Whether every subject that matches ``other`` matches ``pattern`` too."""
    wanted, given = pattern.split("."), other.split(".")
    for place, token in enumerate(wanted):
        if token == ">":
            return len(given) > place
        if place >= len(given) or given[place] == ">" or (token != "*" and token != given[place]):
            return False
    return len(wanted) == len(given)


def as_filter(patterns: Iterable[str]) -> list[str]:
    """The patterns as one consumer's filter, of which the server wants that none overlap.

    What another one covers is left out; empty, which stands for every subject, where two match some subjects in common.
    """
    every = sorted(set(patterns))
    found = [one for one in every if not any(covers(other, one) for other in every if other != one)]
    is_apart = not any(overlap(one, other) for place, one in enumerate(found) for other in found[:place])
    return found if is_apart else []
