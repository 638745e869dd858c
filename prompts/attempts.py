"""How each attempt at a call ends, told once to the model's breaker and to the ledger.

An attempt that is left without a word (its caller was cancelled, or stopped reading) is an estimate in the ledger, and
no verdict on the model, unless its time was up. What may have reached a model counts; what surely did not is free.
"""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

import attrs

from models.errors import GatewayError
from prompts.breaker import Breaker, BreakerConfig
from prompts.ledger import TokenLedger, Usage
from prompts.shared import Deadline

log = logging.getLogger(__name__)

# Reasons of failures that no model has worked for.
FREE = frozenset({"connect", "rate_limited", "refused", "overloaded", "open"})


@attrs.frozen(kw_only=True)
class Call:
    """A request to a model: what is sent, what it can cost at most, and what makes it the same as another."""

    model: str
    body: bytes = attrs.field(repr=False)
    key: str
    most: Usage


class Attempts:
    """Makes the attempts of one gateway; ``clock`` gives monotonic seconds."""

    def __init__(self, config: BreakerConfig, ledger: TokenLedger, clock: Callable[[], float]) -> None:
        self.config = config
        self.ledger = ledger
        self.clock = clock
        self._breakers: dict[str, Breaker] = {}
        self._refusals: dict[str, tuple[int, str]] = {}

    def open_models(self) -> tuple[str, ...]:
        """The models that are left alone at the moment."""
        now = self.clock()
        return tuple(sorted(model for model, breaker in self._breakers.items() if breaker.state(now) == "open"))

    def refused_models(self) -> dict[str, str]:
        """The models that were refused many times in a row, and what the gateway said last."""
        least = self.config.failures_in_row
        return {model: detail for model, (count, detail) in sorted(self._refusals.items()) if count >= least}

    def note_refusal(self, model: str, detail: str) -> None:
        """Counts one more in a row; a wrong key or name refuses all, and a request that one alone is."""
        count = self._refusals.get(model, (0, ""))[0] + 1
        self._refusals[model] = count, detail
        if count == 1:
            log.warning("the LLM gateway refuses a call", extra={"fields": {"model": model, "detail": detail}})

    def end_refusals(self, model: str) -> None:
        """There was an answer."""
        self._refusals.pop(model, None)

    def begin(self, call: Call, deadline: Deadline) -> "Attempt":
        """Starts an attempt.

        Raises:
            GatewayError: the model's breaker is open.
        """
        breaker = self._breakers.setdefault(call.model, Breaker(self.config))
        permit = breaker.admit(self.clock())
        if permit is None:
            raise GatewayError("open", "its last calls failed: it is left alone for a while")
        return Attempt(self, call, deadline, breaker=breaker, permit=permit)


class Attempt:
    """One attempt; a context manager. The first thing that is said of its end is what counts."""

    def __init__(self, attempts: Attempts, call: Call, deadline: Deadline, *, breaker: Breaker, permit: int) -> None:
        self.has_begun = False
        self._attempts = attempts
        self._call = call
        self._deadline = deadline
        self._breaker = breaker
        self._permit = permit
        self._is_settled = False

    def succeed(self, usage: Usage | None) -> None:
        """The answer is whole; without a usable count it is an estimate."""
        if self._settle():
            self._record(is_good=True)
            self._attempts.end_refusals(self._call.model)
            if usage is None:
                self._estimate(has_begun=True)
            else:
                self._attempts.ledger.add(self._call.model, usage)

    def fail(self, error: GatewayError) -> None:
        """There is no answer; a gateway that refuses is well itself."""
        if self._settle():
            if error.reason not in FREE:
                self._estimate(has_begun=self.has_begun)
            if error.reason == "refused":
                self._attempts.note_refusal(self._call.model, error.detail)
            if self._record(is_good=error.reason == "refused"):
                fields = {"model": self._call.model, "reason": error.reason, "detail": error.detail}
                fields["open_s"] = f"{self._attempts.config.open_s:g}"
                log.warning("a model of the LLM gateway is left alone", extra={"fields": fields})

    def leave(self) -> None:
        """The caller is gone; if its time was up, it is the gateway that failed."""
        if self._deadline.has_passed(self._attempts.clock()):
            self.fail(GatewayError("timeout", "no whole answer before the deadline"))
        elif self._settle():
            self._estimate(has_begun=self.has_begun)
            self._breaker.release(self._permit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, GatewayError):
            self.fail(error)
        else:
            self.leave()

    def _settle(self) -> bool:
        was, self._is_settled = self._is_settled, True
        return not was

    def _record(self, *, is_good: bool) -> bool:
        return self._breaker.record(self._permit, is_good=is_good, now=self._attempts.clock())

    def _estimate(self, *, has_begun: bool) -> None:
        self._attempts.ledger.add_estimate(self._call.model, self._call.most, has_begun=has_begun)
