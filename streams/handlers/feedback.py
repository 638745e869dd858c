"""Rewards of tips: the first one of a tip counts, for ever; counted by day, prompt variant and model.

The row that says which reward counts and the counts change in one transaction, in the lane of that row's key, so that
neither a repeated request, nor a redelivery, nor two clients at once count a tip twice. The server's duplicate window
only keeps repeats of the last minutes out of the stream. models/rewards.py makes a report of the counts.
"""

import datetime as dt
import logging

import attrs

from models.events import TipRewarded
from models.rewards import ACCEPTED_FROM, day_key
from models.rows import Reward, RewardDay
from state.tables import AnyTable, Table
from streams.context import Context
from streams.subjects import SubjectTable

log = logging.getLogger(__name__)


def reward_key(event: TipRewarded) -> str:
    """The key of the tip's row; the length keeps ``a:b`` of ``c`` apart from ``a`` of ``b:c``."""
    return f"{len(event.request_id)}:{event.request_id}:{event.tip_id}"


REWARDS = Table("rewards", Reward)
REWARD_DAYS = Table("reward_days", RewardDay, kind="counters")
PROMPT_REWARD_DAYS = Table("prompt_reward_days", RewardDay, kind="counters")
MODEL_REWARD_DAYS = Table("model_reward_days", RewardDay, kind="counters")

OWN: list[AnyTable] = [REWARDS, REWARD_DAYS, PROMPT_REWARD_DAYS, MODEL_REWARD_DAYS]
subjects = SubjectTable("feedback", tables=OWN, key=reward_key)


@subjects.on("feedback.tip.rewarded")
async def tip_rewarded(event: TipRewarded, ctx: Context) -> None:
    """Keeps and counts the first reward of a tip, under the day on which it occurred; later ones are only counted."""
    key = reward_key(event)
    known = ctx.get(REWARDS, key)
    if known is not None:
        ctx.put(REWARDS, key, attrs.evolve(known, ignored=known.ignored + 1))
        return
    ctx.put(REWARDS, key, Reward(**attrs.asdict(event)))
    day = event.occurred_at.astimezone(dt.UTC).date()
    _count(ctx, REWARD_DAYS, day.isoformat(), event.reward)
    if event.prompt_version:
        _count(ctx, PROMPT_REWARD_DAYS, day_key(day, event.prompt_version), event.reward)
    if event.model_version:
        _count(ctx, MODEL_REWARD_DAYS, day_key(day, event.model_version), event.reward)
    log.info("tip rewarded", extra={"fields": {"stream": ctx.message.stream, "seq": ctx.message.seq}})


def _count(ctx: Context, table: Table[RewardDay], key: str, reward: float) -> None:
    ctx.add(table, key, "count", 1)
    ctx.add(table, key, "reward_millionths", round(reward * 1_000_000))
    if reward >= ACCEPTED_FROM:
        ctx.add(table, key, "accepted", 1)
