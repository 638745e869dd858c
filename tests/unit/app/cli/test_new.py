"""``new handler``: what is written where, and what is refused before anything is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from harness import NatsServer
from process_kit import invoke

from app.cli.new import _write

SUBJECT = "signals.streak.broken"


def make(folder: Path, *arguments: str, subject: str = SUBJECT, **settings: str) -> Any:
    """Writes a handler into a plugin folder, without NATS unless a setting says otherwise."""
    return invoke("new", "handler", subject, "--plugin", str(folder), *arguments, **({"NATS_URL": ""} | settings))


@pytest.fixture
def stored(nats_server: NatsServer, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The settings for a server on which three events of the subject are, two that fit and one that is no object."""
    settings = {"NATS_URL": nats_server.url, "STATE_DIR": str(tmp_path / "var")}
    assert invoke("streams", "apply", **settings).exit_code == 0
    lines = b'{"user_id": "ana", "days": 1}\n{"user_id": "bert", "days": 2.5, "note": "x"}\n[1]'
    assert invoke("send", SUBJECT, "--file", "-", stdin=lines, **settings).exit_code == 0
    yield settings


def test_new_handler_writes_a_module_and_a_test(tmp_path: Path) -> None:
    """Without NATS the type has a user_id; both files are named, and the next two commands."""
    folder = tmp_path / "plugin"
    result = make(folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"wrote {folder}/streak_broken.py",
        f"wrote {folder}/test_streak_broken.py",
        "StreakBroken has user_id only, for stored messages could not be read: NATS is disabled (NATS_URL is empty)",
        "next:",
        f"  PYTHONPATH={folder} python -m pytest {folder}/test_streak_broken.py",
        f"  PYTHONPATH={folder} PLUGINS=streak_broken python -m app worker --reload",
    ]
    assert "    user_id: str = attrs.field(validator=filled)\n" in (folder / "streak_broken.py").read_text()


def test_new_handler_reads_the_type_from_stored_messages(stored: dict[str, str], tmp_path: Path) -> None:
    """The fields are those of what is stored, and it says how many messages the type decodes and why not the others."""
    result = make(tmp_path, **stored)
    assert result.stdout.splitlines()[2] == (
        "StreakBroken decodes 2 of the 3 messages that were read on signals.streak.broken; not, say:"
        " payload: expected object, got array"
    )
    text = (tmp_path / "streak_broken.py").read_text()
    assert '"""The fields are those of the newest 2 stored messages."""' in text
    assert "    days: float\n    note: str | None = None\n" in text


def test_new_handler_says_that_nothing_is_stored(stored: dict[str, str], tmp_path: Path) -> None:
    """A subject that nobody has published on yet gets the minimal type."""
    said = make(tmp_path, subject="signals.of.nobody", **stored).stdout.splitlines()[2]
    assert said == "OfNobody has user_id only, for no message is stored on signals.of.nobody"


def test_new_handler_says_that_all_messages_are_decoded(stored: dict[str, str], tmp_path: Path) -> None:
    """Where all are decoded, it says so."""
    assert invoke("send", "signals.sun.risen", '{"user_id": "ana"}', **stored).exit_code == 0
    said = make(tmp_path, subject="signals.sun.risen", **stored).stdout.splitlines()[2]
    assert said == "SunRisen decodes 1 of the 1 messages that were read on signals.sun.risen"


def test_new_handler_works_while_nats_is_away(tmp_path: Path) -> None:
    """A server that does not answer is one line, and the minimal type is written."""
    result = make(tmp_path, NATS_URL="nats://127.0.0.1:1")
    line = result.stdout.splitlines()[2]
    assert result.exit_code == 0 and "could not be read: NATS does not answer within 3 s" in line


def test_new_handler_takes_names(tmp_path: Path) -> None:
    """--name and --table name the files and what is in them."""
    assert make(tmp_path, "--name", "broken", "--table", "runs").exit_code == 0
    text = (tmp_path / "broken.py").read_text()
    assert 'RUNS = Table("runs", Run)' in text and "async def broken(event: Broken, ctx: Context)" in text


def test_new_handler_in_a_package_is_imported_by_its_dotted_name(tmp_path: Path) -> None:
    """A folder that is a package is imported from the folder above it."""
    package = tmp_path / "mine" / "events"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    said = make(package).stdout.splitlines()
    assert said[-1] == f"  PYTHONPATH={tmp_path} PLUGINS=mine.events.streak_broken python -m app worker --reload"
    assert "from mine.events.streak_broken import" in (package / "test_streak_broken.py").read_text()


@pytest.mark.parametrize(
    ("subject", "options", "problem"),
    [
        ("signals.*", (), "Invalid value for SUBJECT: expected tokens parted by dots, without '*'"),
        ("signals..a", (), "Invalid value for SUBJECT: expected tokens"),
        ("orders.new", (), "no stream has it (there is signals.>, feedback.>, decisions.>)"),
        ("timers.a.b", (), "no stream has it"),
        ("deadletters.a", (), "no stream has it"),
        ("signals.task.synced", (), "signals.task_synced handles 'signals.task.synced' already"),
        (SUBJECT, ("--table", "signals"), "--table: there is a subject table 'signals' already"),
        (SUBJECT, ("--table", "user_sync"), "--table: 'user_sync' is a table of subject table 'signals' already"),
        (SUBJECT, ("--name", "class"), "--name: 'class' means something else"),
        (SUBJECT, ("--name", "json"), "--name: there is a module 'json' already"),
    ],
    ids=["pattern", "empty", "no-stream", "timer", "letter", "handled", "table", "rows", "keyword", "module"],
)
def test_new_handler_refuses_what_can_not_be(
    tmp_path: Path, subject: str, options: tuple[str, ...], problem: str
) -> None:
    """The error names the argument, and nothing is written."""
    result = make(tmp_path, *options, subject=subject)
    assert result.exit_code == 2 and problem in result.stderr.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["streak_broken.py", "test_streak_broken.py"])
def test_new_handler_never_overwrites(tmp_path: Path, name: str) -> None:
    """A file that is there stays as it is, and the other one is not written either."""
    (tmp_path / name).write_text("mine")
    result = make(tmp_path)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {tmp_path}/{name} is there already: give another --name, or remove it\n"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "mine")]


def test_new_handler_leaves_nothing_half_written(tmp_path: Path) -> None:
    """If the second file can't be written the first one is taken back."""
    (tmp_path / "file").touch()
    with pytest.raises(click.ClickException, match="b.py can't be written"):
        _write({tmp_path / "a.py": "a", tmp_path / "file" / "b.py": "b"})
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_new_handler_says_that_a_folder_can_not_be_made(tmp_path: Path) -> None:
    """Where the folder can't be made it says so."""
    (tmp_path / "file").touch()
    result = make(tmp_path / "file" / "folder")
    assert result.exit_code == 1 and "streak_broken.py can't be written (Not a directory)" in result.stderr


def test_new_handler_in_a_checkout_never_overwrites() -> None:
    """Beside the shipped handlers, a module that is there already is named as a person types it."""
    result = invoke("new", "handler", SUBJECT, "--name", "signals", NATS_URL="")
    problem = "streams/handlers/signals.py is there already: give another --name, or remove it\n"
    assert result.exit_code == 1 and result.stderr.endswith(problem)
