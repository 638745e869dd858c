"""Schemas hold what types, validators and docstrings say, and let through just what is decoded."""

import datetime as dt
from typing import Annotated, Any, Literal

import attrs
import msgspec
import pytest
from attrs import validators
from hypothesis import given
from hypothesis import strategies as st
from openapi_schema_validator import OAS31Validator

from app.openapi_schemas import schemas_of
from models.codec import aware, between, decoder_for, filled
from models.errors import PayloadError


@attrs.frozen(kw_only=True)
class Inner:
    name: str = attrs.field(validator=filled)


@attrs.frozen(kw_only=True)
class Sent:
    """What is sent,
    in two lines.

    Args:
        ratio: of ``a`` to b, which
            goes on here.
        nothing: no field has this name.
    """

    ratio: float | None = attrs.field(default=None, validator=between(0, 1))
    inner: Inner
    at: dt.datetime = attrs.field(validator=aware)
    code: str = attrs.field(validator=validators.matches_re("[a-c]{2}"))
    count: int = attrs.field(validator=[validators.ge(1), validators.lt(9)])
    maybe: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(3)))
    kind: Literal["x", "y"] = "x"


@attrs.frozen(kw_only=True)
class Answered:
    """What is answered."""

    b: int = 1
    a: str | None = None
    rare: str | msgspec.UnsetType = msgspec.UNSET
    inner: Inner


def component(cls: type, *, is_sent: bool = True) -> dict[str, Any]:
    """The schema of a class that a request carries, or an answer."""
    made = schemas_of([cls], []) if is_sent else schemas_of([], [cls])
    return made.components[cls.__name__]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        pytest.param("at", {"type": "string", "format": "date-time"}, id="instant"),
        pytest.param("code", {"type": "string", "pattern": "^(?:[a-c]{2})$"}, id="pattern"),
        pytest.param("count", {"type": "integer", "minimum": 1, "exclusiveMaximum": 9}, id="two-validators"),
        pytest.param("kind", {"enum": ["x", "y"], "default": "x"}, id="words"),
        pytest.param("inner", {"$ref": "#/components/schemas/Inner"}, id="class"),
        pytest.param(
            "maybe",
            {"anyOf": [{"type": "integer", "exclusiveMinimum": 3}, {"type": "null"}], "default": None},
            id="optional",
        ),
    ],
)
def test_schema_of_a_field_has_what_its_validators_promise(field: str, expected: dict[str, Any]) -> None:
    """Limits stand at the branch that they limit, and not at the null beside it."""
    assert component(Sent)["properties"][field] == expected


def test_schema_takes_the_docstring_apart() -> None:
    """The class is described by its text, a field by its argument; names that are no fields are left out."""
    made = component(Sent)
    assert made["description"] == "What is sent,\nin two lines."
    assert made["properties"]["ratio"]["description"] == "Of ``a`` to b, which goes on here."
    assert "description" not in component(Inner)


def test_schema_of_an_answer_requires_all_its_fields_in_their_order() -> None:
    """An answer has every field but one that may be unset; a class that is sent too keeps its defaults."""
    made = component(Answered, is_sent=False)
    assert list(made["properties"]) == ["b", "a", "rare", "inner"] and made["required"] == ["b", "a", "inner"]
    assert made["properties"]["b"] == {"type": "integer"}
    both = schemas_of([Answered], [Answered]).components["Answered"]
    assert both["required"] == ["inner"] and both["properties"]["b"] == {"type": "integer", "default": 1}


def test_schemas_come_in_the_order_of_their_types() -> None:
    """Each type has its schema, whatever it is made of; an object of any kind is any JSON."""
    types = [Annotated[str, msgspec.Meta(min_length=2)], dict[str, list[Inner]], dict[str, object]]
    text, mapping, anything = schemas_of(types, []).of_types
    assert text == {"type": "string", "minLength": 2}
    assert mapping["additionalProperties"] == {"type": "array", "items": {"$ref": "#/components/schemas/Inner"}}
    assert anything["additionalProperties"] == {"description": "Any JSON."}


def test_schema_of_a_type_that_json_does_not_have_is_refused() -> None:
    """The error names the type."""
    with pytest.raises(TypeError, match="complex"):
        schemas_of([complex], [])


@given(
    ratio=st.one_of(st.none(), st.integers(-1, 2), st.sampled_from([0.5, 1.5, "0.5"])),
    code=st.sampled_from(["ab", "abc", "ad", "", 1]),
    count=st.integers(0, 10),
    name=st.sampled_from(["", "n", None]),
)
def test_schema_accepts_what_the_decoder_accepts(ratio: object, code: object, count: int, name: object) -> None:
    """For any values of the fields the schema and the decoder agree."""
    value = {"ratio": ratio, "code": code, "count": count, "inner": {"name": name}, "at": "2026-01-02T03:04:05Z"}
    made = schemas_of([Sent], [])
    schema = made.of_types[0] | {"components": {"schemas": dict(made.components)}}
    try:
        decoder_for(Sent)(msgspec.json.encode(value))
        is_decoded = True
    except PayloadError:
        is_decoded = False
    assert OAS31Validator(schema).is_valid(value) is is_decoded
