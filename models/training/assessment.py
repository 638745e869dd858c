"""What a card says beyond the figures of all test rows: of parts of them, of groups of users, and of its limits.

Decides without I/O and without xgboost: it takes rows, scores and how much each feature was used.
models/training/fit.py calls it, models/training/metrics.py has the figures.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from models.card import FairnessCheck, Slice
from models.training.dataset import Dataset, Floats, Parts
from models.training.metrics import Scored, measure

SLICED_COUNT = 4
"""Features by which the test rows are cut: those that the model gains most from."""
SLICE_FIGURES = ("auc", "calibration_error")
LEAST_ROW_COUNT = 50
LEAST_USER_COUNT = 20
"""Fewer rows or users say nothing of others like them; such parts and groups are left out."""
NEW_USER_DAYS = 30
SCORE_LIMIT = 0.10
CALIBRATION_LIMIT = 0.05

Mask = npt.NDArray[np.bool_]


def measure_slices(parts: Parts, scored: Scored, gains: Mapping[str, Any], *, seed: int) -> tuple[Slice, ...]:
    """The figures of parts of the test rows, by the features that matter most to the model.

    A feature of many values is cut at the terciles of the rows that were learned from, one of three or fewer by value;
    where it is missing is a part of its own.

    Args:
        scored: the test rows, in their order.
        gains: what each feature adds, by name.
    """
    leading = sorted(gains, key=lambda name: (-float(gains[name]), name))[:SLICED_COUNT]
    return tuple(
        Slice(feature=name, part=part, metrics=measure(scored.take(rows), "test", seed=seed, names=SLICE_FIGURES))
        for name in leading
        for part, rows in _cut(parts.train.column(name), parts.test.column(name))
        if _is_enough(scored, rows)
    )


def _is_enough(scored: Scored, rows: Mask) -> bool:
    return int(rows.sum()) >= LEAST_ROW_COUNT and len(np.unique(scored.groups[rows].astype(str))) >= LEAST_USER_COUNT


def _cut(learned: Floats, values: Floats) -> Iterator[tuple[str, Mask]]:
    known = learned[~np.isnan(learned)]
    distinct = np.unique(known)
    if len(distinct) <= 3:
        for value in distinct:
            yield f"{value:g}", values == value
    else:
        low, high = (float(cut) for cut in np.quantile(known, [1 / 3, 2 / 3]))
        yield f"up to {low:.4g}", values <= low
        yield f"above {low:.4g}, up to {high:.4g}", (values > low) & (values <= high)
        yield f"above {high:.4g}", values > high
    yield "missing", np.isnan(values)


@attrs.frozen
class Grouping:
    """How users are told apart: by a feature, and whether it is at least ``threshold``."""

    feature: str
    threshold: float
    below: str
    above: str


GROUPINGS = (
    Grouping("days_since_signup", NEW_USER_DAYS, f"below {NEW_USER_DAYS} days", f"{NEW_USER_DAYS} days or more"),
    Grouping("is_weekend_active", 0.5, "not active at weekends", "active at weekends"),
)


def check_fairness(test: Dataset, scored: Scored) -> tuple[FairnessCheck, ...]:
    """Compares groups of users: do they get alike scores, and do the scores fit them alike?

    For each grouping whose feature the model reads: the mean score, which may differ by ``SCORE_LIMIT``, and mean score
    less mean label, which may differ by ``CALIBRATION_LIMIT``.
    """
    checks = []
    for grouping in GROUPINGS:
        if grouping.feature not in test.names:
            continue
        groups = {
            name: scored.take(rows)
            for name, rows in _members(grouping, test.column(grouping.feature))
            if _is_enough(scored, rows)
        }
        if len(groups) < 2:
            continue
        scores = {name: _average(rows, rows.scores) for name, rows in groups.items()}
        errors = {name: _average(rows, rows.scores - rows.labels) for name, rows in groups.items()}
        checks.append(_compare(f"mean score by {grouping.feature}", scores, SCORE_LIMIT))
        checks.append(_compare(f"mean score less mean label by {grouping.feature}", errors, CALIBRATION_LIMIT))
    return tuple(checks)


def _members(grouping: Grouping, values: Floats) -> Iterator[tuple[str, Mask]]:
    yield grouping.below, values < grouping.threshold
    yield grouping.above, values >= grouping.threshold
    yield "missing", np.isnan(values)


def _average(rows: Scored, values: npt.NDArray[np.float64]) -> float:
    return float(np.average(values, weights=rows.weights))


def _compare(name: str, groups: dict[str, float], limit: float) -> FairnessCheck:
    gap = max(groups.values()) - min(groups.values())
    return FairnessCheck(name=name, groups=groups, gap=gap, limit=limit, has_passed=gap <= limit)


def limits_of(dataset: Dataset, parts: Parts) -> tuple[str, ...]:
    """Where the model must not be trusted: what its rows say of themselves, and what can be seen in them."""
    limits = list(dataset.limits)
    empty = [name for name in dataset.names if np.isnan(parts.train.column(name)).all()]
    if empty:
        limits.append(f"Missing in every row that it learned from, and so ignored: {', '.join(empty)}.")
    users = len(np.unique(parts.test.groups.astype(str)))
    limits.append(f"Measured on {len(parts.test)} rows of {users} users, all later than what it learned from.")
    limits.append(
        "A score is the chance of a reward, not what a tip causes: a tip that needs no showing may score high."
    )
    return tuple(limits)
