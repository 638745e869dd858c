"""What JSON events look like: the fields of an event type that decodes every one of some given ones.

This module owns the inference and decides without I/O; it guesses at nothing that the events don't show. What was never
seen absent is required, and what was ever null or absent is optional. Sources of events are streams/sampling.py, and
app/scaffold.py writes the type down.
"""

import datetime as dt
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence

import attrs
import msgspec

from models.codec import aware

MAX_NAME = 50
MAX_FIELDS = 60

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_ORDER = ("bool", "int", "float", "str", "list", "dict")
_TAKEN = frozenset({"attrs", "aware", "filled", "dt", "Any", "self", *_ORDER})


@attrs.frozen(kw_only=True)
class Field:
    """A field as a class declares it.

    Args:
        annotation: its type as Python spells it, without the None that ``is_optional`` adds.
        is_filled: it is a text and was never an empty one.
    """

    name: str
    annotation: str
    is_optional: bool = False
    is_filled: bool = False

    @property
    def is_instant(self) -> bool:
        """Whether it is an instant, which needs a zone."""
        return self.annotation == "dt.datetime"


@attrs.frozen(kw_only=True)
class Shape:
    """The fields of an event type, in the order in which they were first seen, and the names that can't be fields."""

    fields: tuple[Field, ...]
    left_out: tuple[str, ...] = ()


@attrs.define
class _Seen:
    """The values of one name."""

    count: int = 0
    kinds: set[str] = attrs.field(factory=set)
    has_empty: bool = False
    texts_are_instants: bool = True
    items: set[str] = attrs.field(factory=set)

    def note(self, value: object) -> None:
        """Adds a value."""
        self.count += 1
        kind = _kind(value)
        self.kinds.add(kind)
        if isinstance(value, str):
            self.has_empty = self.has_empty or not value
            self.texts_are_instants = self.texts_are_instants and _is_instant(value)
        if isinstance(value, list):
            self.items |= {_kind(item) for item in value}


def objects_of(payloads: Iterable[bytes]) -> list[Mapping[str, object]]:
    """The payloads that are JSON objects, decoded; others can be events of no type."""
    found: list[Mapping[str, object]] = []
    for payload in payloads:
        try:
            value = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def shape_of(events: Sequence[Mapping[str, object]]) -> Shape:
    """Infers the fields of a type that decodes all these events.

    A name that can't be a field of a class (no identifier, or one that Python or the class needs itself) is left out,
    as are the rarest names beyond 60: a decoder ignores what it does not know.
    """
    seen: dict[str, _Seen] = {}
    for event in events:
        for name, value in event.items():
            seen.setdefault(name, _Seen()).note(value)
    usable = [name for name in seen if is_field_name(name)]
    chosen = set(sorted(usable, key=lambda name: -seen[name].count)[:MAX_FIELDS])
    return Shape(
        fields=tuple(_field(name, seen[name], len(events)) for name in usable if name in chosen),
        left_out=tuple(name for name in seen if name not in chosen),
    )


def is_field_name(name: str) -> bool:
    """Whether a JSON name can be the name of a field as it is."""
    is_taken = keyword.iskeyword(name) or name in _TAKEN
    return bool(_NAME.fullmatch(name)) and len(name) <= MAX_NAME and not is_taken


def _field(name: str, seen: _Seen, total: int) -> Field:
    kinds = seen.kinds - {"null"}
    is_optional = seen.count < total or "null" in seen.kinds
    is_instant = kinds == {"str"} and seen.texts_are_instants
    annotation = "dt.datetime" if is_instant else _annotation(kinds, seen.items)
    is_filled = annotation == "str" and not seen.has_empty
    return Field(name=name, annotation=annotation, is_optional=is_optional, is_filled=is_filled)


def _annotation(kinds: set[str], items: set[str]) -> str:
    kinds = _widened(kinds)
    if not 1 <= len(kinds) <= 2:
        return "Any"
    spelled = {"list": f"list[{_item(items)}]", "dict": "dict[str, Any]"}
    return " | ".join(spelled.get(kind, kind) for kind in _ORDER if kind in kinds)


def _item(kinds: set[str]) -> str:
    some = _widened(kinds - {"null"})
    if len(some) != 1 or "list" in some:
        return "Any"
    kind = some.pop()
    return ("dict[str, Any]" if kind == "dict" else kind) + " | None" * ("null" in kinds)


def _widened(kinds: set[str]) -> set[str]:
    """A whole number is a float too where others are."""
    return kinds - {"int"} if "float" in kinds else kinds


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


@attrs.frozen(kw_only=True)
class _Instant:
    at: dt.datetime = attrs.field(validator=aware)


def _is_instant(text: str) -> bool:
    """Whether an instant with a zone is decoded from a text."""
    try:
        msgspec.convert({"at": text}, _Instant)
    except msgspec.ValidationError:
        return False
    return True
