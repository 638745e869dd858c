"""Rows to learn from: what is refused and how it is named, the hash of the rows, and the split in time."""

from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_kit import make_dataset

from models.errors import TrainingError
from models.training.dataset import Dataset

INSTANTS = st.lists(st.integers(0, 20), min_size=3, max_size=60).filter(lambda at: len(set(at)) >= 3)


def with_value(array: str, row: int, value: float) -> dict[str, Any]:
    """Ten rows' array with one value changed."""
    changed = getattr(make_dataset(10), array).copy()
    changed[row] = value
    return {array: changed}


def at(*instants: float) -> Dataset:
    """Rows of these instants."""
    return make_dataset(len(instants), at=np.array(instants, dtype=np.float64))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param({"names": ("a", "a")}, "names: expected at least one name, and each once", id="twice"),
        pytest.param({"names": ()}, "names: expected at least one name, and each once", id="nameless"),
        pytest.param({"names": ("a",)}, r"matrix: expected the shape \(10, 1\), got \(10, 2\)", id="width"),
        pytest.param({"labels": np.ones(9, np.float32)}, r"matrix: expected the shape \(9, 2\)", id="length"),
        pytest.param({"labels": np.ones(0, np.float32)}, "labels: expected at least one row", id="empty"),
        pytest.param({"labels": np.ones(10)}, "labels: expected float32, got float64", id="type"),
        pytest.param({"groups": np.ones(3)}, r"groups: expected the shape \(10,\), got \(3,\)", id="groups"),
        pytest.param(with_value("labels", 3, 1.5), r"labels\[3\]: expected a number from 0 to 1, got 1.5", id="label"),
        pytest.param(with_value("labels", 0, np.nan), r"labels\[0\]: expected a number from 0 to 1", id="nan-label"),
        pytest.param(with_value("at", 9, np.nan), r"at\[9\]: expected a finite number of seconds, got nan", id="at"),
        pytest.param(with_value("weights", 1, 0), r"weights\[1\]: expected a finite number above 0", id="weight"),
        pytest.param(
            with_value("matrix", 2, -np.inf), r"matrix\[2\]\.strength: expected a finite number, or NaN", id="infinite"
        ),
    ],
)
def test_dataset_refuses_what_can_not_be_by_name(changes: dict[str, Any], problem: str) -> None:
    """The array is named, and the row where one value is wrong."""
    with pytest.raises(TrainingError, match=f"^training data: {problem}"):
        make_dataset(10, **changes)


def test_dataset_takes_missing_values() -> None:
    """NaN in the matrix is a missing value, and each row weighs 1 unless said otherwise."""
    dataset = make_dataset(10, matrix=np.full((10, 2), np.nan, dtype=np.float32))
    assert np.isnan(dataset.column("noise")).all()
    assert dataset.weights.tolist() == [1.0] * 10


@pytest.mark.parametrize("field", ["names", "matrix", "labels", "at", "weights"])
def test_data_hash_tells_rows_apart(field: str) -> None:
    """The same rows have the same hash, and a change of any array, or of the names, another one."""
    dataset = make_dataset(10)
    change = ("strength", "other") if field == "names" else getattr(dataset, field) / 2
    assert make_dataset(10).data_hash == dataset.data_hash
    assert attrs.evolve(dataset, **{field: change}).data_hash != dataset.data_hash


def test_positive_ratio_is_weighted() -> None:
    """A row of weight 3 counts as three: (3 * 1 + 1 * 0) / 4."""
    labels, weights = np.array([1, 0], np.float32), np.array([3, 1], np.float32)
    assert make_dataset(2, labels=labels, weights=weights).positive_ratio == 0.75


@given(INSTANTS, st.sampled_from([(0.7, 0.15), (0.1, 0.1), (0.5, 0.49)]))
def test_split_never_lets_a_later_instant_into_an_earlier_part(
    instants: list[int], shares: tuple[float, float]
) -> None:
    """Each part ends before the next one begins, none is empty, and every row is in exactly one."""
    parts = at(*instants).split_by_time(*shares)
    assert parts.train.at.max() < parts.validation.at.min()
    assert parts.validation.at.max() < parts.test.at.min()
    every = np.concatenate([parts.train.at, parts.validation.at, parts.test.at])
    assert every.tolist() == sorted(instants)


def test_split_keeps_rows_whole() -> None:
    """Values, labels, users and weights go with their row: 20 rows in reverse order give 14, 3 and 3."""
    dataset = make_dataset(20, weights=np.arange(1, 21, dtype=np.float32))
    parts = dataset.take(np.arange(20)[::-1]).split_by_time()
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [14, 3, 3]
    for field in ("matrix", "labels", "at", "groups", "weights"):
        assert np.array_equal(getattr(parts.test, field), getattr(dataset, field)[17:])


@pytest.mark.parametrize(
    ("rows", "shares", "problem"),
    [
        pytest.param(at(1, 1, 2, 2), (0.7, 0.15), "at: expected rows of at least three instants, got 2", id="instants"),
        pytest.param(at(1, 2, 3), (0.7, 0.3), "shares: expected two above 0 whose sum is below 1", id="no-test"),
        pytest.param(at(1, 2, 3), (0.0, 0.3), "shares: expected two above 0", id="no-train"),
    ],
)
def test_split_refuses_what_leaves_a_part_empty(rows: Dataset, shares: tuple[float, float], problem: str) -> None:
    """Three parts need three instants, and a share each."""
    with pytest.raises(TrainingError, match=problem):
        rows.split_by_time(*shares)
