"""From bytes to typed records and back.

msgspec's JSON decoder reads attrs classes directly, names the path of a bad field and runs attrs validators; it serves
everything on the path of a message: events and table rows. Errors leave here as PayloadError with a path that a person
can follow (``candidates[3].id: expected str, got int``).
"""

import datetime as dt
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import msgspec

from models.errors import PayloadError

T = TypeVar("T")

_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]+)`")
_FIELD = re.compile(r"^[a-z_][a-z0-9_]*: ")
_PATH = re.compile(r" - at (?P<key>`key` in )?`(?P<path>[^`]*)`$")

encode_json: Callable[[object], bytes] = msgspec.json.Encoder().encode


def decoder_for(cls: type[T]) -> Callable[[bytes], T]:
    """Builds a decoder of JSON bytes into ``cls``, an attrs class; unknown fields are ignored.

    Returns:
        A function that raises PayloadError, with the path of the field, for anything that does not fit.
    """
    decode = msgspec.json.Decoder(cls).decode

    def decode_typed(payload: bytes) -> T:
        try:
            return decode(payload)
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise PayloadError(describe_error(error)) from error

    return decode_typed


def fingerprint(cls: type) -> str:
    """Twelve hexadecimal digits that stand for the JSON schema of ``cls``, an attrs class."""
    schema = msgspec.json.schema(cls)
    for definition in schema.get("$defs", {}).values():
        definition.pop("description", None)  # a docstring changes no data
    return hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:12]


def describe_error(error: Exception) -> str:
    """Turns a decoder's error into ``path: what is wrong``; the path is ``payload`` for the whole document."""
    if not isinstance(error, msgspec.ValidationError):
        return f"payload: not valid JSON ({error})"
    text = str(error)
    path = ""
    if found := _PATH.search(text):
        path = found["path"].removeprefix("$").removeprefix(".")
        path += " (a key)" if found["key"] else ""
        text = text[: found.start()]
    if missing := _MISSING.match(text):
        return f"{path}.{missing['name']}: missing".removeprefix(".")
    if _FIELD.match(text):  # a validator of ours has named its field already
        return f"{path}.{text}".removeprefix(".")
    return f"{path or 'payload'}: {text[:1].lower()}{text[1:].replace('`', '')}"


def aware(instance: object, attribute: "attrs.Attribute[Any]", value: dt.datetime | None) -> None:
    """Validator: an instant carries its zone, for a naive one can't be placed in time, and UTC can express it."""
    if value is None:
        return
    if value.utcoffset() is None:
        raise ValueError(f"{attribute.name}: expected an instant with a zone (RFC 3339), got {value.isoformat()}")
    try:
        value.astimezone(dt.UTC)
    except OverflowError as error:
        problem = f"expected an instant within the years 1 to 9999 of UTC, got {value.isoformat()}"
        raise ValueError(f"{attribute.name}: {problem}") from error


ID_PATTERN = r"[A-Za-z0-9._:-]{1,128}"
"""The form of an id from outside, which may be kept, logged and put into a header."""
_ID = re.compile(ID_PATTERN)


def is_id(text: str) -> bool:
    """Whether a text has the form of an id."""
    return _ID.fullmatch(text) is not None


def describe_no_id(text: str) -> str:
    """What is said of a text that is no id, behind the path of its field."""
    shown = text if len(text) <= 40 else text[:40] + "…"
    return f"expected {ID_PATTERN}, got {shown!r}"


def identifier(instance: object, attribute: "attrs.Attribute[Any]", value: str | None) -> None:
    """Validator: an id from outside; None passes."""
    if value is not None and not is_id(value):
        raise ValueError(f"{attribute.name}: {describe_no_id(value)}")


def filled(instance: object, attribute: "attrs.Attribute[Any]", value: str) -> None:
    """Validator: a text that has at least one character."""
    if not value:
        raise ValueError(f"{attribute.name}: expected at least one character")


@attrs.frozen
class Between:
    """Validator: a number from ``low`` to ``high``, both finite and included; NaN is none, None passes."""

    low: float
    high: float

    def __call__(self, instance: object, attribute: "attrs.Attribute[Any]", value: float | None) -> None:
        """Raises ValueError for any other number, also for a whole one that no float can hold."""
        if value is not None and not self.low <= value <= self.high:
            shown = repr(value)[:40]
            raise ValueError(f"{attribute.name}: expected a number from {self.low:g} to {self.high:g}, got {shown}")


def between(low: float, high: float) -> Between:
    """Makes the validator of a range; it is an object, so that a JSON Schema can show the range."""
    return Between(low, high)
