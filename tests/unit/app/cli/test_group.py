"""The group of commands: where the environment comes from, and what an error looks like to a shell."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from process_kit import invoke

from app.cli.group import main
from models.errors import SettingsError


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    """Runs the program's main function and returns exit code, output and error output."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code, *capsys.readouterr()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATS_URL", "STATE_DIR", "HTTP_PORT", "API_TOKENS", "PLUGINS", "PLUGIN_ERRORS"):
        monkeypatch.delenv(name, raising=False)


def test_group_lists_every_command() -> None:
    """The help names the commands there are."""
    output = invoke("--help").output
    for name in ("worker", "handlers", "send", "state", "streams", "settings"):
        assert f"\n  {name} " in output


def test_main_reads_the_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command sees the settings of the process's environment, and ends with 0."""
    monkeypatch.setenv("HTTP_PORT", "4321")
    code, out, err = run_main(capsys, "settings")
    assert (code, err) == (0, "")
    assert "HTTP_PORT\t4321\tenvironment" in out


def test_main_says_a_bad_setting_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip in a setting's name is one line on standard error, with the name that was meant, and exit code 2."""
    monkeypatch.setenv("NATS_URI", "nats://a")
    expected = "error: NATS_URI: unknown setting, did you mean NATS_URL?\n"
    assert run_main(capsys, "handlers") == (2, "", expected)


def test_main_says_a_failure_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be done is one line without control characters, whatever a name holds, and exit code 1."""
    monkeypatch.setenv("STATE_DIR", "/nowhere/a\nb")
    code, out, err = run_main(capsys, "state", "list")
    assert (code, out) == (1, "")
    assert err == "error: /nowhere/a\\nb/state.db: there is no store yet; a worker makes it\n"


def test_main_refuses_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Bad usage is exit code 2."""
    code, out, err = run_main(capsys, "nonsense")
    assert (code, out) == (2, "") and "No such command 'nonsense'" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("worker",),
        ("handlers",),
        ("new", "handler", "signals.a"),
        ("send", "signals.a", "{}"),
        ("state", "list"),
        ("streams", "plan"),
        ("prompts", "list"),
        ("settings",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_refuse_a_bad_setting(arguments: tuple[str, ...]) -> None:
    """Every command reads all settings before it does anything."""
    assert isinstance(invoke(*arguments, HTTP_PORT="x").exception, SettingsError)


GREET = """
import click

@click.command("greet")
@click.argument("name")
def greet(name):
    \"\"\"Greet somebody.\"\"\"
    click.echo(f"hello {name}")
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """PLUGINS with one that brings a command, and one that can't be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "greeting_for_tests.py").write_text(GREET)
    (tmp_path / "broken_for_tests.py").write_text("raise ValueError('one\\ntwo')\n")
    importlib.invalidate_caches()
    return "greeting_for_tests,broken_for_tests"


LEFT_OUT = r"warning: left out: plugin 'broken_for_tests' \(.*broken_for_tests\.py:1\): ValueError: one two\n"


def test_command_of_a_plugin_runs(plugins: str) -> None:
    """A name that is none of ours is looked for among the plugins; one that is broken is a line on stderr, once."""
    result = invoke("greet", "ada", PLUGINS=plugins)
    assert (result.exit_code, result.stdout) == (0, "hello ada\n")
    assert re.fullmatch(LEFT_OUT, result.stderr)


def test_help_lists_the_commands_of_plugins(plugins: str) -> None:
    """The help has ours and theirs, and says once what was left out."""
    result = invoke("--help", PLUGINS=plugins)
    assert result.exit_code == 0
    assert "\n  worker " in result.stdout and "\n  greet        Greet somebody.\n" in result.stdout
    assert re.fullmatch(LEFT_OUT, result.stderr)


def test_our_commands_import_no_plugin_to_be_found(plugins: str) -> None:
    """A broken plugin breaks no command that does not need it, and is not even looked at."""
    result = invoke("settings", PLUGINS=plugins)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "broken_for_tests" not in sys.modules and "PLUGINS\tgreeting_for_tests, broken_for_tests\t" in result.stdout


def test_help_comes_with_a_bad_setting_too() -> None:
    """When the settings can't be read there are no commands of plugins, and one line says why."""
    result = invoke("--help", HTTP_PORT="x")
    assert (result.exit_code, "\n  worker " in result.stdout) == (0, True)
    assert (
        result.stderr.startswith("warning: no plugin's commands: HTTP_PORT: expected")
        and result.stderr.count("\n") == 1
    )


def test_unknown_command_is_unknown_to_plugins_too(plugins: str) -> None:
    """A name that nobody has is bad usage, after one look at the plugins."""
    result = invoke("greets", PLUGINS=plugins)
    assert result.exit_code == 2 and "No such command 'greets'" in result.stderr
    assert result.stderr.count("left out") == 1
