"""What becomes a row: which decisions are used, what a candidate's label is, and what is counted instead."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.card import feature_hash
from models.decisions import ScoreDecided, encode_matrix
from models.errors import TrainingError
from models.training.decisions import Gathering, Key, Reward

NAMES = ("a", "b")
AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
NOW = AT + dt.timedelta(days=30)
HOUR = dt.timedelta(hours=1)
MATRIX = np.array([[1, 2], [3, np.nan]], dtype=np.float32)


def decided(request_id: str = "r1", **changes: Any) -> ScoreDecided:
    """A decision on the candidates t1 and t2."""
    facts: dict[str, Any] = {
        "request_id": request_id,
        "user_id": "ana",
        "now": AT,
        "candidates": ("t1", "t2"),
        "scores": [0.5, 0.5],
        "feature_hash": feature_hash(NAMES),
        "matrix": encode_matrix(MATRIX),
    }
    return ScoreDecided(**facts | changes)


def rewarded(*keys: Key, value: float = 1.0, after: dt.timedelta = HOUR) -> dict[Key, Reward]:
    """The same reward for each of these candidates, so long after the decision."""
    return {key: Reward(value=value, at=AT + after) for key in keys}


def gather(*decisions: ScoreDecided, rewards: Mapping[Key, Reward], **options: Any) -> Gathering:
    """All of them, taken in order."""
    gathering = Gathering(NAMES, rewards, **{"now": NOW} | options)
    for decision in decisions:
        gathering.add(decision)
    return gathering


def test_decision_becomes_a_row_a_candidate() -> None:
    """The row is what was logged, the label the reward or 0, instant and user are the request's."""
    rewards = rewarded(("r1", "t2"), value=0.25)
    dataset = gather(decided(), rewards=rewards).dataset("the log")
    assert np.array_equal(dataset.matrix, MATRIX, equal_nan=True)
    assert dataset.labels.tolist() == [0, 0.25]
    assert dataset.at.tolist() == [AT.timestamp()] * 2
    assert dataset.groups.tolist() == ["ana", "ana"]
    assert (dataset.source, dataset.is_simulated) == ("the log", False)
    assert "at least one reward" in dataset.limits[0]


@given(st.sampled_from([1.0, 0.5, 0.25, 0.1]))
def test_sampled_decision_weighs_what_it_stands_for(rate: float) -> None:
    """One of k that was logged weighs k."""
    gathering = gather(decided(sample_rate=rate), rewards=rewarded(("r1", "t1")))
    assert gathering.dataset("x").weights.tolist() == pytest.approx([1 / rate] * 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"feature_hash": None, "matrix": None}, "no_model", id="degraded"),
        pytest.param({"feature_hash": feature_hash(("b", "a"))}, "other_features", id="other-order"),
        pytest.param({"now": NOW - HOUR}, "unsettled", id="young"),
        pytest.param({"request_id": "r2"}, "unrewarded", id="unrewarded"),
        pytest.param({"candidates": ("t3", "t4")}, "unrewarded", id="another-tip"),
        pytest.param({"candidates": ()}, "unrewarded", id="no-candidates"),
        pytest.param({"matrix": b"1234567"}, "misshapen", id="torn"),
        pytest.param({"matrix": encode_matrix(MATRIX[:, :1])}, "misshapen", id="narrow"),
        pytest.param({"matrix": None}, "misshapen", id="no-matrix"),
        pytest.param({"sample_rate": 0.0}, "misshapen", id="rate"),
    ],
)
def test_decision_that_can_not_be_used_is_counted(changes: dict[str, Any], reason: str) -> None:
    """It is left out, by reason, and nothing can be learned without any other."""
    gathering = gather(decided(**changes), rewards=rewarded(("r1", "t1")))
    assert (dict(gathering.left_out), gathering.used_count) == ({reason: 1}, 0)
    with pytest.raises(TrainingError, match="no decision can be learned from"):
        gathering.dataset("x")


def test_decision_of_another_model_is_used_by_the_names_of_its_features() -> None:
    """Columns are found by name, whatever their order; what that model did not read is missing."""
    other = decided("r2", feature_hash=feature_hash(("c", "b")), matrix=encode_matrix(MATRIX))
    rewards = rewarded(("r1", "t1"), ("r2", "t1"))
    gathering = gather(decided(), other, rewards=rewards, lists=[("c", "b")])
    expected = np.array([[1, 2], [3, np.nan], [np.nan, 2], [np.nan, np.nan]], dtype=np.float32)
    assert np.array_equal(gathering.dataset("x").matrix, expected, equal_nan=True)


def test_request_is_used_once() -> None:
    """A repeated request would count its reward twice: the first decision is taken."""
    gathering = gather(decided(), decided(), rewards=rewarded(("r1", "t1")))
    assert (gathering.used_count, dict(gathering.left_out)) == (1, {"repeated": 1})


@pytest.mark.parametrize(("after_s", "labels"), [(3600, [1, 0]), (3601, None)], ids=["in-time", "late"])
def test_reward_counts_within_its_window(after_s: float, labels: list[float] | None) -> None:
    """At its end it still does; a later one is none."""
    rewards = rewarded(("r1", "t1"), after=dt.timedelta(seconds=after_s))
    gathering = gather(decided(), rewards=rewards, window_s=3600)
    assert (gathering.dataset("x").labels.tolist() if gathering.used_count else None) == labels


def test_decision_is_used_once_its_window_has_passed() -> None:
    """At that very instant, and not before."""
    rewards, day = rewarded(("r1", "t1")), dt.timedelta(days=1)
    assert gather(decided(), rewards=rewards, now=AT + day).used_count == 1
    assert gather(decided(), rewards=rewards, now=AT + day - dt.timedelta(seconds=1)).used_count == 0


def test_newest_rows_are_kept() -> None:
    """Beyond the limit the oldest requests go, whole; the last one stays however large it is."""
    decisions = [decided(f"r{n}", user_id=f"u{n}") for n in range(4)]
    rewards = rewarded(*((f"r{n}", "t1") for n in range(4)))
    gathering = gather(*decisions, rewards=rewards, row_limit=5)
    assert gathering.dataset("x").groups.tolist() == ["u2", "u2", "u3", "u3"]
    assert (gathering.row_count, gathering.left_out["too_old"]) == (4, 2)
    assert gather(decided(), rewards=rewards | rewarded(("r1", "t1")), row_limit=1).row_count == 2


def test_infinite_feature_becomes_the_largest_number() -> None:
    """A number beyond float32 was served as infinity; it stays on its side of every split."""
    matrix = np.array([[np.inf, -np.inf], [0, 0]], dtype=np.float32)
    gathering = gather(decided(matrix=encode_matrix(matrix)), rewards=rewarded(("r1", "t1")))
    limit = np.finfo(np.float32).max
    assert gathering.dataset("x").matrix[0].tolist() == [limit, -limit]
