"""The handler of ``feedback.>``, run on events over rows and counts in memory."""

import asyncio
import datetime as dt
import logging

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams_kit import MemoryRows

from models.codec import decoder_for
from models.errors import PayloadError
from models.events import TipRewarded
from models.rows import Reward
from streams.handlers.feedback import (
    MODEL_REWARD_DAYS,
    PROMPT_REWARD_DAYS,
    REWARD_DAYS,
    REWARDS,
    reward_key,
    subjects,
    tip_rewarded,
)

EVENT = TipRewarded(
    user_id="ana",
    tip_id="t",
    request_id="r",
    reward=0.25,
    occurred_at=dt.datetime(2026, 3, 1, 23, 30, tzinfo=dt.timezone(dt.timedelta(hours=-2))),
)
DAY = "2026-03-02"  # 23:30 at -02:00 is the next day in UTC


async def fold(*events: TipRewarded) -> MemoryRows:
    """Rows and counts after the events in this order, as messages 1, 2, 3 …"""
    memory = MemoryRows(subjects.tables)
    for seq, event in enumerate(events, 1):
        await memory.run(tip_rewarded, event, key=reward_key(event), seq=seq)
    return memory


def row_of(memory: MemoryRows, event: TipRewarded) -> Reward:
    """The stored row of an event's tip."""
    return REWARDS.decode(memory.rows["rewards", reward_key(event)])


async def test_tip_rewarded_is_counted_under_its_own_day() -> None:
    """Rewards are summed in millionths under the UTC day on which they occurred, other days stay."""
    other_day = attrs.evolve(EVENT, tip_id="v", occurred_at=dt.datetime(2026, 3, 1, tzinfo=dt.UTC))
    memory = await fold(EVENT, attrs.evolve(EVENT, tip_id="u", reward=1.0), other_day)
    assert memory.counts == {
        ("reward_days", DAY, "count"): 2,
        ("reward_days", DAY, "reward_millionths"): 250_000 + 1_000_000,
        ("reward_days", DAY, "accepted"): 1,  # 0.25 is no acceptance
        ("reward_days", "2026-03-01", "count"): 1,
        ("reward_days", "2026-03-01", "reward_millionths"): 250_000,
    }


async def test_tip_rewarded_is_counted_for_its_variant_and_its_model() -> None:
    """Each version that the event names has counts of its own by day; half a reward is an acceptance."""
    memory = await fold(attrs.evolve(EVENT, reward=0.5, prompt_version="v2", model_version="7"))
    assert {place: n for place, n in memory.counts.items() if place[0] != "reward_days"} == {
        (table, key, field): n
        for table, key in (("prompt_reward_days", f"{DAY}/v2"), ("model_reward_days", f"{DAY}/7"))
        for field, n in (("count", 1), ("reward_millionths", 500_000), ("accepted", 1))
    }


async def test_tip_rewarded_first_counts_for_ever() -> None:
    """A later reward of the same tip of the same request changes no count; the row tells how many there were."""
    later = attrs.evolve(EVENT, reward=1.0, user_id="eve", prompt_version="v9", occurred_at=dt.datetime.now(dt.UTC))
    once, memory = await fold(EVENT), await fold(EVENT, later, EVENT)
    assert memory.counts == once.counts
    assert row_of(memory, EVENT) == Reward(**attrs.asdict(EVENT), ignored=2)


async def test_tip_rewarded_of_another_request_or_tip_is_another_reward() -> None:
    """The same tip in another request, and another tip in the same one, count."""
    memory = await fold(EVENT, attrs.evolve(EVENT, request_id="s"), attrs.evolve(EVENT, tip_id="u"))
    assert memory.counts["reward_days", DAY, "count"] == len(memory.rows) == 3


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "1", "2", ""]), min_size=2, max_size=6))
def test_reward_key_is_of_one_request_and_tip(parts: list[str]) -> None:
    """However a text with colons is cut into two ids, each cut has a key of its own."""
    cuts = [(":".join(parts[:cut]), ":".join(parts[cut:])) for cut in range(1, len(parts))]
    keys = {reward_key(attrs.evolve(EVENT, request_id=r or "0", tip_id=t or "0")) for r, t in cuts}
    assert len(keys) == len({(r or "0", t or "0") for r, t in cuts})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("rs"), st.sampled_from("tu"), st.floats(0, 1)), max_size=8))
def test_tip_rewarded_counts_each_tip_once_in_any_stream(facts: list[tuple[str, str, float]]) -> None:
    """Whatever comes in whatever order, the counts are those of each tip's first reward, in whole millionths."""
    events = [attrs.evolve(EVENT, request_id=r, tip_id=t, reward=reward) for r, t, reward in facts]
    firsts = {reward_key(event): event.reward for event in reversed(events)}
    memory = asyncio.run(fold(*events))
    assert memory.counts.get(("reward_days", DAY, "count"), 0) == len(firsts)
    millionths = sum(round(reward * 1_000_000) for reward in firsts.values())
    assert memory.counts.get(("reward_days", DAY, "reward_millionths"), 0) == millionths


async def test_tip_rewarded_logs_without_the_user(caplog: pytest.LogCaptureFixture) -> None:
    """Its line tells where the message lies, not whose it is."""
    with caplog.at_level(logging.INFO, "streams.handlers.feedback"):
        await fold(EVENT)
    (record,) = caplog.records
    assert (record.message, record.__dict__["fields"]) == ("tip rewarded", {"stream": "SIGNALS", "seq": 1})


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
async def test_tip_rewarded_takes_the_first_and_last_day(instant: str) -> None:
    """The ends of the calendar are days too."""
    memory = await fold(attrs.evolve(EVENT, occurred_at=dt.datetime.fromisoformat(instant)))
    assert memory.counts["reward_days", instant[:10], "count"] == 1


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_tip_rewarded_beyond_the_calendar_does_not_decode(instant: str) -> None:
    """An instant that has no day in UTC never reaches the handler."""
    payload = b'{"user_id":"a","tip_id":"t","request_id":"r","reward":1,"occurred_at":"%s"}' % instant.encode()
    with pytest.raises(PayloadError, match="occurred_at: expected an instant within the years 1 to 9999"):
        decoder_for(TipRewarded)(payload)


def test_feedback_table_is_the_contract() -> None:
    """Names, subject and event type are the outside contract."""
    (handler,) = subjects.handlers
    assert (handler.name, handler.subject, handler.event) == (
        "feedback.tip_rewarded",
        "feedback.tip.rewarded",
        TipRewarded,
    )
    assert (subjects.name, subjects.key) == ("feedback", reward_key)
    assert subjects.tables == (REWARDS, REWARD_DAYS, PROMPT_REWARD_DAYS, MODEL_REWARD_DAYS)
