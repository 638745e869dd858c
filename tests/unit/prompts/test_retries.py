"""What a refusal means, how long to wait, and that no wait goes beyond the deadline."""

import datetime as dt
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import GatewayError
from prompts.retries import RetryConfig, error_word, refusal_of, retry_after, retry_delay

CONFIG = RetryConfig(max_retries=3, base_s=0.2, limit_s=0.5)
NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
RNG = st.randoms(use_true_random=False)


@pytest.mark.parametrize(
    ("status", "reason", "may_retry"),
    [
        (301, "refused", False),
        (400, "refused", False),
        (401, "refused", False),
        (408, "timeout", False),
        (429, "rate_limited", True),
        (500, "unavailable", False),
        (502, "unavailable", True),
        (503, "unavailable", True),
        (504, "unavailable", True),
        (599, "unavailable", False),
    ],
)
def test_refusal_says_what_a_status_means(status: int, reason: str, may_retry: bool) -> None:
    """Each status has a reason, and only those that say "try again" may be tried again."""
    error = refusal_of(status, word="some_word")
    assert (error.reason, error.may_retry, error.detail) == (reason, may_retry, f"status {status}, some_word")


@given(RNG, st.integers(0, 5), st.floats(0, 20), st.none() | st.floats(0, 20), st.booleans())
def test_retry_waits_within_the_deadline(
    rng: random.Random, retries: int, left_s: float, asked_s: float | None, may_retry: bool
) -> None:
    """A pause is never shorter than asked for, nor longer than that or the limit, and ends before the deadline."""
    error = GatewayError("x", "y", may_retry=may_retry, retry_after_s=asked_s)
    delay_s = retry_delay(error, CONFIG, retries=retries, left_s=left_s, rng=rng)
    limit_s = min(0.5, 0.2 * 2**retries)
    if not may_retry or retries >= 3 or (asked_s or 0) >= left_s:
        assert delay_s is None
    elif limit_s < left_s or delay_s is not None:
        assert delay_s is not None
        assert (asked_s or 0) <= delay_s <= max(limit_s, asked_s or 0)
        assert delay_s < left_s


def test_retry_draws_its_pause_from_nothing_to_the_limit() -> None:
    """Pauses are spread over the whole of 0 to 0.2 s, so that callers who failed together do not come together."""
    rng, error = random.Random(1), GatewayError("x", "y", may_retry=True)
    pauses = [retry_delay(error, CONFIG, retries=0, left_s=9, rng=rng) or 0 for _ in range(500)]
    assert (min(pauses) < 0.01, max(pauses) > 0.19, max(pauses) <= 0.2) == (True, True, True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"Retry-After": "3"}, 3.0, id="seconds"),
        pytest.param({"Retry-After": "86400000"}, 86_400_000.0, id="a-thousand-days"),
        pytest.param({"llm_provider-retry-after": "2.5"}, 2.5, id="of-the-provider"),
        pytest.param({"Retry-After": "Sun, 01 Mar 2026 12:00:07 GMT"}, 7.0, id="date"),
        pytest.param({"Retry-After": "Sun, 01 Mar 2026 11:00:00 GMT"}, 0.0, id="past"),
        pytest.param({"Retry-After": "Sun, 01 Mar 2026 12:00:07 -0000"}, None, id="no-zone"),
        pytest.param({"Retry-After": "soon"}, None, id="no-date"),
        pytest.param({"Retry-After": "-5"}, None, id="negative"),
        pytest.param({"Retry-After": "inf"}, None, id="no-number"),
    ],
)
def test_retry_after_reads_numbers_and_dates(headers: dict[str, str], seconds: float | None) -> None:
    """Both forms of the header are understood, also as LiteLLM passes it on; anything else asks for nothing."""
    assert retry_after(headers, NOW) == seconds


@given(st.text(max_size=60))
def test_retry_after_takes_any_text(text: str) -> None:
    """No header whatsoever is an error, and no wait is below nothing."""
    assert (retry_after({"Retry-After": text}, NOW) or 0) >= 0


@pytest.mark.parametrize(
    ("body", "word"),
    [
        pytest.param(b'{"error": {"type": "no_db_connection", "message": "x"}}', "no_db_connection", id="word"),
        pytest.param(b'{"error": {"type": "key sk-123 is wrong"}}', "", id="sentence"),
        pytest.param(b'{"error": {"type": null}}', "", id="null"),
        pytest.param(b'{"error": "x"}', "", id="text"),
        pytest.param(b"[1]", "", id="list"),
        pytest.param(b"<html>", "", id="page"),
        pytest.param(b"\xff", "", id="no-text"),
        pytest.param(b"[" * 100_000, "", id="deep"),
    ],
)
def test_error_word_is_one_plain_word_or_nothing(body: bytes, word: str) -> None:
    """Of an error nothing is taken but its type, for the rest may quote keys and prompts."""
    assert error_word(body) == word
