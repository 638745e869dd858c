"""The contract in TypeScript and as a JSON Schema."""

import json

from models.profile_export import as_json_schema, as_typescript
from models.profile_schema import PROFILE, ProfileFeature

RATE = ProfileFeature(name="rate", dtype="float", unit="ratio", meaning="a */ share", low=0, high=1)
FLAG = ProfileFeature(name="is_new", dtype="bool", unit="flag", meaning='a "flag"')


def test_typescript_has_each_feature_as_data_and_in_the_type() -> None:
    """All facts of the declaration, as JSON writes them."""
    text = as_typescript([RATE, FLAG])
    assert '    name: "rate",\n    dtype: "float",\n    unit: "ratio",\n    low: 0,\n    high: 1,\n' in text
    assert '    low: null,\n    high: null,\n    meaning: "a \\"flag\\"",\n' in text
    assert "  rate?: number | null;\n" in text and "  is_new?: boolean | null;\n" in text


def test_typescript_comment_is_not_ended_by_a_meaning() -> None:
    """A meaning with the end of a comment in it stays in its comment."""
    assert "  /** a * / share (ratio) */\n" in as_typescript([RATE])


def test_json_schema_has_dtype_range_and_unit() -> None:
    """Null is of every type, and a limit that is not there is left out."""
    schema = as_json_schema([RATE, FLAG])
    assert schema["properties"] == {
        "rate": {
            **{"type": ["number", "null"], "description": "a */ share", "minimum": 0, "maximum": 1},
            "x-unit": "ratio",
        },
        "is_new": {"type": ["boolean", "null"], "description": 'a "flag"', "x-unit": "flag"},
    }
    assert schema["additionalProperties"] is True


def test_json_schema_of_the_contract_is_json_of_every_feature() -> None:
    """It can be written down, and has our names in our order."""
    schema = json.loads(json.dumps(as_json_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert list(schema["properties"]) == [feature.name for feature in PROFILE]
