"""The fit: from rows to an artifact and its card.

Plain ``xgboost.train`` on the first part in time, stopped early on the second, measured on the third, which the fit
never sees. The same rows and parameters give the same bytes. It writes nothing: the registry takes what comes out
(models/registry.py). This module alone imports xgboost to train, and only when asked to.
"""

import datetime as dt
import hashlib
from typing import TYPE_CHECKING

import attrs
import numpy as np

from models.card import Card, Input, TrainingData, feature_hash
from models.errors import TrainingError
from models.training.assessment import check_fairness, limits_of, measure_slices
from models.training.dataset import Dataset, Parts
from models.training.metrics import Scored, measure

if TYPE_CHECKING:
    import xgboost

LEAST_ROW_COUNT = 500


@attrs.frozen(kw_only=True)
class Parameters:
    """How to fit.

    Args:
        tree_count: the most trees; fewer when the validation part stops getting better.
        patience_count: trees without a better log loss on it before the fit stops.
        seed: of the fit and of the intervals.
    """

    tree_count: int = 200
    max_depth: int = 4
    learning_rate: float = 0.08
    min_child_weight: float = 5.0
    l2: float = 1.0
    max_bin: int = 256
    patience_count: int = 20
    seed: int = 0

    def booster(self, base_score: float) -> dict[str, float | int | str]:
        """As xgboost spells them; one thread, since more change the order of sums and so the bytes."""
        return {
            "objective": "binary:logistic",
            "eval_metric": "logloss",
            "tree_method": "hist",
            "nthread": 1,
            "max_depth": self.max_depth,
            "eta": self.learning_rate,
            "min_child_weight": self.min_child_weight,
            "lambda": self.l2,
            "max_bin": self.max_bin,
            "base_score": base_score,
            "seed": self.seed,
        }


@attrs.frozen(kw_only=True)
class Trained:
    """What comes out: the booster as UBJ, and its card, bound to it by hash."""

    artifact: bytes = attrs.field(repr=False)
    card: Card


def train(
    dataset: Dataset, *, name: str, inputs: tuple[Input, ...], parameters: Parameters, now: dt.datetime
) -> Trained:
    """Learns from the rows and measures what was learned.

    Args:
        name: the model's.
        inputs: what the columns are, in their order.

    Raises:
        TrainingError: the inputs are not the columns, or the rows are too few or all alike.
    """
    if tuple(one.name for one in inputs) != dataset.names:
        raise TrainingError(f"inputs: expected the dataset's columns {', '.join(dataset.names)}, in their order")
    _check_enough(dataset)
    parts = dataset.split_by_time()
    for part, rows in (("first 70 %, to learn from,", parts.train), ("last 15 %, to measure by,", parts.test)):
        if rows.has_one_class:
            raise TrainingError(f"all labels of the {part} are {rows.labels[0]:g}")
    settings = parameters.booster(parts.train.positive_ratio)
    booster = fit(parts, settings, parameters)
    artifact = bytes(booster.save_raw("ubj"))
    scored = score_rows(booster, parts.test)
    slices = measure_slices(parts, scored, booster.get_score(importance_type="gain"), seed=parameters.seed)
    card = Card(
        name=name,
        created_at=now,
        artifact_hash=hashlib.sha256(artifact).hexdigest(),
        feature_hash=feature_hash(dataset.names),
        inputs=inputs,
        training=_describe(dataset),
        parameters=settings | {"tree_count": booster.num_boosted_rounds()},
        metrics=measure(scored, "test", seed=parameters.seed),
        slices=slices,
        fairness=check_fairness(parts.test, scored),
        limits=limits_of(dataset, parts),
    )
    return Trained(artifact=artifact, card=card)


def fit(parts: Parts, settings: dict[str, float | int | str], parameters: Parameters) -> "xgboost.Booster":
    """Fits trees to the first part and keeps those up to the best on the second."""
    import xgboost  # takes 0.3 s and 60 MB, which a process that does not train goes without

    first, second = (
        xgboost.DMatrix(part.matrix, part.labels, weight=part.weights, feature_names=list(part.names), nthread=1)
        for part in (parts.train, parts.validation)
    )
    booster = xgboost.train(
        settings,
        first,
        num_boost_round=parameters.tree_count,
        evals=[(second, "validation")],
        early_stopping_rounds=parameters.patience_count,
        verbose_eval=False,
    )
    return booster[: booster.best_iteration + 1]


def score_rows(booster: "xgboost.Booster", rows: Dataset) -> Scored:
    """What a booster says of rows, beside what became of them."""
    return Scored(
        labels=rows.labels.astype(np.float64),
        scores=np.asarray(booster.inplace_predict(rows.matrix), dtype=np.float64),
        weights=rows.weights.astype(np.float64),
        groups=rows.groups,
    )


def _check_enough(dataset: Dataset) -> None:
    """Refuses rows from which nothing can be learned, saying what there is."""
    if len(dataset) < LEAST_ROW_COUNT:
        raise TrainingError(f"expected at least {LEAST_ROW_COUNT} rows, got {len(dataset)}")
    if dataset.has_one_class:
        raise TrainingError(f"all {len(dataset)} rows have the label {dataset.labels[0]:g}")


def _describe(dataset: Dataset) -> TrainingData:
    first, last = (dt.datetime.fromtimestamp(float(at), dt.UTC) for at in (dataset.at.min(), dataset.at.max()))
    return TrainingData(
        source=dataset.source,
        is_simulated=dataset.is_simulated,
        row_count=len(dataset),
        positive_ratio=dataset.positive_ratio,
        first_at=first,
        last_at=last,
        data_hash=dataset.data_hash,
    )
