"""The handler of ``decisions.generate``, run on events with the increments it asks for."""

import datetime as dt

import attrs
import pytest
from streams_kit import MemoryRows

from models.codec import decoder_for
from models.errors import PayloadError
from models.events import GenerateDecided, TokenUsage
from models.rows import PromptDay
from streams.handlers.generations import PROMPT_DAYS, generate_decided, subjects

EVENT = GenerateDecided(
    request_id="r",
    user_id="ana",
    tip_id="t",
    prompt_version="v2",
    latency_ms=120.4,
    occurred_at=dt.datetime(2026, 3, 1, 23, 30, tzinfo=dt.timezone(dt.timedelta(hours=-2))),
)
KEY = "2026-03-02/v2"  # 23:30 at -02:00 is the next day in UTC
PAYLOAD = (
    b'{"request_id": "r", "user_id": "ana", "tip_id": "t", "prompt_version": "v2", "latency_ms": 120.4,'
    b' "occurred_at": "2026-03-01T23:30:00-02:00", "and_more": [1]}'
)


async def count(*events: GenerateDecided) -> dict[str, PromptDay]:
    """The counts after the events, by key."""
    memory = MemoryRows([PROMPT_DAYS])
    for seq, event in enumerate(events, 1):
        await memory.run(generate_decided, event, key=event.request_id, seq=seq)
    found: dict[str, dict[str, int]] = {}
    for (_, key, field), n in memory.counts.items():
        found.setdefault(key, {})[field] = n
    return {key: PromptDay(**fields) for key, fields in found.items()}


async def test_generate_decided_is_an_impression_of_its_variant_and_day() -> None:
    """What the least event says is counted, and nothing that it does not say."""
    assert await count(EVENT) == {
        KEY: PromptDay(impressions=1, impression_thousandths=1000, latency_ms=120, le_200=1)  # 120.4 in whole ms
    }


async def test_generate_decided_counts_all_that_went_otherwise() -> None:
    """Tokens, costs, fallbacks, failed checks, shared and degraded answers are counted."""
    event = attrs.evolve(
        EVENT,
        usage=TokenUsage(prompt_tokens=200, completion_tokens=30),
        cost_usd=0.0012345,
        cached=True,
        fallback="model",
        degraded_reason="timeout",
        failed_checks=("length", "markup"),
    )
    row = (await count(event, EVENT))[KEY]
    assert (row.impressions, row.cached, row.fallbacks, row.degraded, row.failed_checks) == (2, 1, 1, 1, 1)
    assert (row.prompt_tokens, row.completion_tokens) == (200, 30)
    assert (row.priced, row.cost_micro_usd) == (1, 1234)  # 1234.5 rounds to the even one


@pytest.mark.parametrize(("rate", "thousandths"), [(1.0, 1000), (0.25, 4000), (0.3, 3333), (0.0001, 10_000_000)])
async def test_generate_decided_of_a_sampled_log_stands_for_more(rate: float, thousandths: int) -> None:
    """An answer that was logged at a rate below 1 stands for as many as that rate says."""
    row = (await count(attrs.evolve(EVENT, sample_rate=rate)))[KEY]
    assert (row.impressions, row.impression_thousandths) == (1, thousandths)


async def test_generate_decided_for_nobody_is_no_impression() -> None:
    """An answer whose client had left was seen by nobody, but its tokens were paid for."""
    event = attrs.evolve(EVENT, is_abandoned=True, usage=TokenUsage(prompt_tokens=9, completion_tokens=1))
    assert await count(event) == {KEY: PromptDay(abandoned=1, prompt_tokens=9, completion_tokens=1)}


def test_generate_decided_decodes_with_unknown_fields() -> None:
    """Fields that a later version adds are ignored, and those that are left out have defaults."""
    assert decoder_for(GenerateDecided)(PAYLOAD) == EVENT


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        pytest.param(b'"latency_ms": 120.4', b'"latency_ms": -1', "latency_ms: expected a number from 0", id="latency"),
        pytest.param(b'"and_more": [1]', b'"sample_rate": 0', "sample_rate: expected a number from 0.0001", id="rate"),
        pytest.param(b'"and_more": [1]', b'"usage": {"prompt_tokens": -1}', "prompt_tokens: expected", id="tokens"),
        pytest.param(b'"and_more": [1]', b'"fallback": "luck"', "fallback: invalid enum value", id="fallback"),
        pytest.param(b'"v2"', b'""', "prompt_version: expected at least one character", id="version"),
    ],
)
def test_generate_decided_refuses_what_can_not_be(field: bytes, value: bytes, problem: str) -> None:
    """A value that no answer has is named, and never counted."""
    with pytest.raises(PayloadError, match=problem):
        decoder_for(GenerateDecided)(PAYLOAD.replace(field, value))


def test_generations_table_is_the_contract() -> None:
    """Names, subject and event type are those that the decision log publishes."""
    (handler,) = subjects.handlers
    assert (handler.name, handler.subject, handler.event) == (
        "generations.generate_decided",
        "decisions.generate",
        GenerateDecided,
    )
    assert (subjects.name, subjects.key, subjects.tables) == ("generations", "request_id", (PROMPT_DAYS,))
