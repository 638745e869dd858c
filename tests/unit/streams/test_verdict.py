"""The decision what becomes of a message, for all errors, histories and policies."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import PayloadError, Reject, Retry
from streams.policy import Policy
from streams.verdict import APPLIED, History, Verdict, decide, describe, fault_of


class Base(Exception):
    pass


class Middle(Base):
    pass


class Leaf(Middle):
    pass


class RetryLater(Retry):
    pass


CHAIN: tuple[type[Exception], ...] = (Leaf, Middle, Base)
HISTORIES = st.builds(History, failures=st.integers(0, 30), attempts=st.integers(0, 30), age_s=st.floats(0, 200_000))
POLICIES = st.builds(
    Policy,
    max_deliver=st.none() | st.integers(1, 20),
    backoff_s=st.lists(st.floats(0.01, 1000), min_size=1, max_size=4),
    retry_for_s=st.floats(0, 86_400),
)
RNG = st.randoms(use_true_random=False)
LIMIT = 5


def _decide(error: Exception, history: History, policy: Policy, rng: random.Random | None = None) -> Verdict:
    return decide(fault_of(error, policy), history, policy, max_deliver=LIMIT, rng=rng or random.Random(1))


def test_verdict_of_success_is_no_failure() -> None:
    """What is applied counts nothing and waits for nothing."""
    assert Verdict(kind="applied", delay_s=0, is_failure=False, error=None) == APPLIED


@given(st.sampled_from([Reject("no"), PayloadError("a: missing")]), HISTORIES, POLICIES)
def test_reject_is_always_dead(error: Exception, history: History, policy: Policy) -> None:
    """A rejected message is a dead letter at once, with its reason."""
    verdict = _decide(error, history, policy)
    assert verdict == Verdict(kind="dead", is_failure=True, error=describe(error))


@given(HISTORIES, POLICIES, RNG, st.sampled_from([Retry("down"), RetryLater("down")]))
def test_retry_counts_only_after_its_time(history: History, policy: Policy, rng: random.Random, error: Retry) -> None:
    """Before retry_for_s a retry is parked and counts nothing; from then on it counts as any failure."""
    verdict = _decide(error, history, policy, rng)
    if history.age_s < policy.retry_for_s:
        assert (verdict.kind, verdict.is_failure) == ("parked", False)
    else:
        assert verdict.is_failure
        assert verdict.kind == _decide(Base(), history, policy).kind


@given(HISTORIES, POLICIES)
def test_failure_is_dead_exactly_at_the_limit(history: History, policy: Policy) -> None:
    """The failure that makes the count full is the last one; the policy's own number wins over the setting's."""
    verdict = _decide(Base("x"), history, policy)
    limit = LIMIT if policy.max_deliver is None else policy.max_deliver
    assert verdict.kind == ("dead" if history.failures + 1 >= limit else "parked")
    assert (verdict.is_failure, verdict.error) == (True, "Base: x")


@given(st.integers(1, 20), POLICIES)
def test_failure_gets_exactly_max_deliver_attempts(limit: int, policy: Policy) -> None:
    """A handler that always fails runs max_deliver times."""
    kinds: list[str] = []
    while not kinds or kinds[-1] == "parked":
        history = History(failures=len(kinds), attempts=len(kinds))
        verdict = decide(
            fault_of(Base(), Policy()), history, Policy(max_deliver=limit), max_deliver=1, rng=random.Random(1)
        )
        kinds.append(verdict.kind)
    assert kinds == ["parked"] * (limit - 1) + ["dead"]


@given(HISTORIES, POLICIES, RNG, st.sampled_from([Base(), Retry("down")]))
def test_parked_waits_for_its_backoff(history: History, policy: Policy, rng: random.Random, error: Exception) -> None:
    """A parked message waits for the backoff of its attempts, retries included, within 25 %; a dead one for nothing."""
    verdict = _decide(error, history, policy, rng)
    base = policy.backoff_s[min(history.attempts, len(policy.backoff_s) - 1)]
    if verdict.kind == "parked":
        assert 0.75 * base <= verdict.delay_s <= 1.25 * base + 1e-9
    else:
        assert verdict.delay_s == 0


@pytest.mark.parametrize("error", [Base(), Retry("down")], ids=["failure", "retry"])
@pytest.mark.parametrize(("attempts", "base"), [(0, 1), (1, 10), (2, 100), (3, 100)])
def test_backoff_follows_attempts_not_failures(error: Exception, attempts: int, base: float) -> None:
    """Every run counts for the backoff, those that were no failures too."""
    verdict = _decide(error, History(failures=0, attempts=attempts), Policy(backoff_s=(1, 10, 100)))
    assert 0.75 * base <= verdict.delay_s <= 1.25 * base


@given(st.floats(0, 86_400), HISTORIES)
def test_retry_waits_as_long_as_it_asks_for(delay_s: float, history: History) -> None:
    """A delay that the handler names is taken as it is, zero too, while its time lasts and after."""
    verdict = _decide(Retry("down", delay_s), history, Policy(max_deliver=1000))
    assert (verdict.kind, verdict.delay_s) == ("parked", delay_s)


@given(
    st.lists(st.sampled_from(["reject", "retry", None]), min_size=len(CHAIN), max_size=len(CHAIN)),
    st.sampled_from(range(len(CHAIN))),
)
def test_nearest_class_decides(meanings: list[str | None], raised: int) -> None:
    """Of the classes of an error, the first in its resolution order that the policy names says what it means."""
    policy = Policy(
        max_deliver=1000,
        reject_on=tuple(cls for cls, meaning in zip(CHAIN, meanings, strict=True) if meaning == "reject"),
        retry_on=tuple(cls for cls, meaning in zip(CHAIN, meanings, strict=True) if meaning == "retry"),
    )
    nearest = next((meaning for meaning in meanings[raised:] if meaning), None)
    expected = {"reject": ("dead", True), "retry": ("parked", False), None: ("parked", True)}[nearest]
    verdict = _decide(CHAIN[raised](), History(), policy)
    assert (verdict.kind, verdict.is_failure) == expected


@pytest.mark.parametrize(
    ("error", "fields", "kind"),
    [
        pytest.param(RetryLater("x"), {"reject_on": [Retry]}, "dead", id="retry-made-final"),
        pytest.param(RetryLater("x"), {"reject_on": [RetryLater]}, "dead", id="own-class-first"),
        pytest.param(RetryLater("x"), {"reject_on": [Exception]}, "parked", id="farther-class-last"),
        pytest.param(PayloadError("x"), {"retry_on": [PayloadError]}, "parked", id="reject-made-patient"),
        pytest.param(PayloadError("x"), {"retry_on": [Exception]}, "dead", id="reject-nearer"),
        pytest.param(Base(), {"retry_on": [Base], "reject_on": [Base]}, "dead", id="reject-wins-a-tie"),
    ],
)
def test_policy_may_overrule_retry_and_reject(error: Exception, fields: dict[str, list[type]], kind: str) -> None:
    """A class that the policy names counts before the meaning of its parents, and reject before retry."""
    assert _decide(error, History(), Policy(**fields)).kind == kind  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        pytest.param(ValueError("bad"), "ValueError: bad", id="plain"),
        pytest.param(ValueError(), "ValueError", id="says-nothing"),
        pytest.param(ValueError(" \n "), "ValueError", id="blank"),
        pytest.param(ValueError("a\nb\t\tc"), "ValueError: a b c", id="lines"),
        pytest.param(KeyError("k"), "KeyError: 'k'", id="key-error"),
        pytest.param(ValueError("\ud800 ü"), "ValueError: \\ud800 ü", id="lone-surrogate"),
    ],
)
def test_describe_is_one_line(error: Exception, text: str) -> None:
    """An error becomes its class and its words in one line that any store can hold."""
    assert describe(error) == text


@given(st.text(st.characters(), max_size=700))
def test_describe_is_bounded_text(words: str) -> None:
    """Whatever an error says, the text has at most 500 characters, no line end, and is valid UTF-8."""
    text = describe(ValueError(words))
    assert len(text.encode()) and len(text) <= 500 and len(text.splitlines()) == 1


class RateLimited(Retry):
    """A plugin's own Retry, which does not call its parent."""

    def __init__(self, delay_s: object = None) -> None:
        if delay_s is not None:
            self.delay_s = delay_s  # type: ignore[assignment]


@pytest.mark.parametrize("delay_s", [None, "soon", -1, True, float("nan")], ids=repr)
def test_retry_of_a_class_of_its_own_takes_the_backoff(delay_s: object) -> None:
    """A subclass without a sensible delay waits as the policy says, instead of ending the worker."""
    policy = Policy(backoff_s=(4,))
    verdict = decide(fault_of(RateLimited(delay_s), policy), History(), policy, max_deliver=5, rng=random.Random(1))
    assert (verdict.kind, verdict.is_failure) == ("parked", False)
    assert 3 <= verdict.delay_s <= 5  # 4 s, give or take a quarter
