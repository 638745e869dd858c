"""Every feature that a model may read, declared once, for serving and for training alike.

A declaration says where a feature comes from and how its value is made from what a request and our tables hold at one
instant; nothing else in the code computes a feature. ``Assembler`` turns a model's list of names into the matrix of a
request. Training reads the matrices of the decision log, and whoever rebuilds one from the streams uses the same
assembler, so that the bits are the same. Decides without I/O: the rows of tables and ``now`` are given.

The scorer (models/scorer.py) is the next step.
"""

import datetime as dt
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, cast, get_args

import attrs
import msgspec
import numpy as np
import numpy.typing as npt

from models.card import Input, Source
from models.codec import between
from models.errors import ModelError
from models.profile_schema import MAX_FLOAT, PROFILE, ProfileFeatures
from models.rows import UserSync

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
Matrix = npt.NDArray[np.float32]
_Number = Annotated[float, msgspec.Meta(ge=-MAX_FLOAT, le=MAX_FLOAT)]


@attrs.frozen(kw_only=True)
class ScoreContext:
    """What the caller knows of the moment: how far the user's clock is ahead of UTC."""

    utc_offset_minutes: int | None = attrs.field(default=None, validator=between(-720, 840))


@attrs.frozen(kw_only=True)
class Moment:
    """All that the features of one request are made from, its candidates apart.

    Args:
        now: the instant of the request, in UTC; the decision log keeps it.
        rows: the user's committed rows, by table; a table without a row of this user is left out.
    """

    now: dt.datetime
    profile: ProfileFeatures
    context: ScoreContext = attrs.field(factory=ScoreContext)
    rows: Mapping[str, object] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Feature:
    """One feature.

    Args:
        name: identity, in models, cards and logs; for a candidate's feature also its name in the request.
        table: the table whose row of the user it reads; its key is the user's id.
        row: the class of that row.
        value: makes it, None for missing; a candidate's feature is read from the request as it is. One that raises, or
            makes what is no number, is missing, and the answer is degraded.
    """

    name: str
    source: Source
    unit: str
    meaning: str
    low: float | None = None
    high: float | None = None
    table: str | None = None
    row: type | None = None
    value: Callable[[Moment], float | None] | None = None

    def as_input(self) -> Input:
        """What a card says of it."""
        return Input(
            name=self.name, source=self.source, unit=self.unit, meaning=self.meaning, low=self.low, high=self.high
        )


def _candidate(name: str, unit: str, meaning: str, *, low: float | None = 0, high: float | None = None) -> Feature:
    return Feature(name=name, source="candidate", unit=unit, meaning=meaning, low=low, high=high)


def _local(moment: Moment) -> dt.datetime | None:
    offset = moment.context.utc_offset_minutes
    return None if offset is None else moment.now + dt.timedelta(minutes=offset)


def _hour_local(moment: Moment) -> float | None:
    local = _local(moment)
    return None if local is None else local.hour + local.minute / 60


def _is_weekend(moment: Moment) -> float | None:
    local = _local(moment)
    return None if local is None else float(local.weekday() >= 5)


def _user_sync(moment: Moment) -> UserSync | None:
    return cast(UserSync | None, moment.rows.get("user_sync"))


def _hours_since_sync(moment: Moment) -> float | None:
    row = _user_sync(moment)
    if row is None or not row.providers:
        return None
    newest = max(provider.synced_at for provider in row.providers.values())
    return max(0.0, (moment.now - newest).total_seconds() / 3600)


def _provider_count(moment: Moment) -> float | None:
    row = _user_sync(moment)
    return None if row is None else float(len(row.providers))


def _synced_task_count(moment: Moment) -> float | None:
    row = _user_sync(moment)
    counts = [p.task_count for p in row.providers.values() if p.task_count is not None] if row else []
    return float(sum(counts)) if counts else None


def _profile_features() -> list[Feature]:
    """The profile's features are what profile_schema.py declares."""
    return [
        Feature(
            name=feature.name,
            source="profile",
            unit=feature.unit,
            meaning=feature.meaning,
            low=feature.low,
            high=feature.high,
            value=operator.attrgetter(f"profile.{feature.name}"),
        )
        for feature in PROFILE
    ]


FEATURES: Mapping[str, Feature] = {
    feature.name: feature
    for feature in (
        _candidate("tip_length_chars", "count", "characters of the tip's text"),
        _candidate("estimated_minutes", "minutes", "how long the tip's action takes"),
        _candidate("difficulty", "ratio", "how hard the action is, 0 easy to 1 hard", high=1),
        _candidate("hours_since_shown", "hours", "since this tip was shown to this user"),
        _candidate("times_shown", "count", "times that this tip was shown to this user"),
        _candidate("times_accepted", "count", "times that this user accepted it"),
        _candidate("times_dismissed", "count", "times that this user dismissed it"),
        _candidate("category_affinity", "ratio", "share of accepted tips among those of its category", high=1),
        _candidate("similarity", "cosine", "of the tip's and the user's embedding", low=-1, high=1),
        _candidate("urgency", "ratio", "how soon the matter is due, 0 open to 1 now", high=1),
        _candidate("is_actionable", "0 or 1", "whether the action can be taken at once", high=1),
        _candidate("novelty", "ratio", "share of its words that the user's last tips did not have", high=1),
        *_profile_features(),
        Feature(
            name="hour_local",
            source="context",
            unit="hours",
            meaning="the user's time of day",
            low=0,
            high=24,
            value=_hour_local,
        ),
        Feature(
            name="is_weekend",
            source="context",
            unit="0 or 1",
            meaning="whether it is Saturday or Sunday for the user",
            low=0,
            high=1,
            value=_is_weekend,
        ),
        Feature(
            name="hours_since_sync",
            source="table",
            unit="hours",
            meaning="since the newest synchronisation of tasks",
            low=0,
            table="user_sync",
            row=UserSync,
            value=_hours_since_sync,
        ),
        Feature(
            name="provider_count",
            source="table",
            unit="count",
            meaning="providers that were ever synchronised",
            low=0,
            table="user_sync",
            row=UserSync,
            value=_provider_count,
        ),
        Feature(
            name="synced_task_count",
            source="table",
            unit="count",
            meaning="tasks at the newest synchronisation, all providers together",
            low=0,
            table="user_sync",
            row=UserSync,
            value=_synced_task_count,
        ),
    )
}


def feature_problems(feature: Feature) -> Iterator[str]:
    """What is wrong with a declaration."""
    if not NAME.fullmatch(feature.name):
        yield f"name: expected {NAME.pattern}"
    if feature.source not in get_args(Source):
        yield f"source: expected {', '.join(get_args(Source))}, got {feature.source!r}"
    if (feature.source == "candidate") == (feature.value is not None):
        yield "value: a candidate's feature is read from the request as it is, any other one needs a function"
    if (feature.table is None) != (feature.row is None) or (feature.source == "table") != (feature.table is not None):
        yield "table and row: expected both for the source table, and neither for another one"


class Assembler:
    """Makes matrices of one list of features.

    Args:
        names: the columns, in order.
        declared: the declarations to look them up in.

    Raises:
        ModelError: a name is not declared, or comes twice.
    """

    def __init__(self, names: Sequence[str], declared: Mapping[str, Feature] = FEATURES) -> None:
        unknown = [name for name in names if name not in declared]
        if unknown:
            raise ModelError("features", f"{unknown[0]!r} is not declared in this version of the application")
        if len(set(names)) != len(names) or not names:
            raise ModelError("features", "expected at least one name, and each once")
        features = [declared[name] for name in names]
        self.names = tuple(names)
        self.inputs = tuple(feature.as_input() for feature in features)
        self.row_types = {feature.table: feature.row for feature in features if feature.table and feature.row}
        """The rows that it reads, by table."""
        own = [column for column, feature in enumerate(features) if feature.source == "candidate"]
        shared = [column for column, feature in enumerate(features) if feature.source != "candidate"]
        self._own = _columns(own)
        self._shared = _columns(shared)
        self._shared_names = [features[column].name for column in shared]
        self._values = [cast(Callable[[Moment], float | None], features[column].value) for column in shared]
        self._own_count = len(own)
        read = [features[column].name for column in own]
        others = [name for name, feature in declared.items() if feature.source == "candidate" and name not in read]
        fields = [(name, _Number | None, None) for name in (*read, *others)]
        self.candidate_features: type[msgspec.Struct] = msgspec.defstruct("CandidateFeatures", fields)
        """What a request's candidates may carry: the model's features in the order of its columns, then all others
        that are declared, so that no wrong value passes unseen; a name that is not declared is ignored."""

    def matrix(
        self, candidates: Sequence[msgspec.Struct], moment: Moment, *, failed: list[str] | None = None
    ) -> Matrix:
        """Makes the matrix of one request.

        Args:
            candidates: instances of ``candidate_features``, in request order.
            failed: gets the names of features whose function fails; they are missing then. Without it, it raises.

        Returns:
            Shape: (n_candidates, n_features) float32, C order; row order = request order, NaN = missing.
        """
        matrix = np.empty((len(candidates), len(self.names)), dtype=np.float32)
        if self._values:
            matrix[:, self._shared] = self._shared_values(moment, failed)
        if self._own_count:
            rows = np.array(list(map(msgspec.structs.astuple, candidates)), dtype=np.float32)
            matrix[:, self._own] = rows[:, : self._own_count]
        return matrix

    def _shared_values(self, moment: Moment, failed: list[str] | None) -> Matrix:
        """What all candidates of a request have in common: (n_shared,) float32, in the order of the columns."""
        try:
            return np.fromiter([value(moment) for value in self._values], dtype=np.float32)
        except Exception:  # whatever a plugin's function does; an answer without one feature is better than none
            if failed is None:
                raise
        found = np.full(len(self._values), np.nan, dtype=np.float32)
        for place, (name, value) in enumerate(zip(self._shared_names, self._values, strict=True)):
            try:
                found[place] = value(moment)
            except Exception:  # as above
                failed.append(name)
        return found

    def matrix_of(self, candidates: Sequence[Mapping[str, float | None]], moment: Moment) -> Matrix:
        """The same from plain mappings, as a log or a test holds them."""
        return self.matrix([msgspec.convert(dict(c), self.candidate_features) for c in candidates], moment)


def _columns(columns: list[int]) -> Any:
    """A slice where the columns lie side by side, which numpy fills faster."""
    if columns and columns == list(range(columns[0], columns[-1] + 1)):
        return slice(columns[0], columns[-1] + 1)
    return columns
