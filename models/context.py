"""What a prompt is told of a user: short texts of what happened lately, and numbers with their meaning.

The assembler takes what a request and our tables hold at one instant and makes a ``PromptContext``. What is missing is
left out and never invented: a number that nobody gave, that is not finite, that nobody declared or that lies outside
its declared range does not appear. The declarations are those of the scorer, so a name means the same in both.

Text of users and other teams is data. It is cleaned here (one line, no control, no invisible character, bounded), and
printed by a filter that quotes it (prompts/registry.py); either alone keeps it in its place. Nothing is read or sent
from here; the templates, and the checks of what a model makes of them (prompts/checks.py), are the next step.
"""

import datetime as dt
import itertools
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import attrs

from models.rows import ProviderSync, UserSync

SIGNALS_MAX = 20
SIGNAL_CHARS = 200
TIP_KIND_CHARS = 80
PROVIDER_CHARS = 40
LOOKED_AT = 10
"""How many times what is kept is looked at, of texts and of their characters."""
CUT_MARK = "…"

VARIABLES = ("tip_kind", "signals", "profile")
"""What a template may use."""

RATIO, HOUR, FLAG = "ratio", "hour", "flag"
"""Units that are told in their own way: a share of 1, an hour of the day, and yes or no."""

_JOINERS = frozenset("\u200c\u200d")
"""Invisible, and part of words and emoji in several scripts."""


class Declared(Protocol):
    """A number's declaration; both the profile's and the scorer's features are ones."""

    @property
    def name(self) -> str:
        """Its name in the request."""

    @property
    def unit(self) -> str:
        """What it counts or measures."""

    @property
    def meaning(self) -> str:
        """What it says of the user."""

    @property
    def low(self) -> float | None:
        """The least value it can have."""

    @property
    def high(self) -> float | None:
        """The greatest value it can have."""


@attrs.frozen(kw_only=True)
class Fact:
    """A number about the user, as it was declared."""

    name: str
    value: float
    unit: str
    meaning: str

    @property
    def label(self) -> str:
        """What the number is, for a reader who knows none of our names."""
        meaning = self.meaning.partition(";")[0]  # after it stands when the number is missing, which it is not
        return meaning if self.unit == FLAG else f"{meaning} ({self.unit})"

    @property
    def shown(self) -> float | int | bool:
        """The value as a person writes it: whole numbers without decimals, a flag as true or false."""
        if self.unit == FLAG:
            return bool(self.value)
        is_whole = float(self.value).is_integer() and abs(self.value) < 2**53
        return int(self.value) if is_whole else self.value


@attrs.frozen(kw_only=True)
class PromptContext:
    """All that a prompt may say of one user at one instant.

    Args:
        tip_kind: what the tip is to be about; None leaves it open.
        signals: at most ``SIGNALS_MAX`` texts of one line, the newest first.
        profile: the known numbers, in the order of their declarations.
    """

    tip_kind: str | None = None
    signals: tuple[str, ...] = ()
    profile: tuple[Fact, ...] = ()

    def variables(self) -> dict[str, object]:
        """What the templates are filled with; each number stands under its label."""
        profile = {fact.label: fact.shown for fact in self.profile}
        return dict(zip(VARIABLES, (self.tip_kind, list(self.signals), profile), strict=True))


def assemble_context(
    *,
    signals: Sequence[str] | None,
    tip_kind: str | None,
    profile_features: Mapping[str, float | None],
    declared: Iterable[Declared],
    rows: Mapping[str, object],
    now: dt.datetime,
) -> PromptContext:
    """Makes the context of one request.

    Args:
        signals: those of the request, the newest first; None takes what our tables know instead.
        profile_features: numbers by name, None for one that is not known.
        declared: the names that mean something, in the order in which they are told.
        rows: the user's committed rows, by table; ``user_sync`` is used.
        now: the instant of the request, in UTC.
    """
    given = _row_signals(rows, now) if signals is None else signals
    cleaned = (_cleaned(text, SIGNAL_CHARS) for text in itertools.islice(given, LOOKED_AT * SIGNALS_MAX))
    return PromptContext(
        tip_kind=_cleaned(tip_kind or "", TIP_KIND_CHARS) or None,
        signals=tuple(itertools.islice((text for text in cleaned if text), SIGNALS_MAX)),
        profile=tuple(_facts(profile_features, declared)),
    )


def _cleaned(text: str, limit: int) -> str:
    """Cleans the beginning of a text, which may be as long as a body: cleaning all of it would hold the event loop."""
    return clean_text(text[: LOOKED_AT * limit], limit)


def clean_text(text: str, limit: int) -> str:
    """Puts a text on one line without anything that can't be seen, and cuts it at ``limit`` characters with a mark."""
    seen = " ".join("".join(map(_visible, text)).split())
    return seen if len(seen) <= limit else seen[: limit - 1].rstrip() + CUT_MARK


def _visible(character: str) -> str:
    """The character, a blank for one that ends or breaks a line, or nothing for one that only changes others."""
    if character.isprintable():
        return character
    kind = unicodedata.category(character)
    if kind == "Cf":  # direction marks, invisible tags and the like
        return character if character in _JOINERS else ""
    return " "


def _facts(given: Mapping[str, float | None], declared: Iterable[Declared]) -> Iterable[Fact]:
    for feature in declared:
        value = given.get(feature.name)
        if value is None or not math.isfinite(value):
            continue
        if (feature.low is not None and value < feature.low) or (feature.high is not None and value > feature.high):
            continue
        yield Fact(name=feature.name, value=float(value), unit=feature.unit, meaning=feature.meaning)


def _row_signals(rows: Mapping[str, object], now: dt.datetime) -> Iterator[str]:
    """What our tables say that the user did, the newest first."""
    row = rows.get("user_sync")
    if isinstance(row, UserSync):
        newest = sorted(row.providers.items(), key=lambda item: (item[1].synced_at, item[0]), reverse=True)
        yield from (_synchronised(_cleaned(provider, PROVIDER_CHARS), sync, now) for provider, sync in newest)


def _synchronised(provider: str, sync: ProviderSync, now: dt.datetime) -> str:
    tasks = "tasks" if sync.task_count is None else _counted(sync.task_count, "task")
    return f"synchronised {tasks} from {provider} {_ago(now, sync.synced_at)}"


def _ago(now: dt.datetime, then: dt.datetime) -> str:
    """How long ago, in the largest unit of which a whole one has passed; clocks that differ make it just now."""
    passed_s = (now - then).total_seconds()
    for unit, unit_s in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if passed_s >= unit_s:
            return f"{_counted(int(passed_s // unit_s), unit)} ago"
    return "just now"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
