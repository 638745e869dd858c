"""Profile features of a request: read by dtype, and what does not fit the contract counted within bounds."""

import json
import logging

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import PayloadError
from models.profile_reader import MAX_NAMES, NO_PROFILE, ProfileReader, UnknownFeatures
from models.profile_schema import MAX_FLOAT, MAX_INT, PROFILE, ProfileFeature, ProfileFeatures


class Counted:
    """A reader, and the names that it has counted."""

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self.outside: list[str] = []
        self.reader = ProfileReader(unknown=UnknownFeatures(self.unknown.append), outside=self.outside.append)

    def read(self, features: object) -> ProfileFeatures:
        """Reads features as a request sends them."""
        return self.reader.read(json.dumps(features).encode())

    def all(self) -> tuple[list[str], list[str]]:
        """What was unknown, and what was outside of its range."""
        return self.unknown, self.outside


def values_of(feature: ProfileFeature) -> st.SearchStrategy[float | None]:
    """Null and every value in range."""
    if feature.dtype == "bool":
        return st.none() | st.booleans()
    assert feature.low is not None and feature.high is not None
    if feature.dtype == "int":
        return st.none() | st.integers(int(feature.low), int(feature.high))
    return st.none() | st.floats(feature.low, feature.high)


in_range = st.fixed_dictionaries({}, optional={feature.name: values_of(feature) for feature in PROFILE})


@given(in_range)
def test_reader_reads_what_was_sent(features: dict[str, float | None]) -> None:
    """Whatever is in range is read as it is, absent names are None, and nothing is counted."""
    counted = Counted()
    read = counted.read(features)
    assert msgspec.structs.asdict(read) == dict.fromkeys(ProfileFeatures.__struct_fields__) | features
    assert counted.all() == ([], [])


@given(in_range, st.dictionaries(st.text(), st.none() | st.integers() | st.lists(st.text()), min_size=1))
def test_reader_reads_the_same_beside_unknown_names(features: dict[str, object], others: dict[str, object]) -> None:
    """Names that we lack, whatever they hold, change nothing of those that we have."""
    counted = Counted()
    one, other = counted.read(others | features), counted.read(features)
    assert one == other and other == one and hash(one) == hash(other)


@pytest.mark.parametrize("raw", [b"", b"null", b"{}", msgspec.Raw(b""), msgspec.Raw(b"null"), msgspec.Raw(b"{}")])
def test_reader_takes_nothing_for_no_profile(raw: bytes | msgspec.Raw) -> None:
    """Absent, null and empty features are all the same."""
    assert Counted().reader.read(raw) == NO_PROFILE


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        ('{"completion_rate_7d": "0.5"}', "profile_features.completion_rate_7d: expected float | null, got str"),
        ('{"completion_rate_7d": true}', "profile_features.completion_rate_7d: expected float | null, got bool"),
        ('{"completion_rate_7d": {}}', "profile_features.completion_rate_7d: expected float | null, got object"),
        ('{"completion_rate_7d": 1e39}', f"profile_features.completion_rate_7d: expected float <= {MAX_FLOAT}"),
        ('{"completion_rate_7d": -1e39}', f"profile_features.completion_rate_7d: expected float >= -{MAX_FLOAT}"),
        ('{"completion_rate_7d": 1e999}', "profile_features.completion_rate_7d: number out of range"),
        ('{"preferred_hour": 8.5}', "profile_features.preferred_hour: expected int | null, got float"),
        ('{"preferred_hour": true}', "profile_features.preferred_hour: expected int | null, got bool"),
        ('{"open_task_count": 9007199254740992}', f"profile_features.open_task_count: expected int <= {MAX_INT}"),
        ('{"open_task_count": 1%s}' % ("0" * 5000), "profile_features.open_task_count: integer value out of range"),
        ('{"is_weekend_active": 1}', "profile_features.is_weekend_active: expected bool | null, got int"),
        ('{"new": 1, "preferred_hour": "9"}', "profile_features.preferred_hour: expected int | null, got str"),
        ("[]", "profile_features: expected object | null, got array"),
        ("7", "profile_features: expected object | null, got int"),
    ],
    ids=[
        *("text", "bool", "object", "high", "low", "infinite"),
        *("decimals", "bool-int", "unsafe", "huge", "int-bool", "beside-unknown", "array", "number"),
    ],
)
def test_reader_refuses_a_wrong_dtype_by_path(features: str, reason: str) -> None:
    """The reason is the path from the request's root, then what was expected; such a request counts nothing."""
    counted = Counted()
    with pytest.raises(PayloadError) as caught:
        counted.reader.read(features.encode())
    assert caught.value.reason == reason
    assert counted.all() == ([], [])


@pytest.mark.parametrize("raw", [b'{"x": NaN}', b'{"preferred_hour": Infinity}', b'{"\xff": 1}', b'{"x": 1', b"}"])
def test_reader_refuses_what_is_no_json(raw: bytes) -> None:
    """NaN and the infinities are no JSON, and neither are other bytes."""
    with pytest.raises(PayloadError, match=r"^payload: not valid JSON \("):
        Counted().reader.read(raw)


@pytest.mark.parametrize(
    ("name", "value"),
    [("preferred_hour", 24), ("preferred_hour", -1), ("completion_rate_7d", 1.001), ("completion_rate_7d", -0.001)],
)
def test_reader_keeps_and_counts_what_is_outside_of_its_range(name: str, value: float) -> None:
    """A value beyond either limit is used as it was sent, and counted by name."""
    counted = Counted()
    assert counted.read({name: value}) == ProfileFeatures(**{name: value})
    assert counted.all() == ([], [name])


def test_reader_counts_each_misfit_of_a_request_and_nothing_else() -> None:
    """Beside an unknown name and a value out of range, values at their very limits are in range."""
    counted = Counted()
    counted.read({"preferred_hour": 0, "completion_rate_7d": 1, "active_days_30d": 31, "mood": 1})
    assert counted.all() == (["mood"], ["active_days_30d"])


def test_reader_counts_unknown_names_each_time_and_logs_them_once(caplog: pytest.LogCaptureFixture) -> None:
    """Three requests with a name of a newer caller are three counts and one line."""
    counted = Counted()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert counted.read({"mood": "good", "preferred_hour": 9}) == ProfileFeatures(preferred_hour=9)
    assert counted.all() == (["mood"] * 3, [])
    assert [record.fields for record in caplog.records] == [{"feature": "mood"}]  # type: ignore[attr-defined]


def test_unknown_features_are_logged_by_their_kind(caplog: pytest.LogCaptureFixture) -> None:
    """Who reads the log learns which part of a request had the name."""
    UnknownFeatures(lambda _: None, kind="candidate").note(["mood"])
    assert [record.getMessage() for record in caplog.records] == ["an unknown candidate feature is ignored"]


def test_unknown_features_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """After 50 names every new one is "other", with one line that says so; the first 50 keep their labels."""
    labels: list[str] = []
    unknown = UnknownFeatures(labels.append)
    with caplog.at_level(logging.WARNING):
        for number in range(MAX_NAMES + 20):
            unknown.note([f"n{number}"])
        unknown.note(["n0"])
    assert labels == [f"n{number}" for number in range(MAX_NAMES)] + ["other"] * 20 + ["n0"]
    assert len(caplog.records) == MAX_NAMES + 1


def test_unknown_features_of_one_request_are_bounded() -> None:
    """A request with a thousand made-up names costs no more than one with 50."""
    labels: list[str] = []
    UnknownFeatures(labels.append).note(f"n{number}" for number in range(1000))
    assert len(labels) == MAX_NAMES


@pytest.mark.parametrize(
    ("name", "label"),
    [("", "_"), ("a b\n\x00{}", "a_b____"), ("é", "_"), ("x" * 100, "x" * 64), ("a.B:c-d_9", "a.B:c-d_9")],
    ids=["empty", "control", "letter", "long", "clean"],
)
def test_unknown_features_are_labelled_by_clean_names(name: str, label: str) -> None:
    """A label is short and has letters, digits and a few signs only."""
    labels: list[str] = []
    UnknownFeatures(labels.append).note([name])
    assert labels == [label]
