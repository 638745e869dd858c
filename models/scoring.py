"""The request of ``POST /score``: what it may hold, and the score that its candidates get when no model answers.

This module owns the limits of a request, decodes it for one model's list of features, and names what is wrong with it
by path. The usual request, of declared features alone, is decoded once; only one that has others is decoded again, and
tells so. Features are made in models/features.py, scores in models/scorer.py; app/scoring.py makes the answer.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import msgspec

from models.codec import ID_PATTERN, decoder_for, describe_no_id, is_id
from models.errors import PayloadError
from models.features import Assembler, ScoreContext

MAX_CANDIDATES = 1000
PRIOR_SCORE = 0.5
"""The score of every candidate when no model answers: it prefers none of them, and says nothing of any."""
UNKNOWN_EVERY = 61
"""Of so many requests with features that are not declared one is asked for their names, for that takes twice as long as
decoding it. It is a prime, so that of several callers who take turns each is looked at."""

_IDS = re.compile(rf"(?:{ID_PATTERN}\n)*")
_MISFIT = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NO_CONTEXT = ScoreContext()
_NULL = msgspec.Raw(b"null")


@attrs.frozen
class _Named:
    features: dict[str, msgspec.Raw]


@attrs.frozen
class _Names:
    candidates: list[_Named]


_decode_names = msgspec.json.Decoder(_Names).decode


@attrs.frozen(kw_only=True)
class ScoreRequest:
    """A request whose candidates fit one model.

    Args:
        profile_features: the JSON of them as it was sent, decoded by models/profile_reader.py.
        features: of each candidate, in request order.
        has_unknown: a candidate has a feature that is not declared; ``unknown_names`` finds which.
    """

    user_id: str
    request_id: str | None
    ids: tuple[str, ...]
    features: tuple[msgspec.Struct, ...]
    profile_features: msgspec.Raw
    context: ScoreContext
    has_unknown: bool = False


def request_decoder(assembler: Assembler) -> Callable[[bytes], ScoreRequest]:
    """Builds the decoder of requests for a model's list of features; unknown fields and features are ignored.

    Returns:
        A function that raises PayloadError with the path of the field for anything that does not fit.
    """
    features = assembler.candidate_features
    declared_alone = msgspec.defstruct("DeclaredFeatures", [], bases=(features,), forbid_unknown_fields=True)
    decode_usual: Callable[[bytes], Any] = msgspec.json.Decoder(_body_type(declared_alone)).decode
    decode: Callable[[bytes], Any] = decoder_for(_body_type(features))

    def decode_request(payload: bytes) -> ScoreRequest:
        has_unknown = False
        try:
            body = decode_usual(payload)
        except _MISFIT:
            body, has_unknown = decode(payload), True  # or it says what else is wrong
        ids = tuple([candidate.id for candidate in body.candidates])
        check_ids(ids)
        for name in ("user_id", "request_id"):
            value = getattr(body, name)
            if value is not None and not is_id(value):
                raise PayloadError(f"{name}: {describe_no_id(value)}")
        return ScoreRequest(
            user_id=body.user_id,
            request_id=body.request_id,
            ids=ids,
            features=tuple([candidate.features for candidate in body.candidates]),
            profile_features=body.profile_features,
            context=body.context or _NO_CONTEXT,
            has_unknown=has_unknown,
        )

    return decode_request


def unknown_names(payload: bytes, asked: ScoreRequest) -> list[str]:
    """The names of candidates' features that are not declared, each once; of those that are no UTF-8 none is told.

    Args:
        payload: what ``asked`` was decoded from.
    """
    declared = set(type(asked.features[0]).__struct_fields__)
    try:
        candidates = _decode_names(payload).candidates
    except _MISFIT:  # nobody looks closely at a name that is passed over, so the request was taken
        return []
    return list(dict.fromkeys(name for one in candidates for name in one.features if name not in declared))


def check_ids(ids: Sequence[str]) -> None:
    """Checks the candidates' ids.

    Raises:
        PayloadError: there are none or too many, one is no id, or two are the same; names the first.
    """
    if not 1 <= len(ids) <= MAX_CANDIDATES:
        raise PayloadError(f"candidates: expected 1 to {MAX_CANDIDATES}, got {len(ids)}")
    joined = "\n".join(ids) + "\n"
    if joined.count("\n") != len(ids) or not _IDS.fullmatch(joined):
        place = next(place for place, id_ in enumerate(ids) if not is_id(id_))
        raise PayloadError(f"candidates[{place}].id: {describe_no_id(ids[place])}")
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
