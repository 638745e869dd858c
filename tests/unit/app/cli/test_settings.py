"""The ``settings`` command, behind a small group of commands."""

import io
import json
from collections.abc import Mapping

import attrs
import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from app.cli.settings import print_rows, settings
from app.settings import describe_settings
from models.errors import SettingsError

SECRET = "0123456789abcdef"


@attrs.frozen(kw_only=True)
class Env:
    env: Mapping[str, str]


def run(arguments: list[str], env: dict[str, str]) -> Result:
    """Runs ``settings`` with an environment of its own."""
    group = click.Group(commands={"settings": settings})
    return CliRunner().invoke(group, ["settings", *arguments], obj=Env(env=env))


def test_settings_command_prints_a_line_a_setting() -> None:
    """In a pipe each setting is one line of name, value, source and meaning, with tabs between."""
    result = run([], {"HTTP_PORT": "9000"})
    lines = [line.split("\t") for line in result.output.splitlines()]
    assert result.exit_code == 0
    assert [line[0] for line in lines] == [row.name for row in describe_settings({})]
    assert ["HTTP_PORT", "9000", "environment"] in [line[:3] for line in lines]


def test_settings_command_prints_json() -> None:
    """With --json the same rows are a JSON list."""
    result = run(["--json"], {"STATE_DIR": "/data/\udcff"})
    expected = [attrs.asdict(row) for row in describe_settings({"STATE_DIR": "/data/\udcff"})]
    assert json.loads(result.output) == expected


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["plain", "json"])
def test_settings_command_shows_no_secret(arguments: list[str]) -> None:
    """Neither output has a token or a password of a server in it."""
    result = run(arguments, {"API_TOKENS": f"ui:{SECRET}", "NATS_URL": f"nats://me:{SECRET}@a"})
    assert result.exit_code == 0
    assert SECRET not in result.output


def test_settings_command_passes_a_bad_setting_on() -> None:
    """What the worker would refuse stops the command with the same error, for the group to print."""
    assert isinstance(run([], {"HTTP_PORT": "x"}).exception, SettingsError)


def test_settings_table_fits_80_columns() -> None:
    """On a terminal no name, value or meaning is cut, whatever a value holds."""
    rows = describe_settings({"STATE_DIR": "/data/" + "x" * 200, "HTTP_HOST": "localhost"})
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    print_rows(rows, console)
    output = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO from above
    assert max(map(len, output.splitlines())) <= 80
    assert "…" not in output
    assert output.count("x" * 10) >= 20 - 8  # 200 letters, folded into at most 8 lines
    for row in rows:
        assert any(line.startswith(f"{row.name} ") and row.source in line for line in output.splitlines())
        assert all(word in output for word in row.meaning.split())


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "pipe"])
def test_settings_output_escapes_control_characters(is_terminal: bool) -> None:
    """A value can neither move the cursor nor begin a line of its own, nor use the table's markup."""
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80, color_system=None)
    print_rows(describe_settings({"STATE_DIR": "a\nb\x1b[31m[red]"}), console)
    output = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO from above
    assert r"a\nb\x1b[31m[red]" in output
    assert "\x1b[31m" not in output
