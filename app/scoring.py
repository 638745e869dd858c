"""From the body of ``POST /score`` to its answer: decode, read, assemble, score, log.

Everything up to the wait for the scorer's turn happens in one go on the loop, and takes some tens of microseconds. What
a request holds is models/scoring.py's business, features are models/features.py's, the waiting is models/scorer.py's;
HTTP itself is app/views/score.py.
"""

import datetime as dt
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import attrs
import msgspec

from app.bodies import decode_body
from app.user_rows import NO_ROWS, RowProblems, UserRowReader, UserRows
from models.codec import encode_json
from models.decisions import SCORE_SUBJECT, RowRead, encode_decision, encode_matrix
from models.errors import StoreError
from models.features import FEATURES, Assembler, Feature, Matrix, Moment
from models.profile_schema import ProfileFeatures
from models.scorer import Model, Scorer, Scores, prior_scores
from models.scoring import UNKNOWN_EVERY, ScoreRequest, request_decoder, unknown_names

log = logging.getLogger(__name__)

POLICY = "greedy"
GREEDY_PROPENSITY = 1.0
"""The scores follow from the request alone: under this policy no other answer was possible."""


class Decisions(Protocol):
    """The decision log."""

    def admit(self, request_id: str) -> float | None:
        """The sample rate under which this request is logged; None: it is not."""

    def write(self, subject: str, payload: bytes) -> bool:
        """Takes a decision without waiting; False when it can't."""


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Scoring:
    """Answers requests.

    Args:
        rows: reads the user's rows on the loop.
        read_profile: decodes the JSON of ``profile_features``; raises PayloadError.
        decisions: where answers are logged.
        note_unknown: is told the names of candidates' features that are not declared, of a sample of the requests.
        features: all that are declared; read once a request comes without a model to answer it.
        now: the instant that features are made for, in UTC.
    """

    def __init__(
        self,
        scorer: Scorer,
        rows: UserRowReader,
        read_profile: Callable[[msgspec.Raw], ProfileFeatures],
        decisions: Decisions,
        *,
        note_unknown: Callable[[Iterable[str]], None] = lambda _: None,
        features: Mapping[str, Feature] = FEATURES,
        now: Callable[[], dt.datetime] = _utc_now,
    ) -> None:
        self._scorer = scorer
        self._rows = rows
        self._read_profile = read_profile
        self._decisions = decisions
        self._note_unknown = note_unknown
        self._now = now
        self._features = features
        self.degraded_counts: Counter[str] = Counter()
        """Answers that were less than they could be, by reason."""
        self._unknown_count = 0
        self._row_problems = RowProblems()
        self._failed: set[str] = set()

    @functools.cached_property
    def _decode_any(self) -> Callable[[bytes], ScoreRequest]:
        """Decodes a request that no model will score, as strictly as for one that reads every feature."""
        return request_decoder(Assembler(tuple(self._features), self._features))

    async def answer(self, body: bytes, *, request_id: str, deadline: float) -> bytes:
        """Answers one request.

        Args:
            body: the request's JSON.
            request_id: the one to use unless the body brings its own.
            deadline: an instant on the scorer's clock; after it the prior answers.

        Returns:
            The answer's JSON.

        Raises:
            RequestError: 400 or 422, with the path of the field.
        """
        model = self._scorer.model
        asked = decode_body(body, model.decode if model else self._decode_any)
        profile = decode_body(asked.profile_features, self._read_profile)
        if asked.has_unknown:
            self._note_names(body, asked)
        request_id, now = asked.request_id or request_id, self._now()
        rate = self._decisions.admit(request_id)
        count = len(asked.ids)
        if model is None or not self._scorer.has_room(count):  # before its features are made, which cost the most
            decided = _Decided(asked=asked, request_id=request_id, now=now)
            return self._finish(decided, prior_scores(count, "overloaded" if model else "no_model"), rate)
        rows, problem = self._fetch(asked.user_id, model)
        moment = Moment(now=now, profile=profile, context=asked.context, rows=rows.rows)
        failed: list[str] = []
        matrix = model.assembler.matrix(asked.features, moment, failed=failed)
        if failed:
            self._note_failed(failed)
            problem = problem or "feature_failed"
        scores = await self._scorer.score(model, matrix, deadline=deadline)
        if scores.degraded_reason is None and problem:
            scores = attrs.evolve(scores, degraded_reason=problem)
        decided = _Decided(asked=asked, request_id=request_id, now=now, model=model, matrix=matrix, rows=rows.read)
        return self._finish(decided, scores, rate)

    def _note_names(self, body: bytes, asked: ScoreRequest) -> None:
        if self._unknown_count % UNKNOWN_EVERY == 0:
            self._note_unknown(unknown_names(body, asked))
        self._unknown_count += 1

    def _fetch(self, user_id: str, model: Model) -> tuple[UserRows, str | None]:
        """Reads the user's rows; without a readable store their features are missing, and the answer says so."""
        try:
            return self._rows.fetch(user_id, model.assembler.row_types), None
        except StoreError as error:
            self._row_problems.note(error)
            return NO_ROWS, "state_unreadable"

    def _note_failed(self, names: list[str]) -> None:
        """Logs each feature that can't be made, once."""
        for name in names:
            if name not in self._failed:
                self._failed.add(name)
                log.error("a feature can't be made and is missing", extra={"fields": {"feature": name}})

    def _finish(self, decided: "_Decided", scores: Scores, rate: float | None) -> bytes:
        """Logs the decision, if it was admitted, counts the answer if it is degraded, and encodes it."""
        if scores.degraded_reason is not None:
            self.degraded_counts[scores.degraded_reason] += 1
        model = None if scores.is_prior else decided.model
        is_logged = rate is not None and self._decisions.write(SCORE_SUBJECT, _log_entry(decided, scores, model, rate))
        asked = decided.asked
        return encode_json(
            {
                "request_id": decided.request_id,
                "model_version": model.version if model else None,
                "scores": [{"id": id_, "score": score} for id_, score in zip(asked.ids, scores.values, strict=True)],
                "policy": POLICY,
                "propensity": GREEDY_PROPENSITY if is_logged else None,
                "degraded": scores.degraded_reason is not None,
                "degraded_reason": scores.degraded_reason,
                "logged": is_logged,
                "simulated": bool(model and model.is_simulated),
            }
        )


@attrs.frozen(kw_only=True, eq=False)
class _Decided:
    """What an answer is made from, beside its scores."""

    asked: ScoreRequest
    request_id: str
    now: dt.datetime
    model: Model | None = None
    matrix: Matrix | None = None
    rows: dict[str, RowRead] = attrs.field(factory=dict)


def _log_entry(decided: _Decided, scores: Scores, model: Model | None, rate: float) -> bytes:
    """Encodes a ``ScoreDecided``; as a dict, for all of it is known to be valid and validators cost time."""
    return encode_decision(
        {
            "request_id": decided.request_id,
            "user_id": decided.asked.user_id,
            "now": decided.now,
            "model_version": model.version if model else None,
            "policy": POLICY,
            "propensity": GREEDY_PROPENSITY,
            "sample_rate": rate,
            "degraded_reason": scores.degraded_reason,
            "candidates": decided.asked.ids,
            "scores": scores.values,
            "feature_hash": model.card.feature_hash if model else None,
            "matrix": encode_matrix(decided.matrix) if model and decided.matrix is not None else None,
            "context": decided.asked.context,
            "rows": decided.rows,
        }
    )
