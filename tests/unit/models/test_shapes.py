"""The fields that are inferred from events."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.shapes import MAX_FIELDS, MAX_NAME, Field, is_field_name, objects_of, shape_of

NOON = "2026-03-01T12:00:00Z"


def spelled(*values: object) -> str:
    """The annotation of a field that had these values."""
    (field,) = shape_of([{"x": value} for value in values]).fields
    return field.annotation + " | None" * field.is_optional


@pytest.mark.parametrize(
    ("values", "annotation"),
    [
        pytest.param(("a", "b"), "str", id="text"),
        pytest.param((1, 2**70), "int", id="whole"),
        pytest.param((1, 0.5), "float", id="whole-and-broken"),
        pytest.param((True,), "bool", id="switch"),
        pytest.param((True, 1), "bool | int", id="switch-and-number"),
        pytest.param((1, "a"), "int | str", id="two-kinds"),
        pytest.param((1, "a", []), "Any", id="three-kinds"),
        pytest.param((None, None), "Any | None", id="null-alone"),
        pytest.param((1, None), "int | None", id="null"),
        pytest.param((NOON, "2026-03-01T12:00:00.5+02:00"), "dt.datetime", id="instants"),
        pytest.param((NOON, "2026-03-01T12:00:00"), "str", id="no-zone"),
        pytest.param((NOON, "soon"), "str", id="instant-and-text"),
        pytest.param((NOON, 1), "int | str", id="instant-and-number"),
        pytest.param(("0001-01-01T00:00:00+01:00",), "str", id="instant-before-year-1"),
        pytest.param(({"a": 1},), "dict[str, Any]", id="object"),
        pytest.param(([],), "list[Any]", id="empty-list"),
        pytest.param((["a"], []), "list[str]", id="texts"),
        pytest.param(([1, 0.5],), "list[float]", id="numbers"),
        pytest.param((["a", None],), "list[str | None]", id="texts-and-null"),
        pytest.param(([{}],), "list[dict[str, Any]]", id="objects"),
        pytest.param(([[1]],), "list[Any]", id="lists"),
        pytest.param((["a", 1],), "list[Any]", id="mixed-list"),
    ],
)
def test_shape_spells_what_values_have_in_common(values: tuple[object, ...], annotation: str) -> None:
    """The annotation is the narrowest of a few that takes every value."""
    assert spelled(*values) == annotation


def test_shape_makes_what_was_absent_optional() -> None:
    """A name that an event lacks is optional; the order is that of the first sight."""
    fields = shape_of([{"a": 1}, {"b": "x", "a": 2}]).fields
    assert fields == (
        Field(name="a", annotation="int"),
        Field(name="b", annotation="str", is_optional=True, is_filled=True),
    )


def test_shape_knows_whether_a_text_was_ever_empty() -> None:
    """Only a text that never was empty may be declared as filled."""
    found = shape_of([{"a": "x", "b": "x"}, {"a": "", "b": "y"}]).fields
    assert [field.is_filled for field in found] == [False, True]


def test_shape_leaves_out_what_is_no_name() -> None:
    """Names that Python, or the class itself, can't take as they are are listed instead."""
    bad = ["a-b", "", "class", "_id", "ä", "self", "dt", "attrs", "str", "Any", "x" * (MAX_NAME + 1), "a\n"]
    shape = shape_of([dict.fromkeys([*bad, "type", "id"], 1)])
    assert [field.name for field in shape.fields] == ["type", "id"]
    assert shape.left_out == tuple(bad)


def test_shape_keeps_the_commonest_names() -> None:
    """Of very many names, as where keys are ids, the rarest are left out."""
    events = [{"user_id": "a", f"k{number}": number} for number in range(100)]
    shape = shape_of(events)
    assert len(shape.fields) == MAX_FIELDS and shape.fields[0].name == "user_id"
    assert len(shape.left_out) == 101 - MAX_FIELDS


def test_objects_are_the_payloads_that_can_be_events() -> None:
    """What is no JSON, or no object, is passed over."""
    deep = b"[" * 100_000
    assert objects_of([b'{"a": 1}', b"no", b"[1]", b"3", b"", b"\xff", deep, b"{}"]) == [{"a": 1}, {}]


def test_shape_of_no_events_has_no_fields() -> None:
    """Nothing is made up."""
    assert shape_of([]).fields == ()


TEXT = st.text('ab-\n"é', max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "class", "a-b"]), json_values), max_size=5))
def test_shape_accounts_for_every_name(events: list[dict[str, Any]]) -> None:
    """Each name that occurs is a field or left out, never both, and a field is optional if it is ever missing."""
    shape = shape_of(events)
    names = [field.name for field in shape.fields]
    assert sorted([*names, *shape.left_out]) == sorted({name for event in events for name in event})
    for field in shape.fields:
        assert field.is_optional == any(event.get(field.name) is None for event in events)
        assert is_field_name(field.name)


def test_objects_keep_the_last_of_equal_names() -> None:
    """As every JSON reader here does."""
    (event,) = objects_of([b'{"a": 1, "a": "x"}'])
    assert isinstance(event, Mapping) and json.dumps(event) == '{"a": "x"}'
