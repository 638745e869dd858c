"""Rewards of tips: counted by the day on which they occurred, and logged."""

import datetime as dt
import logging

import attrs

from models.events import TipRewarded
from state.tables import Table
from streams.context import Context
from streams.subjects import SubjectTable

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class RewardDay:
    """The rewards of one day (UTC): how many, and their sum in millionths."""

    count: int = 0
    reward_millionths: int = 0


REWARD_DAYS = Table("reward_days", RewardDay, kind="counters")
subjects = SubjectTable("feedback", tables=[REWARD_DAYS])


@subjects.on("feedback.tip.rewarded")
async def tip_rewarded(event: TipRewarded, ctx: Context) -> None:
    """Counts the reward under the day on which it occurred."""
    day = event.occurred_at.astimezone(dt.UTC).date().isoformat()
    ctx.add(REWARD_DAYS, day, "count", 1)
    ctx.add(REWARD_DAYS, day, "reward_millionths", round(event.reward * 1_000_000))
    log.info("tip rewarded", extra={"fields": {"stream": ctx.message.stream, "seq": ctx.message.seq}})
