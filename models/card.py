"""The card of a model version: what it reads, what it learned from, how well it does and where it must not be used.

This module owns the records alone. models/training/ fills them, models/registry.py binds a card to its artifact by hash
and refuses to serve a version without one, app/views/models.py shows it. A card is written once and refused when it was
changed since; what happened to the version later (``Rollout``) is the registry's history, shown beside it.
"""

import datetime as dt
import hashlib
import math
import re
from collections.abc import Sequence
from typing import Literal

import attrs

from models.codec import aware, between, filled

CARD_SCHEMA = 1
Source = Literal["candidate", "profile", "context", "table"]
Split = Literal["train", "validation", "test"]
Action = Literal["promote", "rollback", "demote"]


def _sha256(_: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"{attribute.name}: expected a SHA-256 as 64 hexadecimal digits, got {value[:80]!r}")


def feature_hash(names: Sequence[str]) -> str:
    """Sixteen hexadecimal digits that stand for the columns of a matrix: their names in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _finite(_: object, attribute: "attrs.Attribute[float]", value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{attribute.name}: expected a finite number, got {value!r}")


@attrs.frozen(kw_only=True)
class Input:
    """One column of the model's matrix; the order of the inputs is that of the columns.

    Args:
        unit: ``s``, ``count``, ``ratio`` …, as the feature's declaration says.
        low: the least value that its declaration allows; None where there is no such limit.
    """

    name: str = attrs.field(validator=filled)
    source: Source
    unit: str
    meaning: str
    low: float | None = None
    high: float | None = None


@attrs.frozen(kw_only=True)
class TrainingData:
    """What a version learned from.

    Args:
        source: in words: the streams and the period, or the simulated world and its seed.
        is_simulated: no user was behind it; answers of the model say so.
        data_hash: SHA-256 of the rows, labels and instants as they were given to the training.
    """

    source: str = attrs.field(validator=filled)
    is_simulated: bool
    row_count: int = attrs.field(validator=between(1, 2**53))
    positive_ratio: float = attrs.field(validator=between(0, 1))
    first_at: dt.datetime = attrs.field(validator=aware)
    last_at: dt.datetime = attrs.field(validator=aware)
    data_hash: str = attrs.field(validator=_sha256)


@attrs.frozen(kw_only=True)
class Metric:
    """An offline figure with its interval: ``low`` to ``high`` holds the true value at ``level``, by bootstrap."""

    name: str = attrs.field(validator=filled)
    split: Split
    value: float = attrs.field(validator=_finite)
    low: float = attrs.field(validator=_finite)
    high: float = attrs.field(validator=_finite)
    level: float = 0.95
    row_count: int = attrs.field(validator=between(1, 2**53))


@attrs.frozen(kw_only=True)
class Slice:
    """The same figures for a part of the test rows, named by a feature and what it holds there."""

    feature: str
    part: str
    metrics: tuple[Metric, ...]


@attrs.frozen(kw_only=True)
class FairnessCheck:
    """A comparison between groups of users: ``gap`` is the largest difference, ``limit`` what was allowed."""

    name: str = attrs.field(validator=filled)
    groups: dict[str, float]
    gap: float = attrs.field(validator=_finite)
    limit: float = attrs.field(validator=_finite)
    has_passed: bool


@attrs.frozen(kw_only=True)
class Card:
    """All that must be known of a version before it answers anybody.

    Args:
        artifact_hash: SHA-256 of the artifact's bytes; a version whose artifact has another one is refused.
        feature_hash: what ``feature_hash`` says of the inputs; the decision log carries it.
        parameters: the booster's parameters and its number of trees.
        limits: where the model must not be used, and what it can't know, a sentence each.
    """

    card_schema: int = CARD_SCHEMA
    name: str = attrs.field(validator=filled)
    created_at: dt.datetime = attrs.field(validator=aware)
    artifact_hash: str = attrs.field(validator=_sha256)
    feature_hash: str = attrs.field(validator=filled)
    inputs: tuple[Input, ...]
    training: TrainingData
    parameters: dict[str, float | int | str]
    metrics: tuple[Metric, ...]
    slices: tuple[Slice, ...]
    fairness: tuple[FairnessCheck, ...]
    limits: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Rollout:
    """One line of the registry's history: an alias was moved.

    Args:
        version: the one that it was moved to; None: it was taken away.
        former: the one that had it; None: none had.
    """

    at: dt.datetime = attrs.field(validator=aware)
    alias: str
    version: str | None
    former: str | None
    action: Action
    reason: str = ""
