"""The features, each by its declaration, and the matrices that are made of them."""

import datetime as dt
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ModelError
from models.features import FEATURES, Assembler, Feature, Moment, ScoreContext, feature_problems
from models.profile_schema import PROFILE, ProfileFeatures
from models.rows import ProviderSync, UserSync

NOON = dt.datetime(2026, 3, 6, 12, 30, tzinfo=dt.UTC)  # a Friday
OWN = [name for name, feature in FEATURES.items() if feature.source == "candidate"]
NUMBERS = st.none() | st.floats(-1e30, 1e30, allow_nan=False)
VALUES = {"float": st.floats(-1e30, 1e30), "int": st.integers(-(2**53), 2**53), "bool": st.booleans()}
PROFILES = st.builds(ProfileFeatures, **{one.name: st.none() | VALUES[one.dtype] for one in PROFILE})


def moment(**changes: Any) -> Moment:
    """A moment of which nothing is known."""
    return Moment(**{"now": NOON, "profile": ProfileFeatures(), "rows": {}} | changes)


def value_of(name: str, at: Moment) -> float:
    """What the feature is in a matrix of its own; NaN for missing."""
    return float(Assembler([name]).matrix_of([{}], at)[0, 0])


def synced(*hours_ago: float, counts: tuple[int | None, ...] = ()) -> dict[str, object]:
    """The row of a user whose providers were synchronised so long ago."""
    providers = {}
    for number, hours in enumerate(hours_ago):
        count = counts[number] if counts else None
        providers[f"p{number}"] = ProviderSync(synced_at=NOON - dt.timedelta(hours=hours), task_count=count)
    return {"user_sync": UserSync(providers=providers)}


@pytest.mark.parametrize("name", [name for name in FEATURES])
def test_what_is_not_known_is_missing(name: str) -> None:
    """No feature makes a value up: without profile, context, rows and candidate's features each is NaN."""
    assert math.isnan(value_of(name, moment()))


@pytest.mark.parametrize(
    ("offset", "hour", "weekend"),
    [
        pytest.param(0, 12.5, 0, id="utc"),
        pytest.param(-720, 0.5, 0, id="far-west"),
        pytest.param(720, 0.5, 1, id="saturday-in-the-far-east"),
        pytest.param(345, 18.25, 0, id="three-quarters"),  # 12:30 + 5:45
    ],
)
def test_context_features_are_those_of_the_users_clock(offset: int, hour: float, weekend: float) -> None:
    """The hour and the day are the user's, by the offset that the request brings."""
    at = moment(context=ScoreContext(utc_offset_minutes=offset))
    assert (value_of("hour_local", at), value_of("is_weekend", at)) == (hour, weekend)


def test_table_features_are_those_of_the_row() -> None:
    """The newest synchronisation counts, and tasks are summed over providers that say how many they have."""
    at = moment(rows=synced(30, 6, 9, 12, counts=(4, None, 3, 5)))
    assert value_of("hours_since_sync", at) == 6
    assert value_of("provider_count", at) == 4
    assert value_of("synced_task_count", at) == 12  # 4 + 3 + 5


def test_table_features_without_a_count_or_a_provider() -> None:
    """A row that says nothing of tasks leaves the count missing, and one without providers has no last one."""
    assert math.isnan(value_of("synced_task_count", moment(rows=synced(1))))
    empty = moment(rows={"user_sync": UserSync()})
    assert math.isnan(value_of("hours_since_sync", empty))
    assert value_of("provider_count", empty) == 0


def test_a_synchronisation_that_lies_ahead_was_just_now() -> None:
    """A provider's clock that is ahead gives no negative age."""
    assert value_of("hours_since_sync", moment(rows=synced(-5))) == 0


def test_profile_features_are_those_of_the_contract() -> None:
    """Each feature of the contract is one that models may read, with its unit, meaning and range; a flag is 0 or 1."""
    for declared in PROFILE:
        feature = FEATURES[declared.name]
        assert (feature.unit, feature.meaning, feature.low, feature.high) == (
            *(declared.unit, declared.meaning),
            *(declared.low, declared.high),
        )
    assert value_of("is_weekend_active", moment(profile=ProfileFeatures(is_weekend_active=True))) == 1
    assert value_of("current_streak_days", moment(profile=ProfileFeatures(current_streak_days=4))) == 4


@given(
    st.permutations(list(FEATURES)).flatmap(lambda names: st.integers(1, len(names)).map(lambda n: names[:n])),
    st.lists(st.dictionaries(st.sampled_from(OWN), NUMBERS), min_size=1, max_size=4),
    PROFILES,
    st.none() | st.integers(-720, 840),
    st.lists(st.tuples(st.floats(-1e4, 1e4), st.none() | st.integers(0, 2**53)), max_size=3),
)
def test_a_matrix_is_its_values_one_by_one(
    names: list[str],
    candidates: list[dict[str, float | None]],
    profile: ProfileFeatures,
    offset: int | None,
    syncs: list[tuple[float, int | None]],
) -> None:
    """Whatever the order of the columns: row and column of each value are those of its candidate and its name."""
    row = synced(*(hours for hours, _ in syncs), counts=tuple(count for _, count in syncs))
    at = moment(profile=profile, context=ScoreContext(utc_offset_minutes=offset), rows=row if syncs else {})
    matrix = Assembler(names).matrix_of(candidates, at)
    assert (matrix.dtype, matrix.flags.c_contiguous) == (np.float32, True)
    for row, candidate in enumerate(candidates):
        for column, name in enumerate(names):
            feature = FEATURES[name]
            value = candidate.get(name) if feature.value is None else feature.value(at)
            expected = np.float32(math.nan if value is None else value)
            assert matrix[row, column].tobytes() == expected.tobytes()


def test_assembler_names_what_it_reads() -> None:
    """Its inputs are the declarations in its order, and its rows those that its features need."""
    assembler = Assembler(["hours_since_sync", "urgency"])
    assert [one.name for one in assembler.inputs] == ["hours_since_sync", "urgency"]
    assert assembler.row_types == {"user_sync": UserSync}
    assert Assembler(["urgency"]).row_types == {}


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        pytest.param(["urgency", "mood"], "'mood' is not declared", id="unknown"),
        pytest.param(["urgency", "urgency"], "each once", id="twice"),
        pytest.param([], "at least one name", id="none"),
    ],
)
def test_a_list_of_features_that_can_not_be(names: list[str], problem: str) -> None:
    """Whoever asks for such a matrix is told which name it is."""
    with pytest.raises(ModelError, match=problem):
        Assembler(names)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param({"name": "Mood"}, "name: expected", id="name"),
        pytest.param({"source": "stars"}, "source: expected candidate, profile, context, table", id="source"),
        pytest.param({"source": "context"}, "any other one needs a function", id="no-function"),
        pytest.param({"value": lambda at: 1.0}, "read from the request as it is", id="function-of-a-candidate"),
        pytest.param({"table": "user_sync"}, "table and row: expected both", id="table-without-row"),
        pytest.param(
            {"source": "table", "value": lambda at: 1.0}, "table and row: expected both", id="source-without-table"
        ),
    ],
)
def test_a_declaration_that_can_not_be(changes: dict[str, Any], problem: str) -> None:
    """A feature of a plugin is checked before any model reads it."""
    facts = {"name": "mood", "source": "candidate", "unit": "ratio", "meaning": "How it feels."}
    assert any(problem in found for found in feature_problems(Feature(**facts | changes)))


def test_the_shipped_declarations_are_sound() -> None:
    """What a plugin is held to, ours keep as well."""
    assert [problem for feature in FEATURES.values() for problem in feature_problems(feature)] == []


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(lambda at: 1 / 0, id="raises"),
        pytest.param(lambda at: "blue", id="text"),
        pytest.param(lambda at: [1.0, 2.0], id="list"),
        pytest.param(lambda at: 10**400, id="beyond-all-floats"),
    ],
)
def test_a_feature_whose_function_fails_is_missing_and_named(value: Any) -> None:
    """The others of the request are there; whoever wants no such matrix gets the error."""
    declared = {**FEATURES, "bad": Feature(name="bad", source="context", unit="", meaning="", value=value)}
    at = moment(context=ScoreContext(utc_offset_minutes=0))
    for names in (["bad", "hour_local"], ["bad"]):
        assembler, failed = Assembler(names, declared), list[str]()
        matrix = assembler.matrix([assembler.candidate_features()], at, failed=failed)
        assert (math.isnan(matrix[0, 0]), matrix[0, 1:].tolist(), failed) == (True, [12.5][: len(names) - 1], ["bad"])
        with pytest.raises((ArithmeticError, ValueError)):
            assembler.matrix_of([{}], at)
