"""Answers of ``/generate`` as the decision log has them: counted by day and prompt variant.

Only counts are kept; what was answered stays in the stream. models/rewards.py holds them against the rewards.
"""

import datetime as dt

from models.events import GenerateDecided
from models.rewards import bucket_of, day_key
from models.rows import PromptDay
from state.tables import Table
from streams.context import Context
from streams.subjects import SubjectTable

PROMPT_DAYS = Table("prompt_days", PromptDay, kind="counters")
subjects = SubjectTable("generations", tables=[PROMPT_DAYS], key="request_id")


@subjects.on("decisions.generate")
async def generate_decided(event: GenerateDecided, ctx: Context) -> None:
    """Counts the answer as an impression of its prompt variant, under the day on which it occurred.

    One whose client had left is no impression; what it took is counted all the same.
    """
    key = day_key(event.occurred_at.astimezone(dt.UTC).date(), event.prompt_version)
    seen = int(not event.is_abandoned)
    counts = {
        "impressions": seen,
        "abandoned": 1 - seen,
        "impression_thousandths": seen * round(1000 / event.sample_rate),
        "fallbacks": seen * int(event.fallback != "none"),
        "failed_checks": int(bool(event.failed_checks)),
        "cached": int(event.cached),
        "degraded": seen * int(event.degraded_reason is not None),
        "prompt_tokens": event.usage.prompt_tokens if event.usage else 0,
        "completion_tokens": event.usage.completion_tokens if event.usage else 0,
        "priced": int(event.cost_usd is not None),
        "cost_micro_usd": round((event.cost_usd or 0) * 1_000_000),
        "latency_ms": seen * round(event.latency_ms),
        bucket_of(event.latency_ms): seen,
    }
    for field, n in counts.items():
        if n:
            ctx.add(PROMPT_DAYS, key, field, n)
