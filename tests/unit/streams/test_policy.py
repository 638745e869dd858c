"""Delivery policies: their defaults, their bounds, their backoff."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import DeclarationError
from streams.policy import Policy, check_policy

NAN = float("nan")


def test_policy_default_is_the_contract() -> None:
    """A handler without a policy is tried as the documentation says."""
    policy = Policy()
    assert (policy.max_deliver, policy.backoff_s, policy.timeout_s, policy.retry_for_s) == (
        None,
        (1, 5, 30),
        30,
        86_400,
    )
    assert (policy.reject_on, policy.retry_on, policy.isolate) == ((), (), None)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"max_deliver": 1}, id="one-delivery"),
        pytest.param({"max_deliver": 1000}, id="many-deliveries"),
        pytest.param({"backoff_s": [0.001, 86_400]}, id="backoff-list"),
        pytest.param({"timeout_s": 0.01}, id="short-timeout"),
        pytest.param({"timeout_s": 3600}, id="long-timeout"),
        pytest.param({"retry_for_s": 0}, id="no-patience"),
        pytest.param({"retry_for_s": 30 * 86_400}, id="long-patience"),
        pytest.param({"reject_on": [ValueError, KeyError]}, id="error-list"),
        pytest.param({"isolate": "process"}, id="isolated"),
    ],
)
def test_policy_takes_its_bounds_and_any_sequence(fields: dict[str, Any]) -> None:
    """Bounds are included, and a list serves as well as a tuple."""
    check_policy(Policy(**fields), "here")
    for name, value in fields.items():
        assert getattr(Policy(**fields), name) == value


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        pytest.param({"isolate": "thread"}, "isolate: expected 'process' or None, got 'thread'", id="isolate"),
        pytest.param({"max_deliver": 0}, "max_deliver: expected an int .*, or None, got 0", id="no-delivery"),
        pytest.param({"max_deliver": 1001}, "max_deliver: expected an int .* got 1001", id="too-many"),
        pytest.param({"backoff_s": ()}, "backoff_s: expected one or more delays", id="no-backoff"),
        pytest.param({"backoff_s": (1, 0)}, "backoff_s: expected one or more delays above 0", id="backoff-zero"),
        pytest.param({"backoff_s": (-1,)}, "backoff_s: expected one or more delays above 0", id="backoff-negative"),
        pytest.param({"backoff_s": (86_401,)}, "backoff_s: .* up to 86400 seconds", id="backoff-beyond-a-day"),
        pytest.param({"backoff_s": (NAN,)}, "backoff_s: .*, got .nan", id="backoff-nan"),
        pytest.param({"timeout_s": 0}, "timeout_s: expected 0.01 to 3600 seconds, got 0", id="no-time"),
        pytest.param({"timeout_s": 3601}, "timeout_s: expected 0.01 to 3600 seconds, got 3601", id="too-long"),
        pytest.param({"timeout_s": NAN}, "timeout_s: expected 0.01 to 3600 seconds, got nan", id="timeout-nan"),
        pytest.param({"retry_for_s": -1}, "retry_for_s: expected 0 to ", id="negative-patience"),
        pytest.param({"retry_for_s": 30 * 86_400 + 1}, "retry_for_s: expected 0 to ", id="endless-patience"),
        pytest.param({"reject_on": ("x",)}, "reject_on: expected a tuple .*, got .'x'", id="no-class"),
        pytest.param({"retry_on": (int,)}, "retry_on: expected a tuple .*<class 'int'>", id="no-error"),
        pytest.param({"retry_on": (KeyboardInterrupt,)}, "retry_on: expected a tuple", id="not-an-exception"),
        pytest.param({"max_deliver": True}, "max_deliver: .*, got True", id="switch"),
        pytest.param({"max_deliver": "5"}, "max_deliver: .*, got '5'", id="text"),
        pytest.param({"backoff_s": 5}, "backoff_s: .*, got 5", id="one-number"),
        pytest.param({"retry_on": ValueError}, "retry_on: .*, got <class 'ValueError'>", id="one-class"),
        pytest.param({"reject_on": (KeyError,), "retry_on": (KeyError,)}, "retry_on: KeyError is in rej", id="both"),
        pytest.param({"reject_on": (ValueError(),)}, "reject_on: expected a tuple of exception", id="instance"),
    ],
)
def test_policy_refuses_what_makes_no_sense(fields: dict[str, Any], problem: str) -> None:
    """A bad field is named with its place, its value and what is accepted."""
    with pytest.raises(DeclarationError, match=f"^here: policy: {problem}"):
        check_policy(Policy(**fields), "here")


def test_policy_is_a_policy() -> None:
    """Anything else is refused."""
    with pytest.raises(DeclarationError, match="policy: expected a Policy, got 5"):
        check_policy(5, "here")  # type: ignore[arg-type]


@given(
    st.lists(st.floats(0.001, 86_400), min_size=1, max_size=5),
    st.integers(1, 20),
    st.randoms(use_true_random=False),
)
def test_policy_delay_is_its_backoff_give_or_take_a_quarter(
    backoff_s: list[float], attempt: int, rng: random.Random
) -> None:
    """The n-th attempt waits for the n-th backoff, later ones for the last, within 25 %."""
    base = (backoff_s + [backoff_s[-1]] * 20)[attempt - 1]
    delay_s = Policy(backoff_s=tuple(backoff_s)).delay_s(attempt, rng)
    assert 0.75 * base <= delay_s <= 1.25 * base + 1e-9


def test_policy_delay_is_spread_over_both_sides() -> None:
    """The jitter parts those that failed together: some come earlier, some later than the backoff."""
    rng = random.Random(7)
    delays = [Policy(backoff_s=(10.0,)).delay_s(1, rng) for _ in range(200)]
    assert min(delays) < 8.5 and max(delays) > 11.5
