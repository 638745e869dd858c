"""Comparing rows: every key is on one side, on both, equal or not; and fields that differ are named by path."""

from collections.abc import Mapping

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.tables import Table
from streams.compare import Difference, Tally, changed_fields, compare_rows


@attrs.frozen(kw_only=True)
class Row:
    n: int
    note: str = ""


ROWS = Table("rows", Row)
SIDES = st.dictionaries(st.text("ab", min_size=1, max_size=2), st.integers(0, 2), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from(["x", "y", "z"]), VALUES, max_size=3)


def compare(stored: Mapping[str, bytes], rebuilt: Mapping[str, bytes]) -> tuple[list[Difference], Tally]:
    """Compares two sides as a store gives them, by key."""
    tally = Tally()
    found = list(compare_rows(ROWS, iter(sorted(stored.items())), iter(sorted(rebuilt.items())), tally))
    return found, tally


def encoded(side: Mapping[str, int]) -> dict[str, bytes]:
    """Rows as the store has them."""
    return {key: ROWS.encode(Row(n=n)) for key, n in side.items()}


@given(SIDES, SIDES)
def test_compare_rows_finds_what_dicts_say(left: dict[str, int], right: dict[str, int]) -> None:
    """The differences are those of the dicts, by key, each with both rows; all other keys are counted as equal."""
    stored, rebuilt = encoded(left), encoded(right)
    found, tally = compare(stored, rebuilt)
    unequal = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
    assert found == [Difference(key=key, stored=stored.get(key), rebuilt=rebuilt.get(key)) for key in unequal]
    assert tally == Tally(equal=len(left.keys() | right.keys()) - len(unequal), different=len(unequal))


@pytest.mark.parametrize(
    ("stored", "is_equal"),
    [(b'{"note":"","n":1}', True), (b'{"n":1}', True), (b'{"n":2}', False), (b'{"m":1}', False)],
    ids=["other order", "default left out", "other value", "not readable"],
)
def test_compare_rows_compares_records(stored: bytes, is_equal: bool) -> None:
    """Rows that read as the same record are equal, however they are spelled; one that can't be read differs."""
    found, tally = compare({"a": stored}, {"a": b'{"n":1,"note":""}'})
    assert (not found, tally.equal) == (is_equal, int(is_equal))


@given(OBJECTS, OBJECTS)
def test_changed_fields_are_empty_only_for_equal_rows(before: dict[str, object], after: dict[str, object]) -> None:
    """Two rows have changed fields exactly when they differ, and none is told twice."""
    found = list(changed_fields(msgspec.json.encode(before), msgspec.json.encode(after)))
    assert bool(found) == (before != after)
    assert len({path for path, _, _ in found}) == len(found)


def test_changed_fields_name_path_and_values() -> None:
    """A nested field is named with its path; a field that is on one side alone is a dash on the other."""
    before = b'{"a":{"b":1,"c":[1,2]},"gone":null,"same":3}'
    after = b'{"a":{"b":2,"c":[1]},"new":"x","same":3}'
    expected = [("a.b", "1", "2"), ("a.c", "[1,2]", "[1]"), ("gone", "null", "-"), ("new", "-", '"x"')]
    assert list(changed_fields(before, after)) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(None, b'{"n":1}', ("", "-", '{"n":1}')), (b'{"n":1}', None, ("", '{"n":1}', "-")), (None, None, ("", "-", "-"))],
    ids=["new", "deleted", "neither"],
)
def test_changed_fields_show_a_new_or_deleted_row_whole(
    before: bytes | None, after: bytes | None, expected: tuple[str, str, str]
) -> None:
    """A row that is there on one side only is shown as a whole, without a path."""
    assert list(changed_fields(before, after)) == [expected]


def test_changed_fields_shorten_what_is_long() -> None:
    """A value of more than 200 characters is cut and says so."""
    [(path, old, new)] = changed_fields(b'{"a":1}', msgspec.json.encode({"a": "x" * 500}))
    assert (path, old, len(new), new[-1]) == ("a", "1", 201, "…")
