"""The decision log's records: what was answered, and from what.

A decision holds everything that its answer was made from, so that it can be explained, used for training and rebuilt:
the instant, the rows that were read with the message that had written each, and the matrix as the model saw it.
streams/decision_log.py brings them into the stream DECISIONS; models/training/ learns from them.
"""

import datetime as dt
from collections.abc import Callable

import attrs
import msgspec
import numpy as np

from models.codec import aware, between, decoder_for, encode_json, filled
from models.errors import PayloadError
from models.features import Matrix, ScoreContext

SCORE_SUBJECT = "decisions.score"


@attrs.frozen(kw_only=True)
class RowRead:
    """A committed row as it was read: its JSON, and the message that wrote it last."""

    stream: str
    seq: int
    row: msgspec.Raw


@attrs.frozen(kw_only=True)
class ScoreDecided:
    """``decisions.score``: one answer of ``POST /score``.

    Args:
        now: the instant that features were made for.
        sample_rate: the share of requests that was logged at that moment; 1 divided by it is the decision's weight.
        propensity: how probable this answer was under the policy.
        feature_hash: of the names of the matrix' columns; None when no model answered.
        matrix: little-endian float32, row by row, in the order of ``candidates``; base64 in JSON.
        rows: the user's rows that were read, by table.
    """

    request_id: str = attrs.field(validator=filled)
    user_id: str = attrs.field(validator=filled)
    now: dt.datetime = attrs.field(validator=aware)
    model_version: str | None = None
    policy: str = "greedy"
    propensity: float | None = attrs.field(default=None, validator=between(0, 1))
    sample_rate: float = attrs.field(default=1.0, validator=between(0, 1))
    degraded_reason: str | None = None
    candidates: tuple[str, ...]
    scores: list[float]
    feature_hash: str | None = None
    matrix: bytes | None = None
    context: ScoreContext = attrs.field(factory=ScoreContext)
    rows: dict[str, RowRead] = attrs.field(factory=dict)

    def read_matrix(self) -> Matrix | None:
        """The matrix as the model saw it; None when no model answered.

        Returns:
            Shape: (n_candidates, n_features) float32, row order = order of ``candidates``, NaN = missing.

        Raises:
            PayloadError: its bytes are not a whole number of rows.
        """
        if self.matrix is None:
            return None
        values = len(self.matrix) // 4
        if not self.candidates or len(self.matrix) % 4 or values % len(self.candidates):
            raise PayloadError(f"matrix: {len(self.matrix)} bytes are no {len(self.candidates)} rows of float32")
        return np.frombuffer(self.matrix, dtype="<f4").reshape(len(self.candidates), -1).astype(np.float32)


decode_score_decision: Callable[[bytes], ScoreDecided] = decoder_for(ScoreDecided)
encode_decision = encode_json


def encode_matrix(matrix: Matrix) -> bytes:
    """The bytes of a matrix as the decision log holds them: little-endian float32, row by row."""
    return matrix.astype("<f4", copy=False).tobytes()
