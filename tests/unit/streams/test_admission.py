"""Which decisions are logged under pressure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.admission import LEAST_RATE, STEPS, admission_rate, is_admitted

RATES = st.sampled_from([rate for _, rate in STEPS] + [LEAST_RATE])


@pytest.mark.parametrize(
    ("fill", "rate"),
    [(0.0, 1.0), (0.49, 1.0), (0.5, 0.5), (0.7, 0.25), (0.85, 0.1), (0.95, 0.02), (1.0, 0.02), (7.0, 0.02)],
)
def test_rate_falls_as_the_fuller_of_buffer_and_spool_fills(fill: float, rate: float) -> None:
    """Everything is logged below half; beyond, the rate falls in steps, and is never nothing."""
    assert admission_rate(fill) == rate


@given(st.text(), RATES)
def test_admission_is_the_same_for_the_same_id(request_id: str, rate: float) -> None:
    """A retry is logged as the first request was, and at the full rate everything is."""
    assert is_admitted(request_id, rate) == is_admitted(request_id, rate)
    assert is_admitted(request_id, 1.0)


@given(st.text(), RATES, RATES)
def test_what_a_low_rate_admits_a_higher_one_admits_too(request_id: str, one: float, other: float) -> None:
    """The sample of a low rate is part of that of a higher one."""
    assert is_admitted(request_id, max(one, other)) or not is_admitted(request_id, min(one, other))


@given(st.text(alphabet="abcdef0123456789-", max_size=40), RATES)
def test_share_of_admitted_ids_is_close_to_the_rate(prefix: str, rate: float) -> None:
    """Of 5,000 ids that differ in a number alone the share is the rate, within four points."""
    share = sum(is_admitted(f"{prefix}{number}", rate) for number in range(5000)) / 5000
    assert abs(share - rate) < 0.04  # the standard deviation of 5,000 draws at 0.5 is 0.007
