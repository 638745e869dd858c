"""The figures against plain definitions, and what their intervals are made of."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.training.dataset import Doubles
from models.training.metrics import Scored, auc, brier, calibration_error, log_loss, measure

ROW = st.tuples(st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.sampled_from([1.0, 2.0]))
ROWS = st.lists(ROW, min_size=1, max_size=25)


def columns(rows: list[tuple[float, float, float]]) -> tuple[Doubles, Doubles, Doubles]:
    """Labels, scores, and weights as one round."""
    labels, scores, weights = np.array(rows, dtype=np.float64).T
    return labels, scores, weights[None, :]


def make_scored(row_count: int = 400, user_count: int = 40, *, seed: int = 0) -> Scored:
    """Rows whose label comes true as often as the score says; all rows of a user have the same score and label."""
    random = np.random.default_rng(seed)
    user = np.arange(row_count) % user_count
    score = random.random(user_count)
    label = (random.random(user_count) < score).astype(np.float64)
    groups = np.array([f"u{number}" for number in user], dtype=object)
    return Scored(labels=label[user], scores=score[user], weights=np.ones(row_count), groups=groups)


def brute_auc(rows: list[tuple[float, float, float]]) -> float:
    """Over all pairs, of which the first counts as positive and the second as negative by their labels."""
    won = total = 0.0
    for (label, score, weight), (other_label, other_score, other_weight) in itertools.product(rows, rows):
        pairs = weight * label * other_weight * (1 - other_label)
        total += pairs
        won += pairs * (1.0 if score > other_score else 0.5 if score == other_score else 0.0)
    return won / total if total else math.nan


@given(ROWS)
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[float, float, float]]) -> None:
    """With ties, weights and labels between 0 and 1 it is what counting all pairs gives."""
    assert auc(*columns(rows))[0] == pytest.approx(brute_auc(rows), nan_ok=True)


@given(ROWS)
def test_weight_of_two_is_a_row_twice(rows: list[tuple[float, float, float]]) -> None:
    """So that a bootstrap may weigh rows instead of repeating them."""
    twice = [(label, score, 1.0) for label, score, weight in rows for _ in range(int(weight))]
    for figure in (auc, log_loss, brier):
        assert figure(*columns(rows))[0] == pytest.approx(figure(*columns(twice))[0], nan_ok=True)


def test_losses_of_two_rows() -> None:
    """Log loss (-ln 0.8 - ln 0.5) / 2, Brier score (0.2² + 0.5²) / 2; a sure and wrong score costs a finite loss."""
    rows = [(1.0, 0.8, 1.0), (0.0, 0.5, 1.0)]
    assert log_loss(*columns(rows))[0] == pytest.approx(-(math.log(0.8) + math.log(0.5)) / 2)
    assert brier(*columns(rows))[0] == pytest.approx((0.04 + 0.25) / 2)
    assert log_loss(*columns([(1.0, 0.0, 1.0)]))[0] == pytest.approx(-math.log(1e-7))


def test_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    """Ten rows of the score 0.2, one a bin, two of them positive: (8 * 0.2 + 2 * 0.8) / 10; sure ones have none."""
    rows = [(float(n < 2), 0.2, 1.0) for n in range(10)]
    assert calibration_error(*columns(rows))[0] == pytest.approx((8 * 0.2 + 2 * 0.8) / 10)
    assert calibration_error(*columns([(1.0, 1.0, 1.0), (0.0, 0.0, 1.0)]))[0] == 0


def test_measure_gives_every_figure_with_an_interval_around_it() -> None:
    """The value lies in its interval, the rows are counted, and the same seed gives the same."""
    scored = make_scored()
    metrics = measure(scored, "test", seed=1)
    assert [one.name for one in metrics] == ["auc", "log_loss", "brier", "calibration_error"]
    assert all(one.low <= one.value <= one.high and one.low < one.high and one.row_count == 400 for one in metrics)
    assert measure(scored, "test", seed=1) == metrics


def test_intervals_resample_users_and_not_rows() -> None:
    """Rows that repeat those of the same users add nothing: 4,000 rows of 40 users have the interval of 400."""
    [few], [many] = (measure(make_scored(count), "test", seed=1, names=("brier",)) for count in (400, 4000))
    assert (few.low, few.value, few.high) == pytest.approx((many.low, many.value, many.high))


def test_figure_that_can_not_be_said_is_left_out() -> None:
    """Rows of one class have a loss and no AUC; rounds that draw one class say nothing of the AUC."""
    scored = make_scored()
    positive = scored.take(scored.labels == 1)
    assert "auc" not in {one.name for one in measure(positive, "test", seed=0)}
    one_other = make_scored(3, 3).take(np.array([0, 1, 2]))
    lone = Scored(
        labels=np.array([1.0, 1.0, 0.0]), scores=one_other.scores, weights=one_other.weights, groups=one_other.groups
    )
    [metric] = measure(lone, "test", seed=0, names=("auc",))
    assert 0 <= metric.low <= metric.value <= metric.high <= 1
