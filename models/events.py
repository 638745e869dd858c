"""The events that ship with the application: what arrives on ``signals.>`` and ``feedback.>``.

Field names and meanings are an outside contract: other teams publish these. Unknown fields are ignored; a missing or
mistyped one makes the message a dead letter whose reason names the path. Instants are RFC 3339 with a zone.
"""

import datetime as dt
from typing import Literal

import attrs

from models.codec import aware, between, filled

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
