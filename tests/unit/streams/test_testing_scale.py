"""Scaled tables wait less and are otherwise the ones that they were."""

import attrs
import pytest

from models.errors import Retry
from state.tables import Table
from streams.context import Context
from streams.policy import Policy
from streams.subjects import SubjectTable
from streams.testing import run_handler
from streams.testing_scale import scaled_policy, scaled_table


@attrs.frozen(kw_only=True)
class Step:
    user_id: str
    delay_s: float | None = None


@attrs.frozen(kw_only=True)
class Walk:
    steps: int = 0


subjects = SubjectTable("steps", tables=[Table("walks", Walk)])


@subjects.on("signals.step", policy=Policy(backoff_s=(60,)))
async def step(event: Step, ctx: Context) -> None:
    """Asks for another time."""
    raise Retry("later", delay_s=event.delay_s)


def test_scaled_policy_multiplies_waits() -> None:
    """Backoff and the time of retries shrink; an attempt keeps a second, or what it had if that was less."""
    policy = Policy(backoff_s=(1, 5), retry_for_s=3600, timeout_s=30, max_deliver=3)
    assert scaled_policy(policy, 0.01) == Policy(backoff_s=(0.01, 0.05), retry_for_s=36, timeout_s=1, max_deliver=3)
    assert scaled_policy(Policy(timeout_s=0.5), 0.01).timeout_s == 0.5
    assert scaled_policy(Policy(timeout_s=300), 0.1).timeout_s == 30
    assert scaled_policy(Policy(isolate="process"), 0.1).isolate is None


@pytest.mark.parametrize(
    ("delay_s", "expected"), [(None, 0.6), (500.0, 5.0), (0.0, 0.0)], ids=["backoff", "asked", "at-once"]
)
async def test_scaled_table_multiplies_what_a_retry_asks_for(delay_s: float | None, expected: float) -> None:
    """A hundredth of the policy's minute, or of what the handler says; the error's line stays the handler's."""
    scaled = scaled_table(subjects, 0.01)
    outcome = await run_handler(scaled, {"user_id": "ada", "delay_s": delay_s}, subject="signals.step")
    assert outcome.delay_s == pytest.approx(expected)
    assert outcome.where is not None and outcome.where.startswith("test_testing_scale.py:")


def test_scaled_table_leaves_the_original_alone() -> None:
    """The copy has handlers of its own; a scale of one needs none."""
    scaled = scaled_table(subjects, 0.5)
    assert scaled.handlers[0].policy.backoff_s == (30,)
    assert subjects.handlers[0].policy.backoff_s == (60,)
    assert scaled.handlers[0].name == "steps.step"
    assert scaled_table(subjects, 1) is subjects
