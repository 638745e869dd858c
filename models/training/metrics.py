"""Figures of a model's scores against labels, and their intervals.

Every figure takes weights of shape (r, n) and returns r values: one row of weights is the figure itself, and a
bootstrap is a matter of more rows, all computed at once. Labels are 0..1: a row with the label 0.3 counts as 0.3 of a
positive and 0.7 of a negative one. numpy alone; models/training/assessment.py decides what is measured on which rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from models.card import Metric, Split
from models.training.dataset import Doubles

ROUNDS = 200
LEVEL = 0.95
BIN_COUNT = 10
EPSILON = 1e-7
_CHUNK_SIZE = 2_000_000
"""Weights that are held at once, as 8-byte numbers."""

Figure = Callable[[Doubles, Doubles, Doubles], Doubles]
"""Of labels (n,), scores (n,) and weights (r, n) makes r values; NaN where it can't be said."""


def log_loss(labels: Doubles, scores: Doubles, weights: Doubles) -> Doubles:
    """Mean negative log likelihood, scores cut to EPSILON from 0 and 1."""
    clipped = np.clip(scores, EPSILON, 1 - EPSILON)
    return _mean(-(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped)), weights)


def brier(labels: Doubles, scores: Doubles, weights: Doubles) -> Doubles:
    """Mean squared difference."""
    return _mean((labels - scores) ** 2, weights)


def auc(labels: Doubles, scores: Doubles, weights: Doubles) -> Doubles:
    """The chance that a positive row scores above a negative one, ties counting half (Mann and Whitney's U).

    NaN where all rows are positive, or all negative.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # one group for each score that occurs
    sorted_weights, sorted_labels = weights[:, order], labels[order]
    positive = np.add.reduceat(sorted_weights * sorted_labels, starts, axis=1)
    negative = np.add.reduceat(sorted_weights * (1 - sorted_labels), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    won = (positive * (below + negative / 2)).sum(axis=1)
    return _divide(won, positive.sum(axis=1) * negative.sum(axis=1))


def calibration_error(labels: Doubles, scores: Doubles, weights: Doubles) -> Doubles:
    """How far mean score and mean label are apart, on average over ten bins of equally many rows, by score."""
    rank = np.empty(len(scores), dtype=np.int64)
    rank[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    bins = np.zeros((len(scores), BIN_COUNT))
    bins[np.arange(len(scores)), rank * BIN_COUNT // len(scores)] = scores - labels
    return _divide(np.abs(weights @ bins).sum(axis=1), weights.sum(axis=1))


FIGURES: dict[str, Figure] = {
    "auc": auc,
    "log_loss": log_loss,
    "brier": brier,
    "calibration_error": calibration_error,
}


@attrs.frozen(kw_only=True, eq=False)
class Scored:
    """Rows with what a model said of them.

    Args:
        labels: (n,) 0..1.
        scores: (n,) 0..1.
        weights: (n,) above 0.
        groups: (n,) the user of each row.
    """

    labels: Doubles
    scores: Doubles
    weights: Doubles
    groups: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[Any]) -> "Scored":
        """The rows of these numbers, or those where a mask is true."""
        return Scored(
            labels=self.labels[rows], scores=self.scores[rows], weights=self.weights[rows], groups=self.groups[rows]
        )


def measure(scored: Scored, split: Split, *, seed: int, names: Sequence[str] = tuple(FIGURES)) -> tuple[Metric, ...]:
    """The figures that can be said of some rows, each with its interval.

    The interval is that of a bootstrap over users, of ``ROUNDS`` rounds: a round draws as many users as there are, with
    replacement, and takes all rows of each as often as it was drawn. Rows of a user are alike, so drawing rows would
    make the intervals too narrow.

    Args:
        seed: the same one gives the same intervals.
        names: which of ``FIGURES``; one that can't be said of these rows is left out.
    """
    own = scored.weights[None, :]
    values = {name: FIGURES[name](scored.labels, scored.scores, own)[0] for name in names}
    known = {name: value for name, value in values.items() if np.isfinite(value)}
    drawn: dict[str, list[Doubles]] = {name: [] for name in known}
    for weights in _resampled(scored, seed):
        for name in known:
            drawn[name].append(FIGURES[name](scored.labels, scored.scores, weights))
    return tuple(_metric(name, float(known[name]), np.concatenate(drawn[name]), split, len(scored)) for name in known)


def _metric(name: str, value: float, drawn: Doubles, split: Split, row_count: int) -> Metric:
    said = drawn[np.isfinite(drawn)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(said, [tail, 1 - tail]) if len(said) else (value, value)
    return Metric(
        name=name,
        split=split,
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        level=LEVEL,
        row_count=row_count,
    )


def _resampled(scored: Scored, seed: int) -> Iterator[Doubles]:
    """Weights of the rounds, (r, n) at a time."""
    users, user_of_row = np.unique(scored.groups.astype(str), return_inverse=True)
    random = np.random.default_rng(seed)
    at_once = max(1, _CHUNK_SIZE // len(scored))
    for start in range(0, ROUNDS, at_once):
        size = min(at_once, ROUNDS - start)
        counts = random.multinomial(len(users), np.full(len(users), 1 / len(users)), size=size)
        yield counts[:, user_of_row] * scored.weights


def _mean(values: Doubles, weights: Doubles) -> Doubles:
    return _divide(weights @ values, weights.sum(axis=1))


def _divide(above: Doubles, below: Doubles) -> Doubles:
    """NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
