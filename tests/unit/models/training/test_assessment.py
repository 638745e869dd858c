"""What a card says of parts of the rows and of groups of users, where each number can be told in advance."""

import numpy as np
import pytest
from training_kit import make_dataset

from models.card import FairnessCheck
from models.training.assessment import check_fairness, limits_of, measure_slices
from models.training.dataset import Dataset, Parts
from models.training.metrics import Scored


def score(rows: Dataset, scores: float | np.ndarray = 0.5) -> Scored:
    """The rows with these scores."""
    return Scored(
        labels=rows.labels.astype(np.float64),
        scores=np.broadcast_to(np.asarray(scores, dtype=np.float64), len(rows)).copy(),
        weights=rows.weights.astype(np.float64),
        groups=rows.groups,
    )


def with_column(values: np.ndarray, name: str = "days_since_signup") -> Dataset:
    """Rows with one column alone."""
    return make_dataset(len(values), names=(name,), matrix=values.astype(np.float32)[:, None])


def split(rows: Dataset) -> Parts:
    """All rows as each part, so that the terciles are those of the test rows."""
    return Parts(train=rows, validation=rows, test=rows)


def sizes(values: np.ndarray) -> dict[str, int]:
    """The parts of a column, and their rows."""
    rows = with_column(values)
    found = measure_slices(split(rows), score(rows), {"days_since_signup": 1.0}, seed=0)
    return {one.part: one.metrics[-1].row_count for one in found}


def test_column_of_many_values_is_cut_at_its_terciles() -> None:
    """0 to 899 in three of 300 rows each; 100 rows without a value are a part of their own."""
    values = np.concatenate([np.arange(900), np.full(100, np.nan)])
    assert sizes(values) == {"up to 299.7": 300, "above 299.7, up to 599.3": 300, "above 599.3": 300, "missing": 100}


def test_column_of_few_values_is_cut_by_value() -> None:
    """A flag has two parts; one of fewer than 50 rows is left out, as one of fewer than 20 users would be."""
    assert sizes(np.repeat([0, 1, np.nan], [300, 251, 49])) == {"0": 300, "1": 251}


def test_part_of_few_users_is_left_out() -> None:
    """A hundred rows of one user say nothing of others."""
    rows = make_dataset(500, groups=np.array(["same"] * 250 + [f"u{n}" for n in range(250)], dtype=object))
    rows = Dataset(
        names=("flag",),
        matrix=np.repeat(np.array([[0], [1]], dtype=np.float32), 250, axis=0),
        labels=rows.labels,
        at=rows.at,
        groups=rows.groups,
        source="x",
        is_simulated=False,
    )
    assert [one.part for one in measure_slices(split(rows), score(rows), {"flag": 1.0}, seed=0)] == ["1"]


def test_slices_are_by_what_the_model_gains_most_from() -> None:
    """The feature of more gain comes first; one that no tree used is not looked at."""
    rows = make_dataset(600)
    found = measure_slices(split(rows), score(rows), {"noise": 2.0, "strength": 3.0}, seed=0)
    assert list(dict.fromkeys(one.feature for one in found)) == ["strength", "noise"]
    assert measure_slices(split(rows), score(rows), {}, seed=0) == ()


def new_and_old(new_score: float, old_score: float) -> dict[str, FairnessCheck]:
    """The checks of 500 rows of new and 500 of old users, half of each rewarded."""
    rows = with_column(np.repeat([29.0, 30.0], 500))
    rows = make_dataset(1000, names=rows.names, matrix=rows.matrix, labels=np.tile([0, 1], 500).astype(np.float32))
    checks = check_fairness(rows, score(rows, np.repeat([new_score, old_score], 500)))
    return {one.name: one for one in checks}


@pytest.mark.parametrize(
    ("scores", "passed"),
    [((0.5, 0.52), [True, True]), ((0.46, 0.54), [True, False]), ((0.4, 0.6), [False, False])],
    ids=["alike", "calibrated-unlike", "apart"],
)
def test_new_users_are_compared_with_old_ones(scores: tuple[float, float], passed: list[bool]) -> None:
    """Mean scores may differ by 0.10, mean score less mean label by 0.05; the gap is told in any case."""
    checks = new_and_old(*scores)
    assert [one.has_passed for one in checks.values()] == passed
    assert [one.gap for one in checks.values()] == pytest.approx([scores[1] - scores[0]] * 2)
    means = checks["mean score by days_since_signup"]
    assert means.groups == pytest.approx({"below 30 days": scores[0], "30 days or more": scores[1]})


def test_group_of_few_rows_is_not_compared() -> None:
    """With one group left there is nothing to compare, and without the feature there are no groups."""
    rows = with_column(np.repeat([1.0, 100.0], [49, 500]))
    assert check_fairness(rows, score(rows)) == ()
    assert check_fairness(make_dataset(100), score(make_dataset(100))) == ()


def test_weekend_users_and_those_without_the_feature_are_compared() -> None:
    """Missing is a group too."""
    rows = with_column(np.repeat([0, 1, np.nan], 100), "is_weekend_active")
    [means, _] = check_fairness(rows, score(rows))
    assert list(means.groups) == ["not active at weekends", "active at weekends", "missing"]


def test_limits_name_what_was_missing_in_all_rows() -> None:
    """After the limits of the rows themselves come those that can be seen in them."""
    matrix = make_dataset().matrix.copy()
    matrix[:, 1] = np.nan
    rows = make_dataset(matrix=matrix, limits=("One world only.",))
    said = limits_of(rows, rows.split_by_time())
    assert said[:2] == ("One world only.", "Missing in every row that it learned from, and so ignored: noise.")
    assert said[2] == "Measured on 150 rows of 50 users, all later than what it learned from."
