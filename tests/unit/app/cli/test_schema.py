"""``schema profile``: the contract as a table and for other languages, and what differs in a registry.ts."""

import json
from pathlib import Path

import attrs
import pytest
from process_kit import invoke

from app.cli.schema import MAX_SOURCE_BYTES
from models.profile_schema import PROFILE

FIXTURES = Path(__file__).parents[2] / "models" / "fixtures"
SAME = FIXTURES / "registry.ts"
DRIFTED = FIXTURES / "registry_drifted.ts"


def test_schema_profile_is_a_line_each() -> None:
    """Name, dtype, unit, range and meaning, with tabs between."""
    lines = [line.split("\t") for line in invoke("schema", "profile").stdout.splitlines()]
    assert [line[0] for line in lines] == [feature.name for feature in PROFILE]
    assert lines[0][1:5] == ["float", "ratio", "0", "1"]
    assert lines[-1][:5] == ["is_weekend_active", "bool", "flag", "-", "-"]


def test_schema_profile_prints_json() -> None:
    """All facts of each feature, for programs."""
    assert json.loads(invoke("schema", "profile", "--json").stdout) == [attrs.asdict(feature) for feature in PROFILE]


def test_schema_profile_exports_what_its_own_check_accepts(tmp_path: Path) -> None:
    """The exported TypeScript has no difference, and the exit code is 0."""
    file = tmp_path / "registry.ts"
    file.write_text(invoke("schema", "profile", "--format", "ts").stdout)
    result = invoke("schema", "profile", "--check", str(file))
    assert (result.exit_code, result.stdout) == (0, f"{file} has the same {len(PROFILE)} features\n")


def test_schema_profile_exports_a_json_schema() -> None:
    """With a type for each feature."""
    schema = json.loads(invoke("schema", "profile", "--format", "json-schema").stdout)
    assert schema["properties"]["preferred_hour"]["type"] == ["integer", "null"]


def test_schema_profile_check_accepts_a_registry_that_agrees() -> None:
    """A team's own file in their style, by its path or as standard input."""
    assert invoke("schema", "profile", "--check", str(SAME)).exit_code == 0
    result = invoke("schema", "profile", "--check", "-", "--json", stdin=SAME.read_bytes())
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


def test_schema_profile_check_prints_a_line_a_difference() -> None:
    """With the line of the other file where there is one; the exit code is 3."""
    result = invoke("schema", "profile", "--check", str(DRIFTED))
    assert (result.exit_code, result.stdout.splitlines()) == (
        3,
        [
            "missing there: preferred_hour (int)",
            "dtype differs: overdue_task_count (here int, there bool), line 20",
            "dtype differs: is_weekend_active (here bool, there number), line 24",
            "unknown there: preferred_time (string), line 13",
        ],
    )


def test_schema_profile_check_prints_differences_as_json() -> None:
    """Programs get each part by its name, with the same exit code."""
    result = invoke("schema", "profile", "--check", str(DRIFTED), "--json")
    first = json.loads(result.stdout)[0]
    assert (result.exit_code, len(json.loads(result.stdout))) == (3, 4)
    assert first == {"problem": "missing there", "name": "preferred_hour", "ours": "int", "theirs": "", "line": None}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", ":1: no feature was found"),
        (b"const x = 1;\nconst F = [", ":2: [ without its pair"),
        (b"const F = [{name: 'a', type: 'int'}\n, ...\x1b]", ":2: ...\\x1b: expected a list of this file"),
        (b"\xff", "is no UTF-8"),
        (b" " * (MAX_SOURCE_BYTES + 1), "has more than 1000000 bytes"),
    ],
    ids=["empty", "brackets", "spread", "bytes", "large"],
)
def test_schema_profile_check_refuses_what_it_cant_read(content: bytes, problem: str, tmp_path: Path) -> None:
    """Exit code 2, and the error names the file and the line."""
    file = tmp_path / "registry.ts"
    file.write_bytes(content)
    result = invoke("schema", "profile", "--check", str(file))
    assert result.exit_code == 2 and f"{file}" in result.stderr and problem in result.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--check", "/nowhere.ts"), "No such file"),
        (("--check", "/"), "Is a directory"),
        (("--format", "yaml"), "'yaml' is not one of"),
        (("--format", "ts", "--json"), "--format goes with no other option"),
        (("--format", "ts", "--check", str(SAME)), "--format goes with no other option"),
    ],
    ids=["missing", "folder", "format", "json", "check"],
)
def test_schema_profile_refuses_bad_usage(arguments: tuple[str, ...], problem: str) -> None:
    """What can't be meant is exit code 2 and says so."""
    result = invoke("schema", "profile", *arguments)
    assert result.exit_code == 2 and problem in result.stderr


def test_schema_profile_check_shows_no_control_characters(tmp_path: Path) -> None:
    """A name of the other file can't move the cursor."""
    file = tmp_path / "registry.ts"
    file.write_text("const F = {'a\\u001b[31m': {type: 'int'}, preferred_hour: {type: 'int'}}")
    result = invoke("schema", "profile", "--check", str(file))
    assert result.exit_code == 3 and "unknown there: a\\x1b[31m (int), line 1" in result.stdout
