"""Rows to learn from, as small as a test can use them: two columns, of which the first decides."""

from typing import Any

import numpy as np

from models.card import Input
from models.training.dataset import Dataset

NAMES = ("strength", "noise")
INPUTS = tuple(Input(name=name, source="candidate", unit="ratio", meaning=f"The {name}.") for name in NAMES)


def make_dataset(row_count: int = 1000, *, seed: int = 0, **changes: Any) -> Dataset:
    """Rows a minute apart, of 50 users; the label is likely 1 where the first column is high."""
    random = np.random.default_rng(seed)
    matrix = random.random((row_count, 2), dtype=np.float32)
    facts: dict[str, Any] = {
        "names": NAMES,
        "matrix": matrix,
        "labels": (random.random(row_count) < matrix[:, 0]).astype(np.float32),
        "at": 1_767_600_000.0 + 60.0 * np.arange(row_count, dtype=np.float64),
        "groups": np.array([f"u{n % 50}" for n in range(row_count)], dtype=object),
        "source": "a test",
        "is_simulated": False,
    }
    return Dataset(**facts | changes)
