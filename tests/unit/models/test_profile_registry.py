"""A recommender's registry.ts is read in the styles that people write, and compared with our contract."""

from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ContractError
from models.profile_export import as_typescript
from models.profile_registry import Entry, compare, read_entries
from models.profile_schema import PROFILE, ProfileFeature

FIXTURES = Path(__file__).parent / "fixtures"
OURS = (
    ProfileFeature(name="rate_7d", dtype="float", unit="ratio", meaning="a share"),
    ProfileFeature(name="tip_count", dtype="int", unit="count", meaning="a number"),
    ProfileFeature(name="is_new", dtype="bool", unit="flag", meaning="a flag"),
)
RATE = "{name: 'rate_7d', type: 'float'}"
KNOWN = [feature.name for feature in OURS]

SAME = {
    "array": "const F = [{name: 'rate_7d', dtype: 'float'}, {name: 'tip_count', dtype: 'int'}, "
    "{name: 'is_new', dtype: 'bool'},] as const;",
    "quotes": """export default [{"name": "rate_7d", "type": `number`}, {'key': 'tip_count', type: "integer"},
        {id: `is_new`, valueType: 'Boolean'}] satisfies readonly Spec[]""",
    "comments": """const F = [ // {name: 'no_1', dtype: 'int'}
        {name: 'rate_7d' /* 'x' */, dtype: 'float' as const}, /* {name: 'no_2'} */
        {name: 'tip_count', dtype: 'int', note: "isn't // a comment"}, {name: 'is_new', dtype: 'bool'}];""",
    "object": "export const F: Record<string, Spec> = { rate_7d: {type: 'float'}, 'tip_count': {type: 'int', low: 0},"
    ' "is_new": {type: "boolean"}, } satisfies Record<string, Spec>;',
    "frozen": "export const F = Object.freeze({rate_7d: f({dtype: Dtype.Float}), tip_count: f({dtype: Dtype.INT}), "
    "is_new: f({dtype: Dtype.Bool})});",
    "calls": "const F = defineFeatures([feature({name: 'rate_7d', dtype: 'float'}), "
    "feature({name: 'tip_count', dtype: 'int'}), (({name: 'is_new', dtype: 'bool'}))]);",
    "short": "const F = {rate_7d: 'float', tip_count: 'int', is_new: 'bool'} as const;",
    "interface": "interface F {\n  readonly rate_7d: number | null\n  tip_count?: null | number\n  is_new: boolean }",
    "readonly": "type F = {\n readonly rate_7d: number | null\nreadonly tip_count?: number\n readonly is_new: boolean}",
    "options": "const F = z.object({rate_7d: z.number({message: 'a rate'}), tip_count: z.number({}).int().nullish(), "
    "is_new: f.bool({unit: 'flag'})})",
    "semicolons": "type F = { rate_7d: number; tip_count?: number | null; is_new: boolean | undefined; };",
    "zod": "const F = z.object({rate_7d: z.number().min(0), tip_count: z.number().int(), is_new: z.boolean()})",
    "nested": "const R = {rates: {rate_7d: {type: 'float'}}, rest: [{name: 'tip_count', type: 'int'}, "
    "{name: 'is_new', type: 'bool'}]};",
    "groups": "const R = [{name: 'rates', features: [{name: 'rate_7d', type: 'float'}]}, {name: 'rest', features: ["
    "{name: 'tip_count', type: 'int'}, {name: 'is_new', type: 'bool'}]}];",
    "spread": "const A = [{name: 'rate_7d', type: 'float'}]; const COUNT = {type: 'int'} as const;\n"
    "const F: Spec[] = [...A, {name: 'tip_count', ...COUNT}, {name: 'is_new', type: 'bool'}];",
    "two-spreads": "const COUNT = {type: 'int'}; const LOW = {low: 0};\n"
    "let F = [{key: 'rate_7d', type: 'real'}, {name: 'tip_count', ...COUNT, ...LOW}, {name: 'is_new', type: 'bool'}]",
    "constants": "const RATE = 'rate_7d', X = 1; const C: Spec = {type: 'int'};\n"
    "const F = [{name: RATE, type: 'float'}, {name: 'is_new', type: 'bool'}, ...M]; "
    "const M = [{name: 'tip_count', ...C}]",
    "by-constant": "const R = {type: 'float'}; const C = {type: 'int'};\n"
    "export const F = {rate_7d: R, tip_count: C, is_new: {type: 'bool'}};",
    "camel-keys": "const F = {rate7d: {name: 'rate_7d', type: 'float'}, tipCount: {name: 'tip_count', type: 'int'}, "
    "isNew: {name: 'is_new', type: 'bool'}}",
    "labels": "const F = [{name: 'Rate (7 d)', key: 'rate_7d', type: 'float'}, "
    "{name: 'Tips!', key: 'tip_count', type: 'int'}, {name: 'New?', key: 'is_new', type: 'bool'}]",
    "beside-others": "interface Spec { name: string; low: number }\n"
    "const OTHER = [{name: 'x', dtype: 'float'}, {name: 'y', dtype: 'int'}, {name: 'z', dtype: 'int'}];\n"
    "const F = [{name: 'rate_7d', type: 'float'}, {name: 'tip_count', type: 'int'}, {name: 'is_new', type: 'bool'}];\n"
    "export const ALL = {profile: F, other: OTHER};\nconst DEFAULTS = {rate_7d: 0, tip_count: 0, is_new: false};",
}


def differences(source: str) -> list[str]:
    """How a source differs from the three features, a line each."""
    return [str(difference) for difference in compare(source, OURS)]


@pytest.mark.parametrize("source", SAME.values(), ids=SAME)
def test_registry_is_read_in_many_styles(source: str) -> None:
    """Three features with their dtypes, however they are written down."""
    assert differences(source) == []


def test_registry_of_a_team_agrees_with_our_contract() -> None:
    """A whole file, with imports, types, spread parts, helper functions and a list of other features."""
    source = (FIXTURES / "registry.ts").read_text()
    assert compare(source) == []
    assert len(read_entries(source, [feature.name for feature in PROFILE])) == len(PROFILE)


def test_registry_that_has_drifted_shows_each_difference() -> None:
    """A renamed feature is missing and unknown, and two have other dtypes; the order is ours."""
    found = [str(difference) for difference in compare((FIXTURES / "registry_drifted.ts").read_text())]
    assert found == [
        "missing there: preferred_hour (int)",
        "dtype differs: overdue_task_count (here int, there bool)",
        "dtype differs: is_weekend_active (here bool, there number)",
        "unknown there: preferred_time (string)",
    ]


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ("'int', 'int', 'bool'", ["dtype differs: rate_7d (here float, there int)"]),
        ("'float', 'float', 'bool'", ["dtype differs: tip_count (here int, there float)"]),
        ("'number', 'number', 'number'", ["dtype differs: is_new (here bool, there number)"]),
        ("'percent', 'int', 'bool'", ["dtype differs: rate_7d (here float, there percent)"]),
        ("'float', 'int', undefined", ["dtype differs: is_new (here bool, there undefined)"]),
        ("'float', '', 'bool'", ["dtype differs: tip_count (here int, there none)"]),
    ],
)
def test_registry_dtypes_are_compared(dtypes: str, expected: list[str]) -> None:
    """A number fits a float and an int; nothing else fits another dtype."""
    values = dtypes.split(", ")
    entries = ", ".join(f"{{name: '{name}', dtype: {value}}}" for name, value in zip(KNOWN, values, strict=True))
    assert differences(f"const F = [{entries}]") == expected


def test_registry_entry_without_a_dtype_differs() -> None:
    """A name alone says nothing of its dtype."""
    source = "const F = [{name: 'rate_7d', dtype: 'float'}, {name: 'tip_count'}, {name: 'is_new', dtype: 'bool'}]"
    assert differences(source) == ["dtype differs: tip_count (here int, there none)"]


def test_registry_with_a_name_twice_differs() -> None:
    """The first of the two is the one that is compared."""
    source = "const F = [{name: 'rate_7d', dtype: 'float'}, {name: 'rate_7d', dtype: 'int'}]"
    expected = ["twice there: rate_7d (int)", "missing there: tip_count (int)", "missing there: is_new (bool)"]
    assert differences(source) == expected


def test_registry_without_any_of_our_names_is_all_different() -> None:
    """Of lists that have none of our names the longest is shown, with the lines of its entries."""
    short, long = "[{name: 'x', type: 'int'}]", "[\n{name: 'rateOf7d', type: 'float'},\n{name: 'a-y', type: 'a'}]"
    source = f"const A = {short}\nconst B = {long}"
    found = compare(source, OURS)
    assert [str(difference) for difference in found[3:]] == [
        "unknown there: rateOf7d (float)",
        "unknown there: a-y (a)",
    ]
    assert [difference.line for difference in found] == [None, None, None, 3, 4]


@pytest.mark.parametrize(
    ("source", "line", "problem"),
    [
        ("", 1, "no feature was found: expected an array of objects"),
        ("export interface Spec { name: string; low: number }", 1, "no feature was found"),
        (
            "const D = {rate_7d: 0, tip_count: 1};",
            1,
            "no feature was found, though rate_7d stands here: expected an",
        ),
        (
            "enum F {\n Rate = 'rate_7d',\n Count = 'tip_count',\n}",
            2,
            "no feature was found, though rate_7d stands here",
        ),
        ("const F = [RATE,\n{name: NAMES.count, type: 'int'}]", 2, "name: expected a name"),
        (
            "const F = [RATE,\n{name: `${x}_7d`, type: 'int'}]",
            2,
            "in quotes, got `${x}_7d`",
        ),
        ("const F = [RATE,\n{name: f('x'), type: 'int'}]", 2, "in quotes, got f(…"),
        ("const F = [RATE,\n...COUNTS]", 2, "...COUNTS: expected a list of this file"),
        ("const F = {RATE,\n...f(x)}", 2, "...f(…: expected a list of this file"),
        (
            "const F = [RATE,\ncount('tip_count', 'x')]",
            2,
            "tip_count: its dtype can't be told",
        ),
        ("const F = {RATE,\ntip_count: count()}", 2, "tip_count: its dtype can't be told"),
        ("const F = {RATE,\ntip_count: COUNT}", 2, "tip_count: its dtype can't be told"),
        ("const F = {RATE,\ntip_count: {unit: 'count'}}", 2, "tip_count: its dtype can't be told"),
        ("const F = [RATE,\n{name: , type: 'int'}]", 2, "name: expected a name in quotes"),
        ("const F = [\n{name: 'rate_7d'", 2, "{ without its pair"),
    ],
)
def test_registry_that_cant_be_told_is_refused_with_the_line(source: str, line: int, problem: str) -> None:
    """Nothing of the list is guessed at, and nothing is left out of it in silence."""
    with pytest.raises(ContractError) as caught:
        compare(source.replace("[RATE", f"[{RATE}").replace("{RATE", "{rate_7d: {type: 'float'}"), OURS)
    assert caught.value.line == line and problem in caught.value.problem


@pytest.mark.parametrize(
    "source",
    [
        "const A = [...A, {name: 'rate_7d', type: 'float'}]",
        "const A = [...B, {name: 'rate_7d', type: 'float'}]; const B = [...A];",
        "const A = {x: A, rate_7d: {type: 'float'}}",
        "const A = {rate_7d: {type: 'float', ...A}}; const B = {...B}",
        "const A = {...A, rate_7d: {...A, type: 'float'}}",
    ],
    ids=["itself", "each-other", "value", "facts", "both"],
)
def test_registry_constants_that_name_each_other_come_to_an_end(source: str) -> None:
    """Each list is read once."""
    assert [entry.name for entry in read_entries(source, KNOWN)] == ["rate_7d"]


def test_registry_of_many_constants_is_read_in_time() -> None:
    """Forty lists that each hold the next one twice are forty lists, not 2⁴⁰."""
    lists = "\n".join(f"const A{number} = [...A{number + 1}, ...A{number + 1}];" for number in range(40))
    entries = read_entries(f"{lists}\nconst A40 = [{{name: 'rate_7d', type: 'float'}}];", KNOWN)
    assert entries == [Entry(name="rate_7d", dtype="float", line=41)]


def test_registry_beside_declarations_without_values_is_read_in_time() -> None:
    """The value of a constant that has none is not looked for in all that follows: 20,000 of them are soon read."""
    declarations = "declare const OTHER: number\n" * 20_000
    entries = read_entries(f"{declarations}const A = [{{name: 'rate_7d', type: 'float'}}]", KNOWN)
    assert entries == [Entry(name="rate_7d", dtype="float", line=20_001)]


names = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
features = st.builds(
    ProfileFeature,
    name=names,
    dtype=st.sampled_from(["float", "int", "bool"]),
    unit=texts,
    meaning=texts | st.sampled_from(["a */ b", "it's `a` ${b}", "// {name: 'x'}"]),
    low=st.none() | st.integers(-9, 9),
    high=st.none() | st.floats(-9, 9),
)


@given(st.lists(features, min_size=1, max_size=5, unique_by=lambda feature: feature.name))
def test_registry_that_we_export_is_the_same(exported: list[ProfileFeature]) -> None:
    """Whatever units and meanings say, the exported TypeScript agrees with what it was made from."""
    assert compare(as_typescript(exported), exported) == []


@given(st.data())
def test_registry_without_one_feature_or_with_another_dtype_differs(data: st.DataObject) -> None:
    """Each single change to what we export is found by its name."""
    changed = data.draw(st.sampled_from(PROFILE))
    others = [feature for feature in PROFILE if feature != changed]
    assert [str(d) for d in compare(as_typescript(others))] == [f"missing there: {changed.name} ({changed.dtype})"]
    dtype = data.draw(st.sampled_from(["float", "int", "bool"]).filter(lambda dtype: dtype != changed.dtype))
    other = attrs.evolve(changed, dtype=dtype)
    found = [str(d) for d in compare(as_typescript([*others, other]))]
    assert found == [f"dtype differs: {changed.name} (here {changed.dtype}, there {dtype})"]


@given(
    st.lists(
        st.sampled_from([*"{}[](),:;?|.\n=", "...", "name", "dtype", "const", "A", "'rate_7d'", "'int'", "rate_7d"])
    )
)
def test_registry_of_any_pieces_is_read_or_refused(pieces: list[str]) -> None:
    """Whatever is written, the answer is a list of differences or an error with a line."""
    try:
        assert isinstance(compare(" ".join(pieces), OURS), list)
    except ContractError as error:
        assert error.line >= 1
