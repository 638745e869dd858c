"""The rows of our own tables that features, prompts and reports read.

A row's class lies here when more than its handlers need it; the table itself, and who writes it, is declared in
streams/handlers/.
"""

import datetime as dt

import attrs


@attrs.frozen(kw_only=True)
class ProviderSync:
    """The newest synchronisation of one provider."""

    synced_at: dt.datetime
    task_count: int | None = None
    cursor: str | None = None


@attrs.frozen(kw_only=True)
class UserSync:
    """What is known of a user's synchronisations; ``updated_at`` is the stream's time of the newest event."""

    providers: dict[str, ProviderSync] = attrs.field(factory=dict)
    last_event_id: str | None = None
    stream_seq: int = 0
    updated_at: dt.datetime | None = None


@attrs.frozen(kw_only=True)
class Reward:
    """The reward that counts for a tip of a request, its first one; ``ignored`` counts those that came later."""

    request_id: str
    tip_id: str
    user_id: str
    reward: float
    model_version: str | None = None
    prompt_version: str | None = None
    occurred_at: dt.datetime
    ignored: int = 0


@attrs.frozen(kw_only=True)
class RewardDay:
    """The rewards of one day (UTC): how many, their sum in millionths, and how many say that the tip was accepted."""

    count: int = 0
    reward_millionths: int = 0
    accepted: int = 0


@attrs.frozen(kw_only=True)
class PromptDay:
    """The logged answers that one prompt variant led to on one day (UTC).

    Args:
        impressions: how many were logged, those apart whose client had left before its tip was there (``abandoned``).
        impression_thousandths: how many they stand for, in thousandths; while the log is sampled at a rate of 0.1, one
            stands for ten.
        priced: how many of them have a known cost, whose sum is ``cost_micro_usd``.
        latency_ms: the sum.
        le_10: how many took at most so many milliseconds, and longer than the bound before; ``le_more`` has the rest.
    """

    impressions: int = 0
    abandoned: int = 0
    impression_thousandths: int = 0
    fallbacks: int = 0
    failed_checks: int = 0
    cached: int = 0
    degraded: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    priced: int = 0
    cost_micro_usd: int = 0
    latency_ms: int = 0
    le_10: int = 0
    le_20: int = 0
    le_50: int = 0
    le_100: int = 0
    le_200: int = 0
    le_500: int = 0
    le_1000: int = 0
    le_2000: int = 0
    le_5000: int = 0
    le_10000: int = 0
    le_20000: int = 0
    le_more: int = 0
