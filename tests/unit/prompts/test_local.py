"""Tips made without a model: chosen by the context, and never failing a check."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.context import Fact, PromptContext
from models.profile_schema import PROFILE
from prompts.checks import Checked, check_tip
from prompts.local import MOST, SHORTEST, TEXTS, TOPICS, local_tip
from prompts.registry import MIN_CHARS, SHIPPED, Limits, load_variants

LIMITS = Limits(max_chars=240, max_lines=1)
NAMES = sorted({text.number for text in TEXTS if text.number})
UNITS = st.sampled_from(["count", "ratio", "hour", "days", "flag"])
FACTS = st.builds(
    Fact, name=st.sampled_from([*NAMES, "x"]), value=st.floats(allow_nan=False), unit=UNITS, meaning=st.text()
)
CONTEXTS = st.builds(
    PromptContext,
    tip_kind=st.none() | st.text() | st.sampled_from([word for words in TOPICS.values() for word in words]),
    signals=st.lists(st.text(), max_size=3).map(tuple),
    profile=st.lists(FACTS, max_size=4).map(tuple),
)


def fact(name: str, value: float) -> Fact:
    """A count."""
    return Fact(name=name, value=value, unit="count", meaning="a number")


@given(CONTEXTS, st.integers(MIN_CHARS, 300))
def test_local_tip_passes_every_check(context: PromptContext, max_chars: int) -> None:
    """With any context, and the tightest limits that a variant can have, the tip passes as it is."""
    limits = Limits(max_chars=max_chars, max_lines=1)
    tip = local_tip(context, limits=limits)
    assert check_tip(tip, limits=limits, context=context) == Checked(text=tip)


@given(CONTEXTS)
def test_local_tip_passes_for_shipped_variants(context: PromptContext) -> None:
    """Each variant that ships takes it, and the same context makes the same tip."""
    for variant in VARIANTS.values():
        tip = local_tip(context, limits=variant.limits)
        assert check_tip(tip, limits=variant.limits, context=context) == Checked(text=tip)
        assert local_tip(context, limits=variant.limits) == tip


VARIANTS = load_variants([Path(SHIPPED)])


@pytest.mark.parametrize("name", NAMES)
def test_local_tip_names_a_known_number(name: str) -> None:
    """A number of the profile that a text speaks of is told, as a person writes it."""
    for value in (2, 1234, MOST):
        assert f"{value:,} " in local_tip(PromptContext(profile=(fact(name, value),)), limits=LIMITS)


@pytest.mark.parametrize("value", [0, 1, 2.5, -3, 1e300, MOST + 1])
def test_local_tip_names_no_odd_number(value: float) -> None:
    """Nothing, one, parts, and more than anybody counts are not told."""
    tip = local_tip(PromptContext(profile=(fact("open_task_count", value),)), limits=LIMITS)
    assert not any(character.isdigit() for character in tip)


@pytest.mark.parametrize("topic", TOPICS)
def test_local_tip_is_about_what_was_asked(topic: str) -> None:
    """Each word of a topic leads to one of its texts."""
    texts = {text.text for text in TEXTS if text.topic == topic}
    assert {local_tip(PromptContext(tip_kind=word.upper()), limits=LIMITS) for word in TOPICS[topic]} <= texts


def test_local_tips_differ() -> None:
    """Users of whom different things are known get different tips."""
    tips = {local_tip(PromptContext(signals=(str(n),)), limits=LIMITS) for n in range(200)}
    assert len(tips) == sum(text.number is None for text in TEXTS)


def test_local_tip_has_a_shortest() -> None:
    """Where no other text fits, one still does."""
    assert local_tip(PromptContext(), limits=Limits(max_chars=MIN_CHARS)) == SHORTEST


def test_local_tips_read_declared_features() -> None:
    """A number that a text wants is one that the recommender sends."""
    assert set(NAMES) <= {feature.name for feature in PROFILE}
