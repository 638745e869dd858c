"""The events that ship with the application: on ``signals.>``, ``feedback.>`` and ``decisions.generate``.

Field names and meanings are an outside contract: other teams publish these. Unknown fields are ignored; a missing or
mistyped one makes the message a dead letter whose reason names the path. Instants are RFC 3339 with a zone.
"""

import datetime as dt
from typing import Literal

import attrs

from models.codec import aware, between, filled

Fallback = Literal["none", "model", "template"]
Reaction = Literal["accepted", "dismissed", "completed", "snoozed"]


@attrs.frozen(kw_only=True)
class TaskSynced:
    """``signals.task.synced``: a provider's tasks of one user were synchronised."""

    user_id: str = attrs.field(validator=filled)
    provider: str = attrs.field(validator=filled)
    synced_at: dt.datetime = attrs.field(validator=aware)
    task_count: int | None = attrs.field(default=None, validator=between(0, 2**53))
    cursor: str | None = None
    event_id: str | None = None


@attrs.frozen(kw_only=True)
class TipFeedback:
    """``signals.tip.feedback``: what a user did with a tip. For observability only; the reward comes by HTTP."""

    user_id: str = attrs.field(validator=filled)
    tip_id: str = attrs.field(validator=filled)
    reaction: Reaction
    request_id: str | None = None
    occurred_at: dt.datetime = attrs.field(validator=aware)


@attrs.frozen(kw_only=True)
class TipRewarded:
    """``feedback.tip.rewarded``: the reward of one tip, from 0 to 1."""

    user_id: str = attrs.field(validator=filled)
    tip_id: str = attrs.field(validator=filled)
    request_id: str = attrs.field(validator=filled)
    reward: float = attrs.field(validator=between(0, 1))
    model_version: str | None = None
    prompt_version: str | None = None
    occurred_at: dt.datetime = attrs.field(validator=aware)


@attrs.frozen(kw_only=True)
class TokenUsage:
    """The tokens that one answer of a model took."""

    prompt_tokens: int = attrs.field(default=0, validator=between(0, 2**31))
    completion_tokens: int = attrs.field(default=0, validator=between(0, 2**31))


@attrs.frozen(kw_only=True)
class GenerateDecided:
    """``decisions.generate``: a tip was answered, and how it came about.

    Args:
        prompt_hash: of the variant's file.
        selection: who chose the variant: the request, the operator's default, or nobody, as its default has vanished.
        propensity: with which probability the variant was chosen.
        model: the model that wrote it; ``local`` when it was made here, None when its client had left before.
        usage: the tokens that this answer took, those of texts that failed their checks included.
        usage_estimated: the gateway did not say all of it, and ``usage`` is an upper bound.
        fallback: what took the place of the asked model: another one, the local template, or nothing.
        failed_checks: the names of the checks that a model's text did not pass.
        is_abandoned: the client had left before the tip was there.
        rows: the user's rows that were read: the message that had written each, by table.
        sample_rate: the share of answers that was logged when this one was.
    """

    request_id: str = attrs.field(validator=filled)
    user_id: str = attrs.field(validator=filled)
    tip_id: str = attrs.field(validator=filled)
    prompt_version: str = attrs.field(validator=filled)
    prompt_hash: str | None = None
    selection: Literal["request", "default", "fallback"] = "default"
    propensity: float | None = attrs.field(default=None, validator=between(0, 1))
    model: str | None = None
    usage: TokenUsage | None = None
    usage_estimated: bool = False
    cost_usd: float | None = attrs.field(default=None, validator=between(0, 1_000_000))
    latency_ms: float = attrs.field(validator=between(0, 86_400_000))
    cached: bool = False
    fallback: Fallback = "none"
    degraded_reason: str | None = None
    failed_checks: tuple[str, ...] = ()
    is_abandoned: bool = False
    rows: dict[str, str] = attrs.field(factory=dict)
    sample_rate: float = attrs.field(default=1.0, validator=between(0.0001, 1))
    occurred_at: dt.datetime = attrs.field(validator=aware)
