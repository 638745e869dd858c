"""Rows to learn from, and how they are split.

This module owns ``Dataset`` alone: a matrix with its labels, instants, users and weights, checked by name. Rows come
from models/training/decisions.py or models/training/simulation.py; models/training/fit.py learns from them. Rows are
split in time and never shuffled, since a model is always asked about what comes after its training.
"""

import hashlib
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from models.errors import TrainingError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@attrs.frozen(kw_only=True, eq=False)
class Dataset:
    """Rows to learn from.

    Args:
        names: the columns.
        matrix: (n, k) float32, NaN = missing.
        labels: (n,) float32, 0..1.
        at: (n,) float64, the instant of the decision in POSIX seconds.
        groups: (n,) the user of each row; intervals resample users, as a user's rows are alike.
        weights: (n,) float32, how many rows each stands for; 1 if not given.
        source: in words, for the card.
        is_simulated: no user was behind it.
        limits: what a model can't know because of where the rows come from, a sentence each.

    Raises:
        TrainingError: an array has another shape or type, or a value that can't be; it names the array and the row.
    """

    names: tuple[str, ...]
    matrix: Floats
    labels: Floats
    at: Doubles
    groups: npt.NDArray[Any]
    weights: Floats = attrs.field()
    source: str
    is_simulated: bool
    limits: tuple[str, ...] = ()

    @weights.default
    def _one_each(self) -> Floats:
        return np.ones(len(self.labels), dtype=np.float32)

    def __attrs_post_init__(self) -> None:
        _check_shapes(self)
        _check_values(self)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def data_hash(self) -> str:
        """SHA-256 over the names, rows, labels, instants and weights, whatever the machine's byte order."""
        digest = hashlib.sha256("\n".join((str(len(self)), *self.names, "")).encode())
        for array, dtype in ((self.matrix, "<f4"), (self.labels, "<f4"), (self.at, "<f8"), (self.weights, "<f4")):
            digest.update(np.ascontiguousarray(array, dtype=dtype).tobytes())
        return digest.hexdigest()

    @property
    def positive_ratio(self) -> float:
        """The weighted mean of the labels: what a model without any feature would answer."""
        return float(np.average(self.labels.astype(np.float64), weights=self.weights))

    @property
    def has_one_class(self) -> bool:
        """Whether all labels are the same, so that there is nothing to learn or to rank."""
        return bool(np.all(self.labels == self.labels[0]))

    def column(self, name: str) -> Floats:
        """One feature's values."""
        return self.matrix[:, self.names.index(name)]

    def take(self, rows: npt.NDArray[Any]) -> "Dataset":
        """The rows of these numbers, or those where a mask is true."""
        return attrs.evolve(
            self,
            matrix=self.matrix[rows],
            labels=self.labels[rows],
            at=self.at[rows],
            groups=self.groups[rows],
            weights=self.weights[rows],
        )

    def split_by_time(self, train: float = 0.7, validation: float = 0.15) -> "Parts":
        """Splits into three parts, one after the other in time.

        All rows of one instant, which are mostly those of one request, are in the same part, so the shares are met as
        closely as that allows.

        Args:
            train: the share of rows in the first part.
            validation: the share in the second; the rest is the test.

        Raises:
            TrainingError: the shares leave no test, or the rows are of fewer than three instants.
        """
        if not (train > 0 and validation > 0 and train + validation < 1):
            raise _bad(f"shares: expected two above 0 whose sum is below 1, got {train:g} and {validation:g}")
        instants, counts = np.unique(self.at, return_counts=True)
        if len(instants) < 3:
            raise _bad(f"at: expected rows of at least three instants, got {len(instants)}")
        ends = np.cumsum(counts)
        first = int(np.clip(_nearest(ends, train * len(self)), 1, len(instants) - 2))
        second = int(np.clip(_nearest(ends, (train + validation) * len(self)), first + 1, len(instants) - 1))
        order = np.argsort(self.at, kind="stable")
        parts = np.split(order, [ends[first - 1], ends[second - 1]])
        return Parts(train=self.take(parts[0]), validation=self.take(parts[1]), test=self.take(parts[2]))


@attrs.frozen(kw_only=True, eq=False)
class Parts:
    """A split in time: every instant of a part is later than all of the part before it."""

    train: Dataset
    validation: Dataset
    test: Dataset


def _nearest(ends: npt.NDArray[np.int64], wanted: float) -> int:
    """How many instants to take so that the number of their rows is closest to what is wanted."""
    return int(np.argmin(np.abs(ends - wanted))) + 1


def _check_shapes(data: Dataset) -> None:
    count = len(data.labels)
    if len(set(data.names)) != len(data.names) or not data.names:
        raise _bad("names: expected at least one name, and each once")
    if not count:
        raise _bad("labels: expected at least one row")
    wanted: dict[str, tuple[tuple[int, ...], type | None]] = {
        "matrix": ((count, len(data.names)), np.float32),
        "labels": ((count,), np.float32),
        "at": ((count,), np.float64),
        "groups": ((count,), None),
        "weights": ((count,), np.float32),
    }
    for name, (shape, dtype) in wanted.items():
        array = getattr(data, name)
        if array.shape != shape:
            raise _bad(f"{name}: expected the shape {shape}, got {array.shape}")
        if dtype is not None and array.dtype != dtype:
            raise _bad(f"{name}: expected {np.dtype(dtype)}, got {array.dtype}")


def _check_values(data: Dataset) -> None:
    rows, columns = np.nonzero(np.isinf(data.matrix))
    if len(rows):
        row, column = int(rows[0]), int(columns[0])
        value = data.matrix[row, column]
        raise _bad(f"matrix[{row}].{data.names[column]}: expected a finite number, or NaN for missing, got {value}")
    _check_range("labels", data.labels, (data.labels >= 0) & (data.labels <= 1), "a number from 0 to 1")
    _check_range("at", data.at, np.isfinite(data.at), "a finite number of seconds")
    is_weight = np.isfinite(data.weights) & (data.weights > 0)
    _check_range("weights", data.weights, is_weight, "a finite number above 0")


def _check_range(name: str, array: npt.NDArray[Any], is_good: npt.NDArray[np.bool_], expected: str) -> None:
    if not is_good.all():
        row = int(np.argmin(is_good))
        raise _bad(f"{name}[{row}]: expected {expected}, got {array[row]}")


def _bad(problem: str) -> TrainingError:
    return TrainingError(problem)
