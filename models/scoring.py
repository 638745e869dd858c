"""The request and the answer of ``POST /score``, and what both may hold.

This module owns the limits of a request, decodes it for one model's list of features, and names what is wrong with it
by path. Features are made in models/features.py, scores in models/scorer.py, the route is app/views/score.py.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import msgspec

from models.codec import ID_PATTERN, decoder_for
from models.errors import PayloadError
from models.features import Assembler, ScoreContext

MAX_CANDIDATES = 1000
PRIOR_SCORE = 0.5
"""The score of every candidate when no model answers: it prefers none of them, and says nothing of any."""

_ID = re.compile(ID_PATTERN)
_IDS = re.compile(rf"(?:{ID_PATTERN}\n)*")
_NO_CONTEXT = ScoreContext()
_NULL = msgspec.Raw(b"null")


@attrs.frozen(kw_only=True)
class ScoreRequest:
    """A request whose candidates fit one model.

    Args:
        profile_features: the JSON of them as it was sent, decoded by models/profile_reader.py.
        features: of each candidate, in request order.
    """

    user_id: str
    request_id: str | None
    ids: tuple[str, ...]
    features: tuple[msgspec.Struct, ...]
    profile_features: msgspec.Raw
    context: ScoreContext


def request_decoder(assembler: Assembler) -> Callable[[bytes], ScoreRequest]:
    """Builds the decoder of requests for a model's list of features; unknown fields and features are ignored.

    Returns:
        A function that raises PayloadError with the path of the field for anything that does not fit.
    """
    decode: Callable[[bytes], Any] = decoder_for(_body_type(assembler.candidate_features))

    def decode_request(payload: bytes) -> ScoreRequest:
        body = decode(payload)
        ids = tuple([candidate.id for candidate in body.candidates])
        check_ids(ids)
        for name in ("user_id", "request_id"):
            value = getattr(body, name)
            if value is not None and not _ID.fullmatch(value):
                raise PayloadError(f"{name}: expected {ID_PATTERN}, got {_short(value)}")
        return ScoreRequest(
            user_id=body.user_id,
            request_id=body.request_id,
            ids=ids,
            features=tuple([candidate.features for candidate in body.candidates]),
            profile_features=body.profile_features,
            context=body.context or _NO_CONTEXT,
        )

    return decode_request


def check_ids(ids: Sequence[str]) -> None:
    """Checks the candidates' ids.

    Raises:
        PayloadError: there are none or too many, one is no id, or two are the same; names the first.
    """
    if not 1 <= len(ids) <= MAX_CANDIDATES:
        raise PayloadError(f"candidates: expected 1 to {MAX_CANDIDATES}, got {len(ids)}")
    joined = "\n".join(ids) + "\n"
    if joined.count("\n") != len(ids) or not _IDS.fullmatch(joined):
        place = next((place for place, id_ in enumerate(ids) if not _ID.fullmatch(id_)), 0)
        raise PayloadError(f"candidates[{place}].id: expected {ID_PATTERN}, got {_short(ids[place])}")
    if len(set(ids)) < len(ids):
        first: dict[str, int] = {}
        for place, id_ in enumerate(ids):
            if first.setdefault(id_, place) != place:
                raise PayloadError(f"candidates[{place}].id: the same as candidates[{first[id_]}].id")


def _body_type(features: type[msgspec.Struct]) -> type:
    """The body of a request whose candidates have these features."""
    candidate = msgspec.defstruct("Candidate", [("id", str), ("features", features)])
    return msgspec.defstruct(
        "ScoreBody",
        [
            ("user_id", str),
            ("candidates", list[candidate]),  # type: ignore[valid-type]  # made at run time
            ("request_id", str | None, None),
            ("profile_features", msgspec.Raw, _NULL),
            ("context", ScoreContext | None, None),
        ],
    )


def _short(value: str) -> str:
    return repr(value if len(value) <= 40 else value[:40] + "…")
