"""The group of commands: where the environment comes from, and what an error looks like to a shell."""

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
    for name in ("NATS_URL", "STATE_DIR", "HTTP_PORT", "API_TOKENS"):
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
