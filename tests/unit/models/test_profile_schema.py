"""The contract of the profile features: what each says of itself, and the record that has them as its fields."""

import math
import re

import msgspec
import pytest

from models.profile_schema import MAX_FLOAT, MAX_INT, PROFILE, ProfileFeature, ProfileFeatures

VALUES = {"float": 0.25, "int": 3, "bool": True}


def test_profile_is_of_a_sensible_size_and_has_no_name_twice() -> None:
    """About twenty features, each named once."""
    names = [feature.name for feature in PROFILE]
    assert 15 <= len(names) <= 25 and len(set(names)) == len(names)
    assert tuple(names) == ProfileFeatures.__struct_fields__


@pytest.mark.parametrize("feature", PROFILE, ids=lambda feature: feature.name)
def test_profile_feature_says_what_it_is(feature: ProfileFeature) -> None:
    """Its name is one of JSON and TypeScript alike, and unit, meaning and a range in order are there."""
    assert re.fullmatch(r"[a-z][a-z0-9_]{2,49}", feature.name)
    assert feature.unit and feature.meaning[0].islower() and not feature.meaning.endswith(".")
    has_range = feature.low is not None and feature.high is not None and feature.low < feature.high
    assert has_range is (feature.dtype != "bool")


@pytest.mark.parametrize("feature", PROFILE, ids=lambda feature: feature.name)
def test_profile_record_takes_the_declared_dtype_and_null(feature: ProfileFeature) -> None:
    """A value of the dtype is decoded as it is, and null and an absent name are both None."""
    value = VALUES[feature.dtype]
    decode = msgspec.json.Decoder(ProfileFeatures).decode
    assert getattr(decode(msgspec.json.encode({feature.name: value})), feature.name) == value
    assert decode(msgspec.json.encode({feature.name: None})) == decode(b"{}") == ProfileFeatures()


def test_profile_records_are_equal_when_they_say_the_same() -> None:
    """Equal records have one hash, and nothing else is equal to a record."""
    one, same, other = ProfileFeatures(preferred_hour=9), ProfileFeatures(preferred_hour=9), ProfileFeatures()
    assert one == same and not one != same and hash(one) == hash(same)  # noqa: SIM202 (both operators are ours)
    assert one != other and not one == other and one != "x" and not one == "x"  # noqa: SIM201 (as above)


def test_profile_record_is_documented_in_its_schema() -> None:
    """The JSON schema made from the record has the meaning, unit and range of each feature, and allows other names."""
    schema = msgspec.json.schema(ProfileFeatures)["$defs"]["ProfileFeatures"]
    hour = schema["properties"]["preferred_hour"]
    assert hour["description"].endswith("null before the first (hour, 0 to 23)")
    assert "additionalProperties" not in schema and not schema["required"]


def test_profile_limits_are_those_of_float32_and_javascript() -> None:
    """The largest float32 is (2 − 2⁻²³) × 2¹²⁷, the largest safe integer 2⁵³ − 1."""
    assert math.ldexp(2 - 2**-23, 127) == MAX_FLOAT
    assert MAX_INT == 2**53 - 1
