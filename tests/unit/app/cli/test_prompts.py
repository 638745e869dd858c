"""``prompts``: the variants as a table, one as it is, and what it makes of a context."""

import json
from pathlib import Path

import pytest
from process_kit import invoke

from models.errors import PromptError
from prompts.registry import SHIPPED

CONTEXT = b'{"tip_kind": "focus\\u0007", "signals": [], "profile": {}}'


def test_prompts_list_is_a_line_each() -> None:
    """Version, state, purpose, file, and what is wrong with it."""
    lines = [line.split("\t") for line in invoke("prompts", "list").stdout.splitlines()]
    assert [line[0] for line in lines] == ["v1", "v2", "v3"]
    purpose = "Advice from the user's own numbers, for users with a profile."
    assert lines[2][1:] == ["released", purpose, str(SHIPPED / "v3.j2"), "-"]


def test_prompts_list_in_json_has_all_that_is_declared() -> None:
    """Programs get variables with their meaning, hints and limits too."""
    first = json.loads(invoke("prompts", "list", "--json").stdout)[0]
    assert first["version"] == "v1" and set(first["variables"]) == {"tip_kind", "signals"}
    assert first["hints"] == {"temperature": 0.4, "max_tokens": 120}
    assert (first["state"], first["file"], first["problem"]) == ("released", str(SHIPPED / "v1.j2"), None)
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
    """A changed release, a bad file and a failed sample stand in their lines; nothing is released by looking."""
    variant(tmp_path, "v4")
    variant(tmp_path, "v5")
    variant(tmp_path, "v6", "{{ 1 / 0 }}")
    (tmp_path / "bad.j2").write_text("no variant")
    (tmp_path / "prompts.json").write_text('{"v4": "0123456789ab"}')
    result = invoke("prompts", "list", **in_folder(tmp_path))
    rows = {Path(row[3]).name: row for row in (line.split("\t") for line in result.stdout.splitlines()[3:])}
    assert {name: (row[0], row[1]) for name, row in rows.items()} == {
        "bad.j2": ("-", "broken"),
        "v4.j2": ("v4", "modified"),
        "v5.j2": ("v5", "draft"),
        "v6.j2": ("-", "broken"),
    }
    assert rows["v4.j2"][4].startswith("version 'v4' was released with the content 0123456789ab and can't change")
    assert rows["bad.j2"][4].startswith("line 1: expected a line '---'") and rows["v5.j2"][4] == "-"
    assert (rows["v6.j2"][4], result.stderr) == ("line 10: division by zero, with the sample 'full'", "")


def test_prompts_list_in_json_has_broken_files(tmp_path: Path) -> None:
    """A version that is not known is null; what belongs to no file's line is a warning on stderr."""
    (tmp_path / "bad.j2").write_text("no variant")
    (tmp_path / "lost.j2").symlink_to("nowhere")
    result = invoke("prompts", "list", "--json", **in_folder(tmp_path))
    last = json.loads(result.stdout)[-1]
    assert (last["version"], last["state"], last["file"]) == (None, "broken", str(tmp_path / "bad.j2"))
    assert last["problem"] == f"prompt {tmp_path}/bad.j2:1: expected a line '---', and YAML up to a second one"
    assert result.stderr == f"warning: prompt {tmp_path}/lost.j2: can't be read\n"


def test_prompts_show_warns_of_what_is_not_served(tmp_path: Path) -> None:
    """A version that is not known may be that of a file that is told on stderr."""
    variant(tmp_path, "v4")
    (tmp_path / "prompts.json").write_text('{"v4": "0123456789ab"}')
    said = invoke("prompts", "show", "v4", **in_folder(tmp_path)).stderr
    assert "warning: prompt" in said and "was released with the content 0123456789ab" in said
    assert "no variant 'v4'" in said
