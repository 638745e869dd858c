"""From the bytes of a chat completion to a typed answer: the text, who made it, tokens and cost.

This module owns what is believed of an answer. A count of tokens that can't be right (absent, zero, negative, not
adding up) is dropped together with the cost that was made from it, and the text stands; an answer without text is
refused. No I/O: bytes come from prompts/wire.py, the framing of streams is prompts/sse.py.
"""

import math
import re
from typing import TypeGuard

import attrs

from models.codec import decoder_for
from models.errors import GatewayError, PayloadError
from prompts.ledger import Usage
from prompts.retries import refusal_of

COST_HEADER = "x-litellm-response-cost"
DONE = b"[DONE]"

_MODEL = re.compile(r"[!-~]{1,128}")
_MOST_TOKENS = 10**9
_MOST_USD = 1_000.0
"""An answer that is said to cost more is one whose cost is not known."""


@attrs.frozen(kw_only=True)
class Completion:
    """A whole answer.

    Args:
        model: who made it, as the gateway says.
        usage: what this call spent; nothing for one that was ``cached``. With ``is_estimated`` the gateway did not say,
            and it is an upper bound.
        cost_usd: what the gateway charges for it; None when it is not known, 0 for one that was ``cached``.
        cached: whether it was made for another call, of now or of before.
        is_cut: whether the model ran into ``max_tokens``.
    """

    text: str
    model: str
    usage: Usage
    cost_usd: float | None
    is_estimated: bool = False
    cached: bool = False
    is_cut: bool = False


@attrs.frozen(kw_only=True)
class Answer:
    """What one answer holds; ``usage`` and ``cost_usd`` are None when they are not known."""

    text: str
    model: str | None
    usage: Usage | None
    cost_usd: float | None
    is_cut: bool


@attrs.frozen(kw_only=True)
class _Part:
    content: str | None = None


@attrs.frozen(kw_only=True)
class _Choice:
    message: _Part | None = None
    delta: _Part | None = None
    finish_reason: str | None = None


@attrs.frozen(kw_only=True)
class _Body:
    choices: list[_Choice] | None = None
    model: str | None = None
    usage: object = None
    error: object = None


_decode = decoder_for(_Body)


def decode_answer(body: bytes, *, cost_header: str | None) -> Answer:
    """Reads an answer that came as a whole.

    Raises:
        GatewayError: it is no completion, or has no text.
    """
    collected = Collected()
    collected.take(_body(body), is_stream=False)
    return collected.answer(cost_header=cost_header)


class Collected:
    """An answer while it comes, event by event."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._model: str | None = None
        self._usage: object = None
        self._finish: str | None = None
        self.is_done = False

    @property
    def has_text(self) -> bool:
        """Whether any of the text came already."""
        return bool(self._texts)

    @property
    def is_whole(self) -> bool:
        """Whether the answer may end here: the model said that it ended."""
        return self.is_done or self._finish is not None

    def feed(self, event: bytes) -> str:
        """Takes the data of one event, and returns the text that it adds.

        Raises:
            GatewayError: the event is no part of a completion, or tells of an error.
        """
        if event.strip() == DONE:
            self.is_done = True
            return ""
        return self.take(_body(event), is_stream=True)

    def take(self, body: _Body, *, is_stream: bool) -> str:
        """Takes one decoded body, and returns the text that it adds."""
        if body.error is not None:
            raise _error_within(body.error, has_text=self.has_text)
        if not is_stream and not body.choices:
            raise GatewayError("bad_answer", "choices: expected at least one")
        self._model = self._model or body.model
        self._usage = body.usage if body.usage is not None else self._usage
        choice = body.choices[0] if body.choices else _Choice()
        self._finish = choice.finish_reason or self._finish
        part = choice.delta if is_stream else choice.message
        text = (part.content if part else None) or ""
        if text:
            self._texts.append(text)
        return text

    def answer(self, *, cost_header: str | None = None) -> Answer:
        """The whole answer.

        Raises:
            GatewayError: there is no text, or a filter of the provider has taken some of it away.
        """
        text = "".join(self._texts)
        if self._finish == "content_filter":
            raise GatewayError("bad_answer", "withheld by a content filter")
        if not text.strip():
            raise GatewayError("bad_answer", "the text is empty")
        usage = usage_of(self._usage)
        return Answer(
            text=text,
            model=self._model if self._model and _MODEL.fullmatch(self._model) else None,
            usage=usage,
            cost_usd=None if usage is None else _cost(cost_header, self._usage),
            is_cut=self._finish == "length",
        )


def usage_of(raw: object) -> Usage | None:
    """The count of tokens in an answer that has text, or None when it can't be right."""
    if not isinstance(raw, dict):
        return None
    prompt, completion = raw.get("prompt_tokens"), raw.get("completion_tokens")
    if not (_is_count(prompt) and _is_count(completion)):
        return None
    if raw.get("total_tokens", prompt + completion) != prompt + completion:
        return None
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def _is_count(value: object) -> TypeGuard[int]:
    # Zero is what LiteLLM says when the provider said nothing: there is text, so there were tokens.
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_TOKENS


def _cost(header: str | None, usage: object) -> float | None:
    """US dollars, from the header of a whole answer or, as in streams, from the usage."""
    values = (header, usage.get("cost") if isinstance(usage, dict) else None)
    for value in values:
        try:
            cost = float(value) if isinstance(value, str | float | int) else math.nan
        except (ValueError, OverflowError):
            continue
        if math.isfinite(cost) and 0 <= cost <= _MOST_USD:
            return cost
    return None


def _body(data: bytes) -> _Body:
    try:
        return _decode(data)
    except PayloadError as error:
        raise GatewayError("bad_answer", error.reason.partition(" (")[0]) from error


def _error_within(error: object, *, has_text: bool) -> GatewayError:
    """An error that came where text was expected; after the first text there is no asking again."""
    code = str(error.get("code")) if isinstance(error, dict) else ""
    known = refusal_of(int(code) if re.fullmatch("[45][0-9][0-9]", code) else 500)
    return GatewayError("cut", f"the gateway gave up: {known.detail}") if has_text else known
