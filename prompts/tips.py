"""A tip while it is made: its text, what that took, and why it is not the first model's.

A model's text is taken when it passes its variant's checks (prompts/checks.py), repaired where that is safe, and is
else refused by the checks' names; the tip that is made here (prompts/local.py) passes always. Decides without I/O. Who
is asked, and in which order, is prompts/writer.py's business.
"""

import attrs

from models.context import PromptContext
from models.errors import GatewayError
from models.events import Fallback
from prompts.answers import Completion
from prompts.attempts import FREE
from prompts.checks import check_tip
from prompts.ledger import NOTHING, Usage
from prompts.local import MODEL as LOCAL_MODEL
from prompts.local import local_tip
from prompts.registry import Variant

_SENTENCE_ENDS = (".", "!", "?", "…", '"', "”", "'", "’", ")")


@attrs.define(kw_only=True)
class Tip:
    """One tip.

    Args:
        deadline: when it has to be there, on the monotonic clock.
        text: empty until there is one that may be shown.
        usage: what the asked models took, texts that were refused included; None while none can have worked.
        usage_estimated: not all of it is known, and ``usage`` is an upper bound.
        fallback: what took the place of the first model.
        reasons: why, in the order of what happened.
        failed_checks: those that any text did not pass.
    """

    variant: Variant
    context: PromptContext
    deadline: float
    text: str = ""
    model: str = LOCAL_MODEL
    usage: Usage | None = None
    usage_estimated: bool = False
    cost_usd: float | None = None
    cached: bool = False
    fallback: Fallback = "none"
    reasons: list[str] = attrs.field(factory=list)
    failed_checks: list[str] = attrs.field(factory=list)

    @property
    def degraded_reason(self) -> str | None:
        """Why the tip is not the first model's, or was made with less than there is."""
        return ", ".join(self.reasons) or None

    def spend(self, usage: Usage, *, is_estimated: bool, cost_usd: float | None = None) -> None:
        """Adds what a call of a model took, or can't have exceeded."""
        self.usage = (self.usage or NOTHING).plus(usage)
        self.usage_estimated |= is_estimated
        if cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + cost_usd

    def fail(self, error: GatewayError, most: Usage) -> None:
        """Notes why there is no text; unless no model can have worked, its tokens are bounded and not known."""
        self.reasons.append(error.reason)
        if error.reason not in FREE:
            self.spend(most, is_estimated=True)

    def take(self, completion: Completion, fallback: Fallback) -> bool:
        """Takes a model's text, if it may be shown."""
        self.spend(completion.usage, is_estimated=completion.is_estimated, cost_usd=completion.cost_usd)
        checked = check_tip(completion.text, limits=self.variant.limits, context=self.context)
        failed = list(checked.failed)
        if completion.is_cut and not checked.text.endswith(_SENTENCE_ENDS):
            failed.append("unfinished")
        if failed:
            self.failed_checks += [name for name in failed if name not in self.failed_checks]
            self.reasons.append(f"failed_checks:{'+'.join(failed)}")
            return False
        self.text, self.model, self.cached, self.fallback = checked.text, completion.model, completion.cached, fallback
        return True

    def take_local(self) -> None:
        """Takes the tip that is made here."""
        self.text = local_tip(self.context, limits=self.variant.limits)
        self.model, self.cached, self.fallback = LOCAL_MODEL, False, "template"
