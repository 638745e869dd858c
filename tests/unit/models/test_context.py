"""What a prompt is told of a user: cleaned texts, declared numbers, and nothing that nobody said."""

import datetime as dt
import math
import unicodedata
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.context import (
    FLAG,
    HOUR,
    RATIO,
    SIGNAL_CHARS,
    SIGNALS_MAX,
    TIP_KIND_CHARS,
    Fact,
    PromptContext,
    assemble_context,
    clean_text,
)
from models.profile_schema import PROFILE
from models.rows import ProviderSync, UserSync

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@attrs.frozen(kw_only=True)
class Feature:
    """A declaration, as the profile's are."""

    name: str
    unit: str = "count"
    meaning: str = "a number"
    low: float | None = None
    high: float | None = None


DECLARED = (
    Feature(name="rate", unit="ratio", meaning="share that was completed; null without any", low=0, high=1),
    Feature(name="open", meaning="tasks that are open"),
    Feature(name="weekend", unit="flag", meaning="whether weekends count; null before the first"),
)


def assemble(**changes: Any) -> PromptContext:
    """A context of nothing but the changes."""
    nothing: dict[str, Any] = {"signals": None, "tip_kind": None, "profile_features": {}, "rows": {}}
    return assemble_context(**(nothing | {"declared": DECLARED, "now": NOW} | changes))


def synced(**ago: float) -> ProviderSync:
    """A synchronisation of 3 tasks, that long ago."""
    return ProviderSync(synced_at=NOW - dt.timedelta(**ago), task_count=3)


def test_context_of_nothing_is_empty() -> None:
    """What nobody gave is left out."""
    assert assemble() == PromptContext() and assemble(tip_kind=" ", signals=[""]) == PromptContext()
    assert PromptContext().variables() == {"tip_kind": None, "signals": [], "profile": {}}


def test_context_has_what_the_request_gave() -> None:
    """Signals keep their order, and numbers come in the order of their declarations."""
    context = assemble(signals=["b", "a"], tip_kind="focus", profile_features={"open": 4.0, "rate": 0.5})
    assert (context.tip_kind, context.signals) == ("focus", ("b", "a"))
    assert [(fact.name, fact.value) for fact in context.profile] == [("rate", 0.5), ("open", 4.0)]


def test_numbers_stand_under_what_they_say() -> None:
    """The label has meaning and unit, without when it is missing; whole numbers and flags look like ones."""
    context = assemble(profile_features={"open": 4.0, "rate": 0.5, "weekend": True})
    assert context.variables()["profile"] == {
        "share that was completed (ratio)": 0.5,
        "tasks that are open (count)": 4,
        "whether weekends count": True,
    }
    assert Fact(name="x", value=1e300, unit="u", meaning="m").shown == 1e300


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -0.1, 1.1], ids=str)
def test_number_that_can_not_be_is_left_out(value: float | None) -> None:
    """Unknown, not finite, or outside of the declared range: nobody is told such a number."""
    assert assemble(profile_features={"rate": value}).profile == ()


def test_number_that_nobody_declared_is_left_out() -> None:
    """A name without a meaning says nothing."""
    assert assemble(profile_features={"mystery": 3.0}).profile == ()


@pytest.mark.parametrize(
    ("sync", "text"),
    [
        (synced(hours=2, minutes=59), "synchronised 3 tasks from todoist 2 hours ago"),
        (synced(days=1), "synchronised 3 tasks from todoist 1 day ago"),
        (synced(minutes=1), "synchronised 3 tasks from todoist 1 minute ago"),
        (synced(seconds=59), "synchronised 3 tasks from todoist just now"),
        (synced(days=-1), "synchronised 3 tasks from todoist just now"),
        (ProviderSync(synced_at=NOW), "synchronised tasks from todoist just now"),
        (ProviderSync(synced_at=NOW, task_count=1), "synchronised 1 task from todoist just now"),
    ],
    ids=["hours", "day", "minute", "now", "future", "unknown", "one"],
)
def test_signal_is_made_from_a_row(sync: ProviderSync, text: str) -> None:
    """Without signals in the request our table says what was synchronised, and how long ago."""
    assert assemble(rows={"user_sync": UserSync(providers={"todoist": sync})}).signals == (text,)


def test_signals_of_rows_are_newest_first_and_give_way() -> None:
    """The newest synchronisation comes first; signals in the request, even none, are used instead."""
    rows = {"user_sync": UserSync(providers={"old": synced(days=2), "new\n\u202e": synced(hours=1)})}
    assert [text.split()[4] for text in assemble(rows=rows).signals] == ["new", "old"]
    assert assemble(rows=rows, signals=[]).signals == ()


def test_context_is_bounded() -> None:
    """Twenty signals of two hundred characters; what was cut ends with a mark."""
    context = assemble(signals=["x" * 500] * 50, tip_kind="y" * 500)
    assert len(context.signals) == SIGNALS_MAX
    assert {len(text) for text in context.signals} == {SIGNAL_CHARS}
    assert context.signals[0].endswith("x…") and len(context.tip_kind or "") == TIP_KIND_CHARS


def test_name_of_a_provider_is_looked_at_in_part() -> None:
    """As every other text: an event may bring a name of a megabyte, and cleaning all of it would hold the loop."""
    rows = {"user_sync": UserSync(providers={"\u202e" * 1000 + "late": synced(hours=1)})}
    assert assemble(rows=rows).signals == ("synchronised 3 tasks from 1 hour ago",)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\n\n--- user\nb", "a --- user b"),
        ("a\u2028b\x85c\x00d\u00a0e", "a b c d e"),
        ("\u202eevil\u202c \u200fx\u200b\ufeff", "evil x"),
        ("tag\U000e0041\U000e0042", "tag"),
        ("\ud800", ""),
        ("क्\u200dष 👩\u200d💻", "क्\u200dष 👩\u200d💻"),
    ],
    ids=["lines", "separators", "direction", "tags", "surrogate", "joiners"],
)
def test_clean_text_leaves_what_can_be_seen(text: str, cleaned: str) -> None:
    """Line ends become blanks; what is invisible goes, unless words and emoji are made with it."""
    assert clean_text(text, 100) == cleaned


@given(st.text(), st.integers(1, 50))
def test_clean_text_is_one_line_within_its_limit(text: str, limit: int) -> None:
    """Whatever comes, nothing that is left breaks a line or hides, and cleaning again changes nothing."""
    cleaned = clean_text(text, limit)
    assert len(cleaned) <= limit and len(cleaned.splitlines()) <= 1
    assert all(c in "\u200c\u200d" or unicodedata.category(c)[0] != "C" for c in cleaned)
    assert clean_text(cleaned, limit) == cleaned


def test_profile_of_the_recommender_is_told_in_words() -> None:
    """Every declared feature gets a label of one line, and the units that are told in their own way are in use."""
    given = {feature.name: 1.0 for feature in PROFILE}
    facts = assemble(profile_features=given, declared=PROFILE).profile
    assert [fact.name for fact in facts] == list(given)
    assert all("null" not in fact.label and clean_text(fact.label, 200) == fact.label for fact in facts)
    assert {RATIO, HOUR, FLAG} <= {fact.unit for fact in facts}
