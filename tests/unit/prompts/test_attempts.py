"""How attempts end: what the breaker and the ledger hear of each, once."""

import logging

import pytest

from models.errors import GatewayError
from prompts.attempts import FREE, Attempts, Call
from prompts.breaker import BreakerConfig
from prompts.ledger import NOTHING, ModelTokens, TokenLedger, Usage
from prompts.shared import Deadline

MOST = Usage(prompt_tokens=70, completion_tokens=50)
USAGE = Usage(prompt_tokens=5, completion_tokens=3)
CALL = Call(model="m", body=b"", key="k", most=MOST)
LATER = Deadline(1000)


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def made(**breaker: float) -> tuple[Attempts, Clock]:
    """Attempts at a standstill, with a breaker that opens at the second failure in a row."""
    clock = Clock()
    return Attempts(BreakerConfig(failures_in_row=2, **breaker), TokenLedger(), clock), clock


def tokens(attempts: Attempts) -> ModelTokens:
    """What the ledger knows of the model."""
    return attempts.ledger.facts().get("m", ModelTokens())


def fail(attempts: Attempts, reason: str) -> None:
    """An attempt that raises within its context."""
    with pytest.raises(GatewayError), attempts.begin(CALL, LATER):
        raise GatewayError(reason, "x")


def test_attempt_that_succeeds_is_exact() -> None:
    """A known usage is counted as it is, and the end of the context adds nothing to it."""
    attempts, _ = made()
    with attempts.begin(CALL, LATER) as attempt:
        attempt.succeed(USAGE)
        attempt.succeed(USAGE)
    assert tokens(attempts) == ModelTokens(calls=1, exact=USAGE)


def test_attempt_that_succeeds_without_usage_is_an_estimate() -> None:
    """An answer that was not counted cost at least a token each way, and at most the bound."""
    attempts, _ = made()
    with attempts.begin(CALL, LATER) as attempt:
        attempt.succeed(None)
    least = Usage(prompt_tokens=1, completion_tokens=1)
    assert tokens(attempts) == ModelTokens(estimated_calls=1, least=least, most=MOST)


@pytest.mark.parametrize("reason", ["timeout", "unavailable", "bad_answer", "cut", *sorted(FREE)])
def test_attempt_that_fails_is_an_estimate_unless_no_model_worked(reason: str) -> None:
    """What may have reached a model counts up to its bound; what surely did not is free."""
    attempts, _ = made()
    fail(attempts, reason)
    assert tokens(attempts).most == (NOTHING if reason in FREE else MOST)


def test_attempts_stop_after_failures_and_start_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """Two failures in a row leave the model alone, with one line in the log, and others are asked as before."""
    attempts, clock = made(open_s=10)
    with caplog.at_level(logging.WARNING):
        fail(attempts, "timeout")
        fail(attempts, "cut")
    with pytest.raises(GatewayError, match="open"):
        attempts.begin(CALL, LATER)
    assert attempts.open_models() == ("m",)
    assert [record.__dict__["fields"]["reason"] for record in caplog.records] == ["cut"]
    with attempts.begin(Call(model="other", body=b"", key="k", most=MOST), LATER) as other:
        other.succeed(USAGE)
    clock.now = 10
    with attempts.begin(CALL, LATER) as attempt:
        attempt.succeed(USAGE)
    assert attempts.open_models() == ()


def test_attempt_that_is_refused_is_no_failure_of_the_gateway() -> None:
    """A gateway that says no is well: its model isn't left alone."""
    attempts, _ = made()
    for _ in range(5):
        fail(attempts, "refused")
    assert attempts.open_models() == ()


def test_attempts_tell_of_a_gateway_that_refuses(caplog: pytest.LogCaptureFixture) -> None:
    """The first refusal is logged, several in a row are a state, and an answer ends it: a wrong key is never silent."""
    attempts, _ = made()
    with caplog.at_level(logging.WARNING):
        fail(attempts, "refused")
        assert attempts.refused_models() == {}
        fail(attempts, "refused")
    assert attempts.refused_models() == {"m": "x"}
    assert [record.__dict__["fields"] for record in caplog.records] == [{"model": "m", "detail": "x"}]
    with attempts.begin(CALL, LATER) as attempt:
        attempt.succeed(USAGE)
    assert attempts.refused_models() == {}


def test_attempt_that_is_left_is_an_estimate_and_no_verdict() -> None:
    """A caller that goes away costs up to the bound, and says nothing about the model."""
    attempts, _ = made()
    for _ in range(5):
        with attempts.begin(CALL, LATER) as attempt:
            attempt.has_begun = True
    least = Usage(prompt_tokens=5, completion_tokens=5)
    assert (tokens(attempts).estimated_calls, tokens(attempts).least) == (5, least)
    assert attempts.open_models() == ()


def test_attempt_that_is_left_at_its_deadline_is_a_failure() -> None:
    """A model that doesn't answer in time is left alone, whoever noticed it."""
    attempts, clock = made()
    for _ in range(2):
        with attempts.begin(CALL, Deadline(clock.now + 1)):
            clock.now += 1
    assert attempts.open_models() == ("m",)


def test_probe_that_is_left_lets_another_try() -> None:
    """While a probe runs nobody else may call; when its caller leaves, the next one may."""
    attempts, clock = made(open_s=10)
    fail(attempts, "cut")
    fail(attempts, "cut")
    clock.now = 10
    with attempts.begin(CALL, LATER), pytest.raises(GatewayError, match="open"):
        attempts.begin(CALL, LATER)
    with attempts.begin(CALL, LATER) as attempt:
        attempt.succeed(USAGE)
    assert attempts.open_models() == ()
