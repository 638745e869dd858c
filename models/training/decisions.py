"""From the decision log and the rewards to rows to learn from.

This module owns what a row is. The log says which candidates were scored and not which were shown, so a candidate
without a reward may have been refused or never seen. The choice made here: **only requests with at least one reward
are used**, whose user must have seen something of them; of such a request each candidate without a reward counts as 0.
It leaves out users who ignore everything, and the model's card says so.

A reward counts when it came within the attribution window after the decision, and a decision is used once its window
has passed, since before that a 0 may still become a 1. A decision that was logged for one of k requests weighs k.
Decisions that can't be used are counted by reason. Reading the streams is the caller's business (app/cli/train.py).
"""

import datetime as dt
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import attrs
import numpy as np

from models.card import feature_hash
from models.codec import aware, between
from models.decisions import ScoreDecided
from models.errors import PayloadError, TrainingError
from models.training.dataset import Dataset, Floats

WINDOW_S = 86_400.0
ROW_LIMIT = 1_000_000
"""Rows that are kept, the newest ones: about 100 MB at 24 features."""

LIMITS = (
    "It learned only from requests that got at least one reward; the log does not say which tips were shown, so what "
    "users do who ignore every tip is unknown to it.",
    "In those requests a tip without a reward counts as refused, though it may never have been shown.",
    "The tips were chosen with the help of former models, so what those never ranked high is known less well.",
    "A feature is missing in the decisions of models that did not read it.",
)

Key = tuple[str, str]
"""A request and one of its candidates: ``(request_id, tip_id)``."""

LeftOut = Literal["no_model", "other_features", "repeated", "unsettled", "unrewarded", "misshapen", "too_old"]


@attrs.frozen(kw_only=True)
class Reward:
    """The first reward of a request's tip."""

    value: float = attrs.field(validator=between(0, 1))
    at: dt.datetime = attrs.field(validator=aware)


@attrs.frozen(kw_only=True, eq=False)
class _Kept:
    """What is left of a decision: much less than it holds."""

    user_id: str
    at: float
    weight: float
    matrix: Floats
    labels: Floats


class Gathering:
    """Takes decisions one by one and keeps what can be learned from, the newest rows.

    Args:
        names: the features to learn from.
        lists: the features of each model that wrote the log, in its order; decisions with a list that is neither among
            them nor ``names`` are left out.
        rewards: the first reward of each candidate that has one.
        now: decisions whose window ends later are left out.
        window_s: seconds in which a reward counts.
        row_limit: rows kept; beyond it the oldest requests go.
    """

    def __init__(
        self,
        names: Sequence[str],
        rewards: Mapping[Key, Reward],
        *,
        lists: Iterable[Sequence[str]] = (),
        now: dt.datetime,
        window_s: float = WINDOW_S,
        row_limit: int = ROW_LIMIT,
    ) -> None:
        self.names = tuple(names)
        self.left_out: Counter[LeftOut] = Counter()
        self.row_count = 0
        self._lists = {feature_hash(one): tuple(one) for one in (*lists, names)}
        self._rewards = rewards
        self._rewarded = {request_id for request_id, _ in rewards}
        self._now, self._window = now, dt.timedelta(seconds=window_s)
        self._row_limit = row_limit
        self._seen: set[str] = set()
        self._kept: deque[_Kept] = deque()

    def add(self, decision: ScoreDecided) -> None:
        """Keeps a decision's rows, or counts why not."""
        reason = self._reason(decision)
        labels, matrix = self._labels(decision), self._matrix(decision)
        if reason is not None or labels is None or matrix is None:
            self.left_out[reason or ("unrewarded" if labels is None else "misshapen")] += 1
            return
        self._seen.add(decision.request_id)
        self._kept.append(
            _Kept(
                user_id=decision.user_id,
                at=decision.now.timestamp(),
                weight=1 / decision.sample_rate,
                matrix=matrix,
                labels=labels,
            )
        )
        self.row_count += len(labels)
        while self.row_count > self._row_limit and len(self._kept) > 1:
            self.row_count -= len(self._kept.popleft().labels)
            self.left_out["too_old"] += 1

    @property
    def used_count(self) -> int:
        """Decisions that were kept."""
        return len(self._kept)

    def dataset(self, source: str) -> Dataset:
        """All rows, in the order in which they were added.

        Raises:
            TrainingError: there are none.
        """
        if not self._kept:
            raise TrainingError("no decision can be learned from")
        counts = [len(one.labels) for one in self._kept]
        at = np.array([one.at for one in self._kept], dtype=np.float64)
        weights = np.array([one.weight for one in self._kept], dtype=np.float32)
        groups = np.array([one.user_id for one in self._kept], dtype=object)
        return Dataset(
            names=self.names,
            matrix=np.concatenate([one.matrix for one in self._kept]),
            labels=np.concatenate([one.labels for one in self._kept]),
            at=np.repeat(at, counts),
            groups=np.repeat(groups, counts),
            weights=np.repeat(weights, counts),
            source=source,
            is_simulated=False,
            limits=LIMITS,
        )

    def _reason(self, decision: ScoreDecided) -> LeftOut | None:
        if decision.feature_hash is None:
            return "no_model"
        if decision.feature_hash not in self._lists:
            return "other_features"
        if decision.request_id in self._seen:
            return "repeated"
        return "unsettled" if decision.now + self._window > self._now else None

    def _matrix(self, decision: ScoreDecided) -> Floats | None:
        """The logged matrix, None when it or the sample rate can't be.

        A feature that the model which answered did not read is missing. A number beyond float32 was served as infinity,
        which a training refuses; the largest float32 falls on the same side of every split.
        """
        try:
            logged = decision.read_matrix()
        except PayloadError:
            return None
        names = self._lists.get(decision.feature_hash or "", ())
        if logged is None or logged.shape[1] != len(names) or decision.sample_rate <= 0:
            return None
        matrix = np.full((len(logged), len(self.names)), np.nan, dtype=np.float32)
        for column, name in enumerate(self.names):
            if name in names:
                matrix[:, column] = logged[:, names.index(name)]
        limit = np.finfo(np.float32).max
        return np.clip(matrix, -limit, limit)

    def _labels(self, decision: ScoreDecided) -> Floats | None:
        """The reward of each candidate, 0 without one; None when no candidate has any."""
        if decision.request_id not in self._rewarded:
            return None
        labels = np.zeros(len(decision.candidates), dtype=np.float32)
        has_reward = False
        for row, candidate in enumerate(decision.candidates):
            reward = self._rewards.get((decision.request_id, candidate))
            if reward is not None and reward.at <= decision.now + self._window:
                labels[row], has_reward = reward.value, True
        return labels if has_reward else None
