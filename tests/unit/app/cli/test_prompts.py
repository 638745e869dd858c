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
    assert first["state"] == "released"
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
        (("diff", "v1", "v9"), b"", "B: no variant 'v9'; there is v1, v2, v3"),
        (("show", "v9"), b"", "VERSION: no variant 'v9'; there is v1, v2, v3"),
        (("render", "v9", "--context", "-"), CONTEXT, "VERSION: no variant 'v9'"),
        (("render", "v1", "--context", "-"), b"{", "--context: not valid JSON"),
        (("render", "v1", "--context", "-"), b"\xff", "--context: not valid JSON"),
        (("render", "v1", "--context", "-"), b"[]", "--context: expected a JSON object"),
        (("render", "v1", "--context", "/nowhere"), b"", "No such file"),
        (("render", "v1"), b"", "Missing option '--context'"),
    ],
    ids=["diff", "show", "render", "json", "bytes", "list", "file", "none"],
)
def test_prompts_refuse_bad_usage(arguments: tuple[str, ...], stdin: bytes, problem: str) -> None:
    """What can't be meant is exit code 2 and names the argument."""
    result = invoke("prompts", *arguments, stdin=stdin)
    assert result.exit_code == 2 and problem in result.stderr


def test_prompts_render_names_a_missing_variable() -> None:
    """An incomplete context is one error."""
    error = invoke("prompts", "render", "v1", "--context", "-", stdin=b'{"signals": []}').exception
    assert isinstance(error, PromptError) and str(error) == "prompt v1: variable 'tip_kind': missing"


def variant(folder: Path, version: str, text: str = "Hello.") -> None:
    """Writes a variant of nothing but a text."""
    front = f"---\nversion: {version}\npurpose: A test.\nvariables: {{}}\nlimits:\n  max_chars: 100\n---\n"
    (folder / f"{version}.j2").write_text(f"{front}Greet.\n--- user\n{text}\n")


def test_prompts_diff_shows_what_changes(tmp_path: Path) -> None:
    """Lines that go and come; 3 for a difference, 0 for a variant and itself."""
    variant(tmp_path, "v4")
    variant(tmp_path, "v5", "Good\tbye.")
    result = invoke("prompts", "diff", "v4", "v5", PROMPTS_DIR=str(tmp_path))
    lines = result.stdout.splitlines()
    assert (result.exit_code, lines[:2]) == (3, ["--- v4", "+++ v5"])
    changed = [line for line in lines[2:] if line[0] in "+-"]
    assert changed == ["-version: v4", "+version: v5", "-Hello.", "+Good\\tbye."]
    same = invoke("prompts", "diff", "v4", "v4", PROMPTS_DIR=str(tmp_path))
    assert (same.exit_code, same.stdout) == (0, "")


def in_folder(folder: Path) -> dict[str, str]:
    """The settings with which variants, and the record of their releases, lie there."""
    return {"PROMPTS_DIR": str(folder), "STATE_DIR": str(folder)}


def test_prompts_list_says_what_is_not_served(tmp_path: Path) -> None:
    """A changed release and a bad file are told on stderr; the list has every variant, and nothing is released."""
    variant(tmp_path, "v4")
    variant(tmp_path, "v5")
    (tmp_path / "bad.j2").write_text("no variant")
    (tmp_path / "prompts.json").write_text('{"v4": "0123456789ab"}')
    result = invoke("prompts", "list", **in_folder(tmp_path))
    states = [tuple(line.split("\t")[::2][:2]) for line in result.stdout.splitlines()]
    assert states[3:] == [("v4", "modified"), ("v5", "draft")]
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["warning", "warning"]
    assert "was released with the content 0123456789ab" in result.stderr and "bad.j2:1: expected" in result.stderr
    assert "no variant 'v4'" in invoke("prompts", "show", "v4", **in_folder(tmp_path)).stderr
