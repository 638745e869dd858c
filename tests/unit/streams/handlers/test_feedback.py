"""The handler of ``feedback.>``: the first reward of a tip counts, for ever, under its day, variant and model."""

import asyncio
import datetime as dt
import logging
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams_kit import MemoryRows

from models.codec import decoder_for
from models.errors import PayloadError
from models.events import TipRewarded
from streams.handlers.feedback import OWN, REWARDS, reward_key, subjects, tip_rewarded

EVENT = TipRewarded(
    user_id="ana",
    tip_id="t",
    request_id="r",
    reward=0.25,
    occurred_at=dt.datetime(2026, 3, 1, 23, 30, tzinfo=dt.timezone(dt.timedelta(hours=-2))),
)
NEXT_DAY = "2026-03-02"  # 23:30 at -02:00 is the next day in UTC


async def reward(memory: MemoryRows, seq: int = 1, **changes: Any) -> TipRewarded:
    """Handles a reward like EVENT."""
    event = attrs.evolve(EVENT, **changes)
    await memory.run(tip_rewarded, event, key=reward_key(event), seq=seq)
    return event


async def test_tip_rewarded_is_counted_under_its_own_day() -> None:
    """Rewards are summed in millionths under the UTC day on which they occurred; those from 0.5 on are acceptances."""
    memory = MemoryRows(OWN)
    await reward(memory)
    await reward(memory, 2, tip_id="u", reward=1.0)
    await reward(memory, 3, tip_id="v", occurred_at=dt.datetime(2026, 3, 1, tzinfo=dt.UTC))
    assert memory.counts == {
        ("reward_days", NEXT_DAY, "count"): 2,
        ("reward_days", NEXT_DAY, "reward_millionths"): 250_000 + 1_000_000,
        ("reward_days", NEXT_DAY, "accepted"): 1,
        ("reward_days", "2026-03-01", "count"): 1,
        ("reward_days", "2026-03-01", "reward_millionths"): 250_000,
    }


async def test_only_the_first_reward_of_a_tip_counts() -> None:
    """Whatever comes later for the same request and tip changes no count; the row tells how many were ignored."""
    memory = MemoryRows(OWN)
    event = await reward(memory)
    await reward(memory, 2, reward=1.0)
    await reward(memory, 3, reward=0.0, user_id="bob")
    assert memory.counts[("reward_days", NEXT_DAY, "count")] == 1
    assert memory.counts[("reward_days", NEXT_DAY, "reward_millionths")] == 250_000
    row = REWARDS.decode(memory.rows["rewards", reward_key(event)])
    assert (row.reward, row.user_id, row.ignored) == (0.25, "ana", 2)


async def test_rewards_are_counted_by_variant_and_model() -> None:
    """Each that names a variant, or a model, counts for it too; one that names neither counts for its day alone."""
    memory = MemoryRows(OWN)
    await reward(memory, prompt_version="v2", model_version="7", reward=0.5)
    await reward(memory, 2, tip_id="u")
    assert memory.counts[("prompt_reward_days", f"{NEXT_DAY}/v2", "count")] == 1
    assert memory.counts[("prompt_reward_days", f"{NEXT_DAY}/v2", "accepted")] == 1
    assert memory.counts[("model_reward_days", f"{NEXT_DAY}/7", "reward_millionths")] == 500_000
    assert memory.counts[("reward_days", NEXT_DAY, "count")] == 2


IDS = st.text("ab:.1", min_size=1, max_size=6)


@given(IDS, IDS, IDS, IDS)
def test_no_two_tips_share_a_key(request: str, tip: str, other_request: str, other_tip: str) -> None:
    """Ids may hold the mark that stands between them."""
    one = reward_key(attrs.evolve(EVENT, request_id=request, tip_id=tip))
    other = reward_key(attrs.evolve(EVENT, request_id=other_request, tip_id=other_tip))
    assert (one == other) == ((request, tip) == (other_request, other_tip))


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1))
def test_tip_rewarded_adds_whole_millionths(value: float) -> None:
    """Any reward becomes an integer from 0 to a million, at most half a millionth off."""
    memory = MemoryRows(OWN)
    asyncio.run(reward(memory, reward=value))
    millionths = memory.counts["reward_days", NEXT_DAY, "reward_millionths"]
    assert type(millionths) is int and 0 <= millionths <= 1_000_000
    assert abs(millionths - value * 1_000_000) <= 0.5


async def test_tip_rewarded_logs_without_the_user(caplog: pytest.LogCaptureFixture) -> None:
    """Its line tells where the message lies, not whose it is."""
    with caplog.at_level(logging.INFO, "streams.handlers.feedback"):
        await reward(MemoryRows(OWN), 4)
    (record,) = caplog.records
    assert (record.message, record.__dict__["fields"]) == ("tip rewarded", {"stream": "SIGNALS", "seq": 4})


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
async def test_tip_rewarded_takes_the_first_and_last_day(instant: str) -> None:
    """The ends of the calendar are days too."""
    memory = MemoryRows(OWN)
    await reward(memory, occurred_at=dt.datetime.fromisoformat(instant))
    assert memory.counts["reward_days", instant[:10], "count"] == 1


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_tip_rewarded_beyond_the_calendar_does_not_decode(instant: str) -> None:
    """An instant that has no day in UTC never reaches the handler."""
    payload = b'{"user_id":"a","tip_id":"t","request_id":"r","reward":1,"occurred_at":"%s"}' % instant.encode()
    with pytest.raises(PayloadError, match="occurred_at: expected an instant within the years 1 to 9999"):
        decoder_for(TipRewarded)(payload)


def test_feedback_table_is_the_contract() -> None:
    """Names, subject and event type are the outside contract; the lane is that of the tip."""
    (handler,) = subjects.handlers
    assert (handler.name, handler.subject, handler.event) == (
        "feedback.tip_rewarded",
        "feedback.tip.rewarded",
        TipRewarded,
    )
    assert (subjects.name, subjects.key, subjects.tables) == ("feedback", reward_key, tuple(OWN))
