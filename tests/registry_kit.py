"""A real small model with its card, and a registry with versions of it."""

import datetime as dt
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from models.card import Card, FairnessCheck, Input, Metric, Slice, TrainingData, feature_hash
from models.registry import Registry

NAME = "tip-scorer"
NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
INPUTS = (
    Input(name="tip_length_chars", source="candidate", unit="count", meaning="Characters of the tip.", low=0),
    Input(name="acceptance_rate_30d", source="profile", unit="ratio", meaning="Accepted of shown.", low=0, high=1),
    Input(name="hours_since_sync", source="table", unit="h", meaning="Since the last sync."),
)
FAIR = FairnessCheck(name="score gap", groups={"new": 0.4, "old": 0.5}, gap=0.1, limit=0.2, has_passed=True)
AUC = Metric(name="auc", split="test", value=0.71, low=0.68, high=0.74, row_count=60)


@functools.cache
def artifact(seed: int = 1) -> bytes:
    """The UBJ of a booster of five trees, trained here on 200 rows."""
    import xgboost  # takes a while, and only tests of artifacts need it

    rng = np.random.default_rng(seed)
    rows = rng.random((200, len(INPUTS)), dtype=np.float32)
    data = xgboost.DMatrix(rows, label=(rows[:, 0] > 0.5).astype(np.float32), nthread=1)
    parameters = {"objective": "binary:logistic", "max_depth": 2, "nthread": 1, "seed": seed}
    return bytes(xgboost.train(parameters, data, num_boost_round=5).save_raw("ubj"))


def card(of: bytes, **changes: Any) -> Card:
    """A whole card of an artifact."""
    facts: dict[str, Any] = {
        "name": NAME,
        "created_at": NOW,
        "artifact_hash": hashlib.sha256(of).hexdigest(),
        "feature_hash": feature_hash([one.name for one in INPUTS]),
        "inputs": INPUTS,
        "training": TrainingData(
            source="The simulated world, seed 1.",
            is_simulated=True,
            row_count=200,
            positive_ratio=0.5,
            first_at=NOW - dt.timedelta(days=30),
            last_at=NOW,
            data_hash="0" * 64,
        ),
        "parameters": {"objective": "binary:logistic", "max_depth": 2, "trees": 5},
        "metrics": (AUC, Metric(name="log_loss", split="test", value=0.6, low=0.55, high=0.65, row_count=60)),
        "slices": (Slice(feature="hours_since_sync", part="missing", metrics=(AUC,)),),
        "fairness": (FAIR,),
        "limits": ("It has seen no <real> user.",),
    }
    return Card(**facts | changes)


def filled_registry(folder: Path, count: int = 2) -> Registry:
    """A registry with the versions 1 to ``count``."""
    registry = Registry(folder, NAME)
    for seed in range(1, count + 1):
        registry.publish(artifact(seed), card(artifact(seed)))
    return registry


def part(registry: Registry, version: str, name: str) -> Path:
    """A file of a version."""
    return registry.folder / "versions" / version / name


def flip(path: Path) -> None:
    """Changes one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
