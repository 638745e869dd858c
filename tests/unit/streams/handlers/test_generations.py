"""The handler of ``decisions.generate``: impressions, costs and latencies of the prompt variants, by day."""

import datetime as dt
from typing import Any

import attrs
from streams_kit import MemoryRows

from models.events import GenerateDecided, TokenUsage
from streams.handlers.generations import PROMPT_DAYS, generate_decided

EVENT = GenerateDecided(
    request_id="r",
    user_id="ana",
    tip_id="t",
    prompt_version="v2",
    latency_ms=140.4,
    occurred_at=dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC),
)


async def counted(**changes: Any) -> dict[str, int]:
    """What one answer adds to its variant's day."""
    memory = MemoryRows([PROMPT_DAYS])
    await memory.run(generate_decided, attrs.evolve(EVENT, **changes), key="r")
    assert {key for _, key, _ in memory.counts} == {"2026-03-01/v2"}
    return {field: n for (_, _, field), n in memory.counts.items()}


async def test_an_answer_is_an_impression() -> None:
    """With its latency in whole milliseconds and in one bucket."""
    assert await counted() == {
        **{"impressions": 1, "impression_thousandths": 1000},
        **{"latency_ms": 140, "le_200": 1},  # over 100, up to 200
    }


async def test_what_it_took_and_what_went_wrong_is_counted() -> None:
    """Tokens, millionths of a dollar, fallbacks, failed checks; a sampled answer stands for several."""
    found = await counted(
        usage=TokenUsage(prompt_tokens=11, completion_tokens=7),
        cost_usd=0.000_25,
        fallback="template",
        degraded_reason="timeout",
        failed_checks=("numbers", "link"),
        cached=True,
        sample_rate=0.25,
    )
    assert found == {
        **{"impressions": 1, "impression_thousandths": 4000},  # 1 / 0.25 = 4
        **{"prompt_tokens": 11, "completion_tokens": 7, "priced": 1, "cost_micro_usd": 250},
        **{"fallbacks": 1, "degraded": 1, "failed_checks": 1, "cached": 1},
        **{"latency_ms": 140, "le_200": 1},
    }


async def test_an_answer_whose_client_left_is_no_impression() -> None:
    """Nobody has seen it, and its tokens were spent all the same."""
    found = await counted(is_abandoned=True, usage=TokenUsage(prompt_tokens=11, completion_tokens=7))
    assert found == {"abandoned": 1, "prompt_tokens": 11, "completion_tokens": 7}
