"""The handler of ``feedback.>``, run on events with the increments it asks for."""

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
from streams.handlers.feedback import REWARD_DAYS, subjects, tip_rewarded

EVENT = TipRewarded(
    user_id="ana",
    tip_id="t",
    request_id="r",
    reward=0.25,
    occurred_at=dt.datetime(2026, 3, 1, 23, 30, tzinfo=dt.timezone(dt.timedelta(hours=-2))),
)


async def test_tip_rewarded_is_counted_under_its_own_day() -> None:
    """Rewards are summed in millionths under the UTC day on which they occurred, other days stay."""
    memory = MemoryRows([REWARD_DAYS])
    await memory.run(tip_rewarded, EVENT, key="ana")
    await memory.run(tip_rewarded, attrs.evolve(EVENT, user_id="bob", reward=1.0), key="bob")
    await memory.run(tip_rewarded, attrs.evolve(EVENT, occurred_at=dt.datetime(2026, 3, 1, tzinfo=dt.UTC)), key="ana")
    assert memory.counts == {
        ("reward_days", "2026-03-02", "count"): 2,  # 23:30 at -02:00 is the next day in UTC
        ("reward_days", "2026-03-02", "reward_millionths"): 250_000 + 1_000_000,
        ("reward_days", "2026-03-01", "count"): 1,
        ("reward_days", "2026-03-01", "reward_millionths"): 250_000,
    }
    assert memory.rows == {}


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1))
def test_tip_rewarded_adds_whole_millionths(reward: float) -> None:
    """Any reward becomes an integer from 0 to a million, at most half a millionth off."""
    memory = MemoryRows([REWARD_DAYS])
    asyncio.run(memory.run(tip_rewarded, attrs.evolve(EVENT, reward=reward), key="ana"))
    millionths = memory.counts["reward_days", "2026-03-02", "reward_millionths"]
    assert type(millionths) is int and 0 <= millionths <= 1_000_000
    assert abs(millionths - reward * 1_000_000) <= 0.5


async def test_tip_rewarded_logs_without_the_user(caplog: pytest.LogCaptureFixture) -> None:
    """Its line tells where the message lies, not whose it is."""
    with caplog.at_level(logging.INFO, "streams.handlers.feedback"):
        await MemoryRows([REWARD_DAYS]).run(tip_rewarded, EVENT, key="ana", seq=4)
    (record,) = caplog.records
    assert (record.message, record.__dict__["fields"]) == ("tip rewarded", {"stream": "SIGNALS", "seq": 4})


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
async def test_tip_rewarded_takes_the_first_and_last_day(instant: str) -> None:
    """The ends of the calendar are days too."""
    memory = MemoryRows([REWARD_DAYS])
    event = attrs.evolve(EVENT, occurred_at=dt.datetime.fromisoformat(instant))
    await memory.run(tip_rewarded, event, key="ana")
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
    assert (subjects.name, subjects.key, subjects.tables) == ("feedback", "user_id", (REWARD_DAYS,))
