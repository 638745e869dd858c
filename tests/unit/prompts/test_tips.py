"""What a tip takes, what it refuses and why, and how it counts what models took."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.context import PromptContext
from models.errors import GatewayError
from prompts.answers import Completion
from prompts.attempts import FREE
from prompts.checks import check_tip
from prompts.ledger import NOTHING, Usage
from prompts.registry import SHIPPED, load_variants
from prompts.tips import Tip

V1 = load_variants([SHIPPED])["v1"]
GOOD = "Pick one small task and finish it today."
TOOK = Usage(prompt_tokens=11, completion_tokens=7)
MOST = Usage(prompt_tokens=900, completion_tokens=120)


def tip_of() -> Tip:
    """A tip of v1, for a user of whom nothing is known."""
    return Tip(variant=V1, context=PromptContext(), deadline=0)


def completion(text: str, *, is_cut: bool = False) -> Completion:
    """What model "m" says."""
    return Completion(text=text, model="m", usage=TOOK, cost_usd=None, is_cut=is_cut)


def test_tip_takes_a_text_that_may_be_shown() -> None:
    """Repaired where that is safe; model and fallback are those it was taken from."""
    tip = tip_of()
    assert tip.take(completion(f"**{GOOD}**"), "model")
    assert (tip.text, tip.model, tip.fallback, tip.usage) == (GOOD, "m", "model", TOOK)
    assert (tip.degraded_reason, tip.failed_checks) == (None, [])


def test_tip_refuses_a_text_by_the_names_of_its_checks() -> None:
    """What it took counts all the same; each name stands once, each refusal has a reason of its own."""
    tip = tip_of()
    assert not tip.take(completion("See https://example.org at 9:00."), "none")
    assert not tip.take(completion("Do 3 tasks."), "model")
    assert (tip.text, tip.failed_checks) == ("", ["link", "numbers"])
    assert tip.degraded_reason == "failed_checks:link+numbers, failed_checks:numbers"
    assert tip.usage == Usage(prompt_tokens=22, completion_tokens=14)  # 2 * 11, 2 * 7


@pytest.mark.parametrize(
    ("text", "is_cut", "is_taken"),
    [
        pytest.param("Start with the", True, False, id="cut"),
        pytest.param("Start with the first one.", True, True, id="cut-after-a-sentence"),
        pytest.param("Start with the first one", False, True, id="as-the-model-ended-it"),
    ],
)
def test_tip_refuses_a_text_that_was_cut_within_a_sentence(text: str, is_cut: bool, is_taken: bool) -> None:
    """A model that ran into its limit is believed as far as it has ended a sentence."""
    tip = tip_of()
    assert tip.take(completion(text, is_cut=is_cut), "none") == is_taken
    assert tip.failed_checks == ([] if is_taken else ["unfinished"])


@pytest.mark.parametrize("reason", [*sorted(FREE), "timeout", "cut", "bad_answer", "unavailable"])
def test_tip_bounds_what_a_failed_call_took(reason: str) -> None:
    """Unless no model can have worked for it."""
    tip = tip_of()
    tip.fail(GatewayError(reason, "a detail"), MOST)
    expected = (None, False) if reason in FREE else (MOST, True)
    assert (tip.usage, tip.usage_estimated, tip.degraded_reason) == (*expected, reason)


def test_tip_takes_the_local_tip_in_the_place_of_all() -> None:
    """It passes the checks; what the models took still counts, and nothing of it is said to be kept from others."""
    tip = tip_of()
    tip.take(completion("Do 3 tasks."), "none")
    tip.take_local()
    assert check_tip(tip.text, limits=V1.limits, context=tip.context).failed == ()
    assert (tip.model, tip.fallback, tip.cached, tip.usage) == ("local", "template", False, TOOK)


COSTS = st.none() | st.floats(0, 10)
CALLS = st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6), st.booleans(), COSTS), max_size=6)


@given(CALLS)
def test_tip_sums_up_whatever_models_took(calls: list[tuple[int, int, bool, float | None]]) -> None:
    """Tokens are exact sums; one estimate makes it all one; costs that are not known add nothing."""
    tip = tip_of()
    for prompt, answer, is_estimated, cost_usd in calls:
        usage = Usage(prompt_tokens=prompt, completion_tokens=answer)
        tip.spend(usage, is_estimated=is_estimated, cost_usd=cost_usd)
    costs = [call[3] for call in calls if call[3] is not None]
    assert (tip.usage or NOTHING).total_tokens == sum(call[0] + call[1] for call in calls)
    assert (tip.usage is None, tip.usage_estimated) == (not calls, any(call[2] for call in calls))
    assert tip.cost_usd == (pytest.approx(sum(costs)) if costs else None)
