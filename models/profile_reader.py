"""From the ``profile_features`` of a request to their record, with what does not fit the contract counted.

This module owns the reading. A wrong dtype is refused by path. A name that the contract lacks is ignored, and a value
outside of its range is used as it was sent; both are counted, for they say that the two sides have drifted apart.

The usual request, of known names and values in range, is decoded once, by a decoder that checks both. Only when that
one refuses does another look for the reason. models/features.py makes the model's features of the record.
"""

import itertools
import logging
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Literal, cast

import attrs
import msgspec

from models.codec import decoder_for
from models.profile_schema import MAX_FLOAT, MAX_INT, PROFILE, ProfileFeature, ProfileFeatures

NO_PROFILE = ProfileFeatures()
"""The record of a user of whom nothing is known."""
MAX_NAMES = 50
"""How many unknown names are told apart; the rest are ``other``."""
OTHER = "other"

_MAX_NAME = 64
_UNCLEAN = re.compile(r"[^A-Za-z0-9_.:-]")
_NAMES = frozenset(feature.name for feature in PROFILE)

log = logging.getLogger(__name__)


@attrs.frozen
class _Body:
    """Puts the features where a request has them, so that an error's path is the request's."""

    profile_features: ProfileFeatures | None


@attrs.frozen
class _Parts:
    profile_features: dict[str, msgspec.Raw]


def _fitting() -> type[ProfileFeatures]:
    """The record with each range and the list of names as rules of the decoder."""
    types = {"float": float, "int": int}
    fields = [
        (feature.name, Annotated[types[feature.dtype], _range(feature)] | None, None)
        for feature in PROFILE
        if feature.dtype in types
    ]
    made = msgspec.defstruct(
        "FittingProfileFeatures",
        fields,
        bases=(ProfileFeatures,),
        frozen=True,
        kw_only=True,
        eq=False,
        gc=False,
        forbid_unknown_fields=True,
    )
    return cast(type[ProfileFeatures], made)


def _range(feature: ProfileFeature) -> msgspec.Meta:
    limit = MAX_INT if feature.dtype == "int" else MAX_FLOAT
    low = -limit if feature.low is None else feature.low
    return msgspec.Meta(ge=low, le=limit if feature.high is None else feature.high)


_decode_fitting = msgspec.json.Decoder(_fitting() | None).decode
_decode_body = decoder_for(_Body)
_decode_parts = decoder_for(_Parts)


class UnknownFeatures:
    """Counts the names that nobody declares, and logs each once; both are bounded, whatever callers send.

    Args:
        kind: whose features they are, for the log.
        count: is called with a label for each name seen in a request: the name itself, cut to 64 characters with
            what is no letter, digit or one of ``_.:-`` replaced, and ``other`` once 50 names are known.
    """

    def __init__(self, count: Callable[[str], None], *, kind: Literal["profile", "candidate"] = "profile") -> None:
        self._count = count
        self._kind = kind
        self._known: set[str] = set()
        self._is_full_logged = False

    def note(self, names: Iterable[str]) -> None:
        """Takes note of the unknown names of a request; of a request with more than 50 the first 50 are seen."""
        for name in itertools.islice(names, MAX_NAMES):
            self._count(self._label_of(_UNCLEAN.sub("_", name[:_MAX_NAME]) or "_"))

    def _label_of(self, name: str) -> str:
        if name in self._known:
            return name
        if len(self._known) < MAX_NAMES:
            self._known.add(name)
            log.warning(f"an unknown {self._kind} feature is ignored", extra={"fields": {"feature": name}})
            return name
        if not self._is_full_logged:
            self._is_full_logged = True
            log.warning(f"more unknown {self._kind} features are not named", extra={"fields": {"named": MAX_NAMES}})
        return OTHER


@attrs.frozen(kw_only=True)
class ProfileReader:
    """Reads the profile features of requests; cheap enough for the event loop.

    Args:
        unknown: is told the names that the contract lacks.
        outside: is called with the name of each feature whose value is outside of its range.
    """

    unknown: UnknownFeatures
    outside: Callable[[str], None]

    def read(self, raw: bytes | msgspec.Raw) -> ProfileFeatures:
        """Reads one JSON value, that of ``profile_features``; null, and no bytes at all, make a record without any.

        Raises:
            PayloadError: it is no object or null, or a feature has another dtype; names the path from the request.
        """
        if not raw:
            return NO_PROFILE
        try:
            return _decode_fitting(raw) or NO_PROFILE
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._read_misfit(b'{"profile_features":' + bytes(raw) + b"}")

    def _read_misfit(self, body: bytes) -> ProfileFeatures:
        features = _decode_body(body).profile_features or NO_PROFILE
        self.unknown.note(name for name in _decode_parts(body).profile_features if name not in _NAMES)
        for feature in PROFILE:
            if _is_outside(feature, getattr(features, feature.name)):
                self.outside(feature.name)
        return features


def _is_outside(feature: ProfileFeature, value: float | None) -> bool:
    if value is None:
        return False
    return (feature.low is not None and value < feature.low) or (feature.high is not None and value > feature.high)
