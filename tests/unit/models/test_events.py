"""The outside contract of the events that ship: names, types, defaults, bounds."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from models.codec import decoder_for, encode_json
from models.errors import PayloadError
from models.events import TaskSynced, TipFeedback, TipRewarded

AT = "2026-03-01T12:00:00+02:00"
INSTANT = dt.datetime(2026, 3, 1, 10, tzinfo=dt.UTC)
SYNCED = {"user_id": "u", "provider": "p", "synced_at": AT}
FEEDBACK = {"user_id": "u", "tip_id": "t", "reaction": "accepted", "occurred_at": AT}
REWARDED = {"user_id": "u", "tip_id": "t", "request_id": "r", "reward": 0.25, "occurred_at": AT}

DECODERS: dict[type, Callable[[bytes], Any]] = {cls: decoder_for(cls) for cls in (TaskSynced, TipFeedback, TipRewarded)}


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        pytest.param(SYNCED, TaskSynced(user_id="u", provider="p", synced_at=INSTANT), id="synced"),
        pytest.param(
            SYNCED | {"task_count": 0, "cursor": "", "event_id": "e"},
            TaskSynced(user_id="u", provider="p", synced_at=INSTANT, task_count=0, cursor="", event_id="e"),
            id="synced-whole",
        ),
        pytest.param(
            FEEDBACK, TipFeedback(user_id="u", tip_id="t", reaction="accepted", occurred_at=INSTANT), id="feedback"
        ),
        pytest.param(
            REWARDED | {"model_version": "m", "prompt_version": "v1"},
            TipRewarded(
                user_id="u",
                tip_id="t",
                request_id="r",
                reward=0.25,
                model_version="m",
                prompt_version="v1",
                occurred_at=INSTANT,
            ),
            id="rewarded",
        ),
    ],
)
def test_event_decodes_with_its_defaults(payload: dict[str, Any], event: object) -> None:
    """A minimal and a whole payload become the record that the contract promises, extra fields ignored."""
    assert DECODERS[type(event)](encode_json(payload | {"later": 1})) == event


@pytest.mark.parametrize(
    ("cls", "payload", "required"),
    [
        pytest.param(TaskSynced, SYNCED, {"user_id", "provider", "synced_at"}, id="synced"),
        pytest.param(TipFeedback, FEEDBACK, {"user_id", "tip_id", "reaction", "occurred_at"}, id="feedback"),
        pytest.param(
            TipRewarded, REWARDED, {"user_id", "tip_id", "request_id", "reward", "occurred_at"}, id="rewarded"
        ),
    ],
)
def test_event_requires_exactly_the_contract_fields(cls: type, payload: dict[str, Any], required: set[str]) -> None:
    """Each required field is missed by its name, and a null in its place is refused."""
    assert set(payload) == required
    for field in required:
        with pytest.raises(PayloadError, match=f"^{field}: missing$"):
            DECODERS[cls](encode_json({name: value for name, value in payload.items() if name != field}))
        with pytest.raises(PayloadError, match=f"^{field}: expected .*, got null$"):
            DECODERS[cls](encode_json(payload | {field: None}))


@pytest.mark.parametrize(
    ("cls", "payload", "reason"),
    [
        pytest.param(TaskSynced, SYNCED | {"user_id": ""}, "user_id: expected at least one", id="empty-user"),
        pytest.param(TaskSynced, SYNCED | {"provider": ""}, "provider: expected at least one", id="empty-provider"),
        pytest.param(TaskSynced, SYNCED | {"task_count": -1}, "task_count: expected a number from 0", id="negative"),
        pytest.param(TaskSynced, SYNCED | {"task_count": 2**53 + 1}, "task_count: expected a number", id="beyond-2-53"),
        pytest.param(TaskSynced, SYNCED | {"task_count": 1.5}, "task_count: expected int", id="fraction"),
        pytest.param(TaskSynced, SYNCED | {"synced_at": AT[:-6]}, "synced_at: expected an instant with", id="naive"),
        pytest.param(TaskSynced, SYNCED | {"synced_at": "soon"}, "synced_at: invalid RFC3339", id="no-instant"),
        pytest.param(TipFeedback, FEEDBACK | {"reaction": "liked"}, "reaction: invalid enum value", id="reaction"),
        pytest.param(TipFeedback, FEEDBACK | {"tip_id": ""}, "tip_id: expected at least one", id="feedback-tip"),
        pytest.param(TipFeedback, FEEDBACK | {"user_id": ""}, "user_id: expected at least one", id="feedback-user"),
        pytest.param(TipFeedback, FEEDBACK | {"occurred_at": AT[:-6]}, "occurred_at: expected an", id="feedback-naive"),
        pytest.param(TipRewarded, REWARDED | {"reward": 1.01}, "reward: expected a number from 0 to 1", id="above-1"),
        pytest.param(TipRewarded, REWARDED | {"reward": -0.01}, "reward: expected a number from 0", id="below-0"),
        pytest.param(TipRewarded, REWARDED | {"reward": True}, "reward: expected float, got bool", id="bool"),
        pytest.param(TipRewarded, REWARDED | {"user_id": ""}, "user_id: expected at least one", id="rewarded-user"),
        pytest.param(TipRewarded, REWARDED | {"tip_id": ""}, "tip_id: expected at least one", id="rewarded-tip"),
        pytest.param(TipRewarded, REWARDED | {"request_id": ""}, "request_id: expected at", id="rewarded-request"),
        pytest.param(TipRewarded, REWARDED | {"occurred_at": AT[:-6]}, "occurred_at: expected an", id="rewarded-naive"),
    ],
)
def test_event_with_a_bad_value_names_the_field(cls: type, payload: dict[str, Any], reason: str) -> None:
    """A value outside the contract is refused under its path."""
    with pytest.raises(PayloadError, match=f"^{reason}"):
        DECODERS[cls](encode_json(payload))


@pytest.mark.parametrize("reaction", ["accepted", "dismissed", "completed", "snoozed"])
def test_feedback_takes_each_reaction(reaction: str) -> None:
    """The four reactions of the contract decode."""
    assert DECODERS[TipFeedback](encode_json(FEEDBACK | {"reaction": reaction})).reaction == reaction


@pytest.mark.parametrize("reward", [0, 1, 0.5])
def test_reward_takes_its_bounds(reward: float) -> None:
    """Zero and one are rewards, as integers too."""
    assert DECODERS[TipRewarded](encode_json(REWARDED | {"reward": reward})).reward == reward
