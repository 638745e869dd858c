"""The contract of the profile features as files for other languages: TypeScript, and JSON Schema of draft 2020-12.

This module owns the two forms; the facts are models/profile_schema.py's. Both allow names that the contract lacks, for
a caller may be newer than we are. app/cli/schema.py prints them.
"""

import json
from collections.abc import Iterator, Sequence

from models.profile_schema import PROFILE, ProfileFeature

_TYPESCRIPT = {"float": "number", "int": "number", "bool": "boolean"}
_JSON = {"float": "number", "int": "integer", "bool": "boolean"}
_HEAD = """\
// The profile features of tipstream's /score and /generate. Made by `python -m app schema profile --format ts`.

export type ProfileDtype = "float" | "int" | "bool";

export interface ProfileFeatureSpec {
  readonly name: string;
  readonly dtype: ProfileDtype;
  readonly unit: string;
  readonly meaning: string;
  readonly low: number | null;
  readonly high: number | null;
}
"""


def as_typescript(features: Sequence[ProfileFeature] = PROFILE) -> str:
    """A module for TypeScript 5 with every feature as data, and the type of ``profile_features``."""
    return "\n".join((_HEAD, *_array(features), "", *_interface(features), ""))


def as_json_schema(features: Sequence[ProfileFeature] = PROFILE) -> dict[str, object]:
    """A JSON Schema of ``profile_features``; beyond its limits a value is counted, not refused."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "profile_features",
        "description": "What a request says of its user; null and an absent name are both a missing value.",
        "type": ["object", "null"],
        "properties": {feature.name: _property(feature) for feature in features},
        "additionalProperties": True,
    }


def _array(features: Sequence[ProfileFeature]) -> Iterator[str]:
    yield "export const PROFILE_FEATURES = ["
    for feature in features:
        yield "  {"
        for key, value in _facts(feature).items():
            yield f"    {key}: {json.dumps(value, ensure_ascii=False)},"
        yield "  },"
    yield "] as const satisfies readonly ProfileFeatureSpec[];"
    yield ""
    yield 'export type ProfileFeatureName = (typeof PROFILE_FEATURES)[number]["name"];'


def _facts(feature: ProfileFeature) -> dict[str, object]:
    return {
        "name": feature.name,
        "dtype": feature.dtype,
        "unit": feature.unit,
        "low": feature.low,
        "high": feature.high,
        "meaning": feature.meaning,
    }


def _interface(features: Sequence[ProfileFeature]) -> Iterator[str]:
    yield "export interface ProfileFeatures {"
    for feature in features:
        yield f"  /** {_comment(feature)} */"
        yield f"  {feature.name}?: {_TYPESCRIPT[feature.dtype]} | null;"
    yield "}"


def _comment(feature: ProfileFeature) -> str:
    """The meaning with the unit; a text can't end its comment."""
    whole = ", a whole number" if feature.dtype == "int" else ""
    return f"{feature.meaning} ({feature.unit}{whole})".replace("*/", "* /")


def _property(feature: ProfileFeature) -> dict[str, object]:
    limits = {"minimum": feature.low, "maximum": feature.high}
    return {
        "type": [_JSON[feature.dtype], "null"],
        "description": feature.meaning,
        **{key: limit for key, limit in limits.items() if limit is not None},
        "x-unit": feature.unit,
    }
