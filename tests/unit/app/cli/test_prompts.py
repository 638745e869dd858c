"""``prompts``: the variants as a table, one as it is, and what it makes of a context."""

import json
from pathlib import Path

import pytest
from process_kit import invoke

from models.errors import PromptError
from prompts.registry import SHIPPED

CONTEXT = b'{"tip_kind": "focus\\u0007", "signals": [], "profile": {}}'


def test_prompts_list_is_a_line_each() -> None:
    """Version, hash, state, variables and purpose."""
    lines = [line.split("\t") for line in invoke("prompts", "list").stdout.splitlines()]
    assert [line[0] for line in lines] == ["v1", "v2", "v3"]
    assert lines[2][2:] == [
        "released",
        "tip_kind, signals, profile",
        "Advice from the user's own numbers, for users with a profile.",
    ]


def test_prompts_list_in_json_has_all_that_is_declared() -> None:
    """Programs get variables with their meaning, hints and limits too."""
    first = json.loads(invoke("prompts", "list", "--json").stdout)[0]
    assert first["version"] == "v1" and set(first["variables"]) == {"tip_kind", "signals"}
    assert first["hints"] == {"temperature": 0.4, "max_tokens": 120}
    assert first["limits"] == {"max_chars": 240, "max_lines": 2}


def test_prompts_show_prints_the_file() -> None:
    """As it is, or what it declares as JSON."""
    assert invoke("prompts", "show", "v2").stdout == (SHIPPED / "v2.j2").read_text()
    assert json.loads(invoke("prompts", "show", "v2", "--json").stdout)["version"] == "v2"


def test_prompts_render_prints_both_messages(tmp_path: Path) -> None:
    """From a file: each message under its name, and no control character gets to the terminal."""
    (tmp_path / "context.json").write_bytes(CONTEXT)
    lines = invoke("prompts", "render", "v3", "--context", str(tmp_path / "context.json")).stdout.splitlines()
    assert (lines[0], lines.index("--- user") > 1) == ("--- system", True)
    assert lines[lines.index("--- user") + 1] == 'The tip is about: "focus\\u0007"'


def test_prompts_render_prints_json() -> None:
    """From standard input, for programs."""
    found = json.loads(invoke("prompts", "render", "v1", "--context", "-", "--json", stdin=CONTEXT).stdout)
    assert set(found) == {"system", "user"} and found["user"].endswith("Write the tip.")


@pytest.mark.parametrize(
    ("arguments", "stdin", "problem"),
    [
        (("show", "v9"), b"", "VERSION: no variant 'v9'; there is v1, v2, v3"),
        (("render", "v9", "--context", "-"), CONTEXT, "VERSION: no variant 'v9'"),
        (("render", "v1", "--context", "-"), b"{", "--context: not valid JSON"),
        (("render", "v1", "--context", "-"), b"\xff", "--context: not valid JSON"),
        (("render", "v1", "--context", "-"), b"[]", "--context: expected a JSON object"),
        (("render", "v1", "--context", "/nowhere"), b"", "No such file"),
        (("render", "v1"), b"", "Missing option '--context'"),
    ],
    ids=["show", "render", "json", "bytes", "list", "file", "none"],
)
def test_prompts_refuse_bad_usage(arguments: tuple[str, ...], stdin: bytes, problem: str) -> None:
    """What can't be meant is exit code 2 and names the argument."""
    result = invoke("prompts", *arguments, stdin=stdin)
    assert result.exit_code == 2 and problem in result.stderr


def test_prompts_render_names_a_missing_variable() -> None:
    """An incomplete context is one error."""
    error = invoke("prompts", "render", "v1", "--context", "-", stdin=b'{"signals": []}').exception
    assert isinstance(error, PromptError) and str(error) == "prompt v1: variable 'tip_kind': missing"
