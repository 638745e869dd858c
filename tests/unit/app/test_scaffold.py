"""The text of a new handler: the names in it, its layout, and that it declares and decodes what it should."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.scaffold import Draft, Names, laid_out, lane_field, names_for, render_module, render_test, sample_of, try_out
from models.errors import DeclarationError
from models.shapes import Field, Shape, objects_of, shape_of

ROOT = Path(__file__).parents[3]
SUBJECT = "signals.streak.broken"
NOON = "2026-03-01T12:00:00Z"
RICH = {"user_id": "ana", "days": 1, "at": NOON, "seen": NOON, "tags": ["a"], "more": {"a": 1}, "a-b": 1, "x": None}
MANY = {f"field_with_a_rather_long_name_{number}": {"a": 1} for number in range(9)} | {"no\n\"'name": 1, "z" * 99: 1}
EVENTS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "rich": [RICH, {key: value for key, value in RICH.items() if key != "seen"}],
    "number-key": [{"user_id": 7, "days": 0.5}],
    "other-key": [{"event_id": "e", "account_id": "a"}],
    "no-key": [{"days": 1}],
    "empty": [{}],
    "empty-key": [{"user_id": ""}],
    "many": [{"the_identity_of_the_account_id": "a"} | MANY],
}
LONG = {"subject": f"signals.{'a' * 72}", "name": "n" * 32, "table": "t" * 32}


def drafted(events: list[dict[str, Any]], *, is_plugin: bool = False, **names: str) -> Draft:
    """A draft from events; without any it has a user_id alone."""
    shape = shape_of(events) if events else Shape(fields=(Field(name="user_id", annotation="str", is_filled=True),))
    chosen = names_for(**({"subject": SUBJECT} | names))  # type: ignore[arg-type]
    module = f"{'' if is_plugin else 'streams.handlers.'}{chosen.name}"
    return Draft(names=chosen, shape=shape, sampled=len(events), module=module, is_plugin=is_plugin)


def test_names_come_from_the_subject() -> None:
    """Function and event are the subject's words, table and row its second word in the plural and singular."""
    assert names_for(SUBJECT) == Names(
        subject=SUBJECT,
        name="streak_broken",
        table="streaks",
        event="StreakBroken",
        row="Streak",
        constant="STREAKS",
    )


@pytest.mark.parametrize(
    ("subject", "name", "table", "event", "row"),
    [
        ("signals.nudge", "nudge", "nudges", "Nudge", "NudgeRow"),
        ("signals.Tip-Jar.filled-up", "tip_jar_filled_up", "tip_jars", "TipJarFilledUp", "TipJar"),
        ("feedback.stories.read", "stories_read", "stories", "StoriesRead", "Story"),
        ("feedback.glass.broken", "glass_broken", "glass", "GlassBroken", "Glass"),
    ],
    ids=["one-word", "dashes", "ies", "ss"],
)
def test_names_fit_each_other(subject: str, name: str, table: str, event: str, row: str) -> None:
    """No two of the names are the same."""
    found = names_for(subject)
    assert (found.name, found.table, found.event, found.row) == (name, table, event, row)


@pytest.mark.parametrize(
    ("name", "table", "event", "row"),
    [("table", "policy", "TableEvent", "PolicyRow"), ("a", "a", "AEvent", "ARow"), ("none", "s", "NoneEvent", "SRow")],
    ids=["imported", "one-letter", "keyword"],
)
def test_classes_make_way_for_names_of_the_module(name: str, table: str, event: str, row: str) -> None:
    """A class that would be called like an import, a constant or a word of Python gets a longer name."""
    found = names_for(SUBJECT, name=name, table=table)
    assert (found.event, found.row) == (event, row)


@pytest.mark.parametrize(
    ("arguments", "where", "problem"),
    [
        ({"subject": "signals.ä.b"}, "SUBJECT", "letters, digits"),
        ({"subject": 'signals."'}, "SUBJECT", "letters, digits"),
        ({"subject": f"signals.{'a' * 100}"}, "SUBJECT", "at most 80"),
        ({"subject": "signals.1.a"}, "--name", "got '1_a'"),
        ({"subject": f"signals.{'a' * 40}"}, "--name", "at most 32 characters"),
        ({"name": "Streak"}, "--name", "got 'Streak'"),
        ({"name": "class"}, "--name", "'class' means something else"),
        ({"name": "subjects"}, "--name", "'subjects' means something else"),
        ({"table": "a-b"}, "--table", "got 'a-b'"),
    ],
    ids=["letters", "quote", "long", "digit", "long-name", "capital", "keyword", "taken", "table"],
)
def test_names_that_can_not_be_are_refused(arguments: dict[str, str], where: str, problem: str) -> None:
    """The error names the argument and what is expected."""
    with pytest.raises(DeclarationError) as caught:
        names_for(**({"subject": SUBJECT} | arguments))  # type: ignore[arg-type]
    assert caught.value.where == where and problem in caught.value.problem


@pytest.mark.parametrize("events", EVENTS.values(), ids=EVENTS.keys())
def test_module_decodes_the_events_it_was_made_of(events: list[dict[str, Any]]) -> None:
    """The text declares a handler that takes each of them."""
    module = render_module(drafted(events))
    assert try_out(module, [json.dumps(event).encode() for event in events]) == (len(events), [])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.just(NOON),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)
NAMES = st.sampled_from(["user_id", "a", "dt", "self", "a-b", "#\n", "type", "list", "event", "ctx", "row"])


@given(st.lists(st.dictionaries(NAMES, json_values | st.text("aZ:-", max_size=3)), min_size=1, max_size=5))
def test_module_decodes_whatever_it_was_made_of(events: list[dict[str, Any]]) -> None:
    """Any JSON objects at all make a type that decodes each of them."""
    payloads = [json.dumps(event).encode() for event in events]
    draft = attrs.evolve(drafted([{}]), shape=shape_of(objects_of(payloads)))
    assert try_out(render_module(draft), payloads) == (len(events), [])


def test_try_out_says_what_does_not_fit() -> None:
    """A payload that the type refuses is not counted, and its problem is told."""
    module = render_module(drafted(EVENTS["number-key"]))
    good, problems = try_out(module, [b'{"user_id": 1, "days": 2}', b'{"user_id": 1}', b"no"])
    assert (good, problems[0]) == (1, "days: missing") and problems[1].startswith("payload: not valid JSON")


def test_lane_is_the_user_or_another_identity() -> None:
    """A required user_id wins, then another required id that is no message's; an optional one is none."""
    keys = {name: lane_field(drafted(events).shape) for name, events in EVENTS.items()}
    found = {name: key and key.name for name, key in keys.items()}
    assert found["rich"] == found["number-key"] == "user_id"
    assert found["other-key"] == "account_id" and found["many"] == "the_identity_of_the_account_id"
    assert found["no-key"] is None
    assert lane_field(shape_of([{"user_id": "a"}, {}])) is None


def test_samples_are_made_up() -> None:
    """The test that is written holds nothing of what was stored."""
    text = render_test(drafted([RICH | {"secret": "hunter2", "more": {"hunter2": 1}}]))
    assert "hunter2" not in text and '"secret": "ana"' in text
    assert sample_of(Field(name="x", annotation="list[str] | dict[str, Any]")) == "[]"


def test_layout_breaks_lines_as_the_formatter_does() -> None:
    """One line, the inside of a call on a line of its own, or a line for each part."""
    assert laid_out("f(", ["a", "b"], ")") == "f(a, b)"
    a, b = "a" * 60, "b" * 54
    assert laid_out("call(", [a, b], ")") == f"call(\n    {a}, {b}\n)"
    assert laid_out("call(", [a, b], ")", indent=4) == f"call(\n        {a},\n        {b},\n    )"
    assert laid_out("{", ["a" * 60, "b" * 58], "}", is_call=False) == f"{{\n    {'a' * 60},\n    {'b' * 58},\n}}"


@pytest.mark.parametrize("names", [{}, LONG], ids=["short", "long"])
@pytest.mark.parametrize("is_plugin", [False, True], ids=["checkout", "plugin"])
def test_text_passes_the_linter_and_the_formatter(tmp_path: Path, names: dict[str, str], is_plugin: bool) -> None:
    """Whatever the events, neither has a word to say."""
    for number, events in enumerate(EVENTS.values()):
        draft = drafted(events, is_plugin=is_plugin, **names)
        folder = tmp_path / f"case_{number}"
        folder.mkdir()
        (folder / f"{draft.names.name}.py").write_text(render_module(draft))
        (folder / f"test_{draft.names.name}.py").write_text(render_test(draft))
    ours = [] if is_plugin else ["--config", "lint.isort.known-first-party=['models','streams']"]
    config = ["--config", str(ROOT / "ruff.toml"), "--no-cache", "-q", str(tmp_path)]
    assert ran("ruff", "check", *ours, *config, folder=tmp_path) == (0, "")
    assert ran("ruff", "format", "--diff", *config, folder=tmp_path) == (0, "")


def test_text_passes_the_type_checker(tmp_path: Path) -> None:
    """Whatever the events, the modules are strictly typed."""
    for number, events in enumerate(EVENTS.values()):
        (tmp_path / f"handler_{number}.py").write_text(render_module(drafted(events)))
    files = [str(path) for path in tmp_path.glob("*.py")]
    code, said = ran("mypy", "--config-file", "setup.cfg", *files, folder=ROOT)
    assert (code, said) == (0, f"Success: no issues found in {len(EVENTS)} source files\n")


def ran(tool: str, *arguments: str, folder: Path) -> tuple[int, str]:
    """Runs a tool; returns its exit code and what it said."""
    command = [sys.executable, "-m", tool, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr
