"""Compares rows with rows, typed, key by key: what ``state verify`` reports and ``replay`` shows of a write. Pure."""

from collections.abc import Iterator
from typing import Any

import attrs
import msgspec

from models.errors import PayloadError
from state.tables import AnyTable

SHOWN_BYTES = 200

_MISSING = object()


@attrs.frozen(kw_only=True)
class Difference:
    """A row that is not the same in two places; None where there is none. JSON."""

    key: str
    stored: bytes | None
    rebuilt: bytes | None


@attrs.define(kw_only=True)
class Tally:
    """How many rows were compared, by what was found."""

    equal: int = 0
    different: int = 0


def compare_rows(
    table: AnyTable, stored: Iterator[tuple[str, bytes]], rebuilt: Iterator[tuple[str, bytes]], tally: Tally
) -> Iterator[Difference]:
    """Yields the rows that differ, by key; both sides come in the order of keys.

    Rows are compared as records: a field that was added with a default differs from nothing.
    """
    left, right = next(stored, None), next(rebuilt, None)
    while left or right:
        if right is None or (left is not None and left[0] < right[0]):
            assert left is not None, "the loop ends when both are None"
            difference = Difference(key=left[0], stored=left[1], rebuilt=None)
            left = next(stored, None)
        elif left is None or right[0] < left[0]:
            difference = Difference(key=right[0], stored=None, rebuilt=right[1])
            right = next(rebuilt, None)
        else:
            difference = Difference(key=left[0], stored=left[1], rebuilt=right[1])
            left, right = next(stored, None), next(rebuilt, None)
        if _is_same(table, difference):
            tally.equal += 1
        else:
            tally.different += 1
            yield difference


def _is_same(table: AnyTable, found: Difference) -> bool:
    if found.stored is None or found.rebuilt is None:
        return False
    if found.stored == found.rebuilt:
        return True
    try:
        return bool(table.decode(found.stored) == table.decode(found.rebuilt))
    except PayloadError:  # the store has a row that today's class can't read
        return False


def changed_fields(before: bytes | None, after: bytes | None) -> Iterator[tuple[str, str, str]]:
    """The fields in which two rows differ: path, and both values as short JSON; a row that is not there is ``-``.

    An empty path stands for the row as a whole.
    """
    if before is None or after is None:
        yield "", _short(_decoded(before)), _short(_decoded(after))
        return
    yield from _walk("", _decoded(before), _decoded(after))


def _decoded(row: bytes | None) -> Any:
    return _MISSING if row is None else msgspec.json.decode(row)


def _walk(path: str, before: Any, after: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from _walk(f"{path}.{name}".removeprefix("."), before.get(name, _MISSING), after.get(name, _MISSING))
    elif before != after:
        yield path, _short(before), _short(after)


def _short(value: Any) -> str:
    if value is _MISSING:
        return "-"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= SHOWN_BYTES else text[:SHOWN_BYTES] + "…"
