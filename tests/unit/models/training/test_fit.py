"""The fit: the same rows make the same bytes, the card says what came out, useless rows are refused."""

import datetime as dt
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_kit import INPUTS, NAMES, make_dataset

from models.card import feature_hash
from models.errors import TrainingError
from models.registry import Registry
from models.training.dataset import Dataset
from models.training.fit import Parameters, Trained, fit, score_rows, train
from models.training.metrics import log_loss

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def fitted(dataset: Dataset, **changes: Any) -> Trained:
    """What comes of the rows."""
    return train(dataset, name="tip-scorer", inputs=INPUTS, parameters=Parameters(**changes), now=NOW)


def test_training_is_deterministic() -> None:
    """The same rows and parameters give the same bytes and the same card; other rows give others."""
    one, same, other = fitted(make_dataset()), fitted(make_dataset()), fitted(make_dataset(seed=1))
    assert one == same
    assert one.artifact != other.artifact
    assert one.card.training.data_hash != other.card.training.data_hash


def test_card_describes_rows_and_artifact() -> None:
    """Hashes, inputs, counts and the period are those of what was given and made."""
    dataset = make_dataset(source="a log", is_simulated=True, limits=("Small.",))
    trained = fitted(dataset, seed=3)
    card = trained.card
    assert card.artifact_hash == hashlib.sha256(trained.artifact).hexdigest()
    assert (card.feature_hash, card.inputs, card.created_at) == (feature_hash(NAMES), INPUTS, NOW)
    assert (card.training.source, card.training.is_simulated, card.training.row_count) == ("a log", True, 1000)
    assert card.training.data_hash == dataset.data_hash
    assert card.training.positive_ratio == pytest.approx(float(dataset.labels.mean()))
    assert (card.training.first_at.timestamp(), card.training.last_at.timestamp()) == (dataset.at[0], dataset.at[-1])
    assert (card.parameters["seed"], card.parameters["nthread"]) == (3, 1)
    assert card.limits[0] == "Small."


def test_registry_takes_what_comes_out(tmp_path: Path) -> None:
    """Artifact and card belong together, and a booster of as many trees as the card says is in it."""
    import xgboost

    trained = fitted(make_dataset())
    registry = Registry(tmp_path, "tip-scorer")
    stored = registry.fetch(registry.publish(trained.artifact, trained.card))
    booster = xgboost.Booster()
    booster.load_model(bytearray(stored.artifact))
    assert booster.num_boosted_rounds() == stored.card.parameters["tree_count"]
    assert booster.feature_names == list(NAMES)


def test_fit_keeps_the_trees_up_to_the_best_one() -> None:
    """Of 200 trees far fewer, and none of those after which the validation part got no better."""
    parts, parameters = make_dataset(2000).split_by_time(), Parameters()
    booster = fit(parts, parameters.booster(0.5), parameters)
    losses = []
    for count in range(1, booster.num_boosted_rounds() + 1):
        scored = score_rows(booster[:count], parts.validation)
        losses.append(log_loss(scored.labels, scored.scores, scored.weights[None, :])[0])
    assert 1 < len(losses) < 100
    assert losses[-1] == min(losses)


def test_metrics_are_those_of_the_last_rows() -> None:
    """They are measured on the last 15 %, first the AUC, which finds what decides the label (5/6 at best)."""
    metrics = fitted(make_dataset(4000)).card.metrics
    assert {(one.split, one.row_count) for one in metrics} == {("test", 600)}
    assert [one.name for one in metrics] == ["auc", "log_loss", "brier", "calibration_error"]
    assert 0.78 < metrics[0].value < 0.88


def test_weights_decide_what_is_learned() -> None:
    """Half of the rows say the contrary and weigh next to nothing: what the others say is found, and their prior."""
    dataset, is_odd = make_dataset(2000), np.arange(2000) % 2 == 1
    labels = np.where(is_odd, dataset.labels, 1 - dataset.labels)
    weights = np.where(is_odd, 1, 0.001).astype(np.float32)
    card = fitted(make_dataset(2000, labels=labels, weights=weights)).card
    assert card.metrics[0].value > 0.75
    assert float(card.parameters["base_score"]) == pytest.approx(dataset.labels[:1400][is_odd[:1400]].mean(), abs=0.01)


@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        pytest.param(make_dataset(499), "expected at least 500 rows, got 499", id="few"),
        pytest.param(make_dataset(600, labels=np.ones(600, np.float32)), "all 600 rows have the label 1", id="alike"),
        pytest.param(make_dataset(600, at=np.arange(600) % 2.0), "expected rows of at least three instants", id="at"),
        pytest.param(
            make_dataset(600, labels=(np.arange(600) >= 500).astype(np.float32)),
            "all labels of the first 70 %, to learn from, are 0",
            id="late-positives",
        ),
        pytest.param(
            make_dataset(600, labels=(np.arange(600) % 2 * (np.arange(600) < 500)).astype(np.float32)),
            "all labels of the last 15 %, to measure by, are 0",
            id="early-positives",
        ),
    ],
)
def test_training_refuses_what_it_can_not_learn_from(dataset: Dataset, problem: str) -> None:
    """Too few rows, one class, or one in a part, each with what there is."""
    with pytest.raises(TrainingError, match=problem):
        fitted(dataset)


def test_inputs_have_to_be_the_columns() -> None:
    """In their order, since it is the matrix's."""
    with pytest.raises(TrainingError, match="inputs: expected the dataset's columns strength, noise, in their order"):
        train(make_dataset(), name="x", inputs=INPUTS[::-1], parameters=Parameters(), now=NOW)
