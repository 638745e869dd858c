"""What was spent: tokens by model, exact where the gateway said so, and within stated bounds where it did not.

A completed call with a usable count is exact. Any other call that may have reached a model (left by its caller, cut,
out of time, answered with no count or one that can't be right) is estimated: between what was surely spent and what
can't be exceeded. The upper bound takes each byte of UTF-8 for a token of its own, which no tokenizer exceeds that
takes at least a byte a token, adds ``FRAME_TOKENS`` for what the model's chat template puts around the messages, and
takes the whole ``max_tokens`` of the answer; so a model that goes on after its caller left is within it.

Pure counters: who calls them is prompts/attempts.py, who shows them is the app.
"""

from collections.abc import Mapping
from typing import Self

import attrs

from models.codec import between
from prompts.registry import Messages

FRAME_TOKENS = 64

_COUNT = between(0, 10**15)


@attrs.frozen(kw_only=True)
class Usage:
    """Tokens of one call, or of many."""

    prompt_tokens: int = attrs.field(default=0, validator=_COUNT)
    completion_tokens: int = attrs.field(default=0, validator=_COUNT)

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: Self) -> "Usage":
        """The sum of two."""
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


NOTHING = Usage()
_BEGUN = Usage(prompt_tokens=1, completion_tokens=1)


@attrs.frozen(kw_only=True)
class ModelTokens:
    """What one model was given and made; ``least`` and ``most`` bound the estimated calls, beside the exact ones."""

    calls: int = 0
    exact: Usage = NOTHING
    estimated_calls: int = 0
    least: Usage = NOTHING
    most: Usage = NOTHING


class TokenLedger:
    """The counters of this process; a model is called as it was asked for."""

    def __init__(self) -> None:
        self._models: dict[str, ModelTokens] = {}

    def add(self, model: str, usage: Usage) -> None:
        """Counts a completed call."""
        was = self._models.get(model, ModelTokens())
        self._models[model] = attrs.evolve(was, calls=was.calls + 1, exact=was.exact.plus(usage))

    def add_estimate(self, model: str, most: Usage, *, has_begun: bool) -> None:
        """Counts a call whose usage is not known; ``has_begun`` says that some of an answer was seen."""
        was = self._models.get(model, ModelTokens())
        self._models[model] = attrs.evolve(
            was,
            estimated_calls=was.estimated_calls + 1,
            least=was.least.plus(_BEGUN if has_begun else NOTHING),
            most=was.most.plus(most),
        )

    def facts(self) -> Mapping[str, ModelTokens]:
        """Every model that was asked, as of now."""
        return dict(self._models)


def most_usage(messages: Messages, *, max_tokens: int) -> Usage:
    """What a call can't exceed."""
    size = len(messages.system.encode()) + len(messages.user.encode())
    return Usage(prompt_tokens=size + FRAME_TOKENS, completion_tokens=max_tokens)
