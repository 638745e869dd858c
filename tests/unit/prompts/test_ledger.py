"""The ledger: exact sums, estimates apart, and a bound that holds."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.ledger import FRAME_TOKENS, NOTHING, ModelTokens, TokenLedger, Usage, most_usage
from prompts.registry import Messages

USAGES = st.builds(Usage, prompt_tokens=st.integers(0, 10**6), completion_tokens=st.integers(0, 10**6))


def test_usage_totals_are_the_sum() -> None:
    """3 of the prompt and 4 of the answer are 7."""
    assert Usage(prompt_tokens=3, completion_tokens=4).total_tokens == 7


def test_usage_refuses_less_than_nothing() -> None:
    """A count below zero is no count."""
    with pytest.raises(ValueError, match="prompt_tokens: expected a number from 0"):
        Usage(prompt_tokens=-1)


@given(st.lists(st.tuples(st.sampled_from("ab"), USAGES, st.booleans()), max_size=30))
def test_ledger_counts_exact_calls_and_estimates_apart(calls: list[tuple[str, Usage, bool]]) -> None:
    """By model, the exact sums are those of the completed calls, whatever was estimated between them."""
    ledger = TokenLedger()
    for model, usage, is_exact in calls:
        if is_exact:
            ledger.add(model, usage)
        else:
            ledger.add_estimate(model, usage, has_begun=True)
    for model in {model for model, _, _ in calls}:
        exact = [usage for name, usage, is_exact in calls if name == model and is_exact]
        estimated = [usage for name, usage, is_exact in calls if name == model and not is_exact]
        begun = Usage(prompt_tokens=len(estimated), completion_tokens=len(estimated))
        assert ledger.facts()[model] == ModelTokens(
            calls=len(exact),
            exact=functools.reduce(Usage.plus, exact, NOTHING),
            estimated_calls=len(estimated),
            least=begun,
            most=functools.reduce(Usage.plus, estimated, NOTHING),
        )


def test_ledger_estimates_nothing_at_least_of_a_call_that_showed_nothing() -> None:
    """A call that ended before the first text may have cost nothing at all."""
    ledger = TokenLedger()
    ledger.add_estimate("a", Usage(prompt_tokens=70, completion_tokens=50), has_begun=False)
    assert ledger.facts()["a"].least == NOTHING


def test_ledger_facts_stay_as_they_were() -> None:
    """What was read does not change with later calls."""
    ledger = TokenLedger()
    facts = ledger.facts()
    ledger.add("a", NOTHING)
    assert facts == {}


@given(st.text(), st.text(), st.integers(1, 1000))
def test_most_usage_takes_each_byte_for_a_token(system: str, user: str, max_tokens: int) -> None:
    """The bound is the bytes of both messages and the frame, and the whole answer that was allowed."""
    most = most_usage(Messages(system=system, user=user), max_tokens=max_tokens)
    assert most.prompt_tokens == len((system + user).encode()) + FRAME_TOKENS
    assert most.completion_tokens == max_tokens
