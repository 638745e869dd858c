"""``new handler`` in a checkout, as a teammate types it: what is written passes as it is, and events are handled."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUBJECT = "signals.streak.broken"
EVENTS = '{"user_id": "ana", "days": 3}\n{"user_id": "ana", "days": 4, "at": "2026-03-01T09:00:00Z"}\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a checkout needs to run."""
    folder = tmp_path / "checkout"
    packages = [marker.parent.name for marker in ROOT.glob("*/py.typed")]
    for name in (*packages, "tests/unit/streams/handlers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    return folder


def run(folder: Path, *arguments: str, stdin: str = "", **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a module of Python in a checkout, as a shell there does; coverage is of the original's files alone."""
    env = {"PATH": os.defpath, "STATE_DIR": str(folder / "var")} | variables
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=env, input=stdin, capture_output=True, text=True, timeout=30)


def test_new_handler_in_a_checkout_passes_its_test(checkout: Path) -> None:
    """With the types of what is stored: written beside the shipped handlers, and its test passes as printed."""
    assert run(checkout, "app", "streams", "apply").returncode == 0
    sent = run(checkout, "app", "send", SUBJECT, "--file", "-", stdin=EVENTS)
    assert sent.returncode == 0, sent.stderr
    made = run(checkout, "app", "new", "handler", SUBJECT)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.splitlines() == [
        "wrote streams/handlers/streak_broken.py",
        "wrote tests/unit/streams/handlers/test_streak_broken.py",
        f"StreakBroken decodes 2 of the 2 messages that were read on {SUBJECT}",
        "next:",
        "  python -m pytest tests/unit/streams/handlers/test_streak_broken.py",
        "  python -m app worker --reload",
    ]
    written = (checkout / "streams" / "handlers" / "streak_broken.py").read_text()
    assert "    at: dt.datetime | None = attrs.field(default=None, validator=aware)\n" in written
    tested = run(checkout, *made.stdout.splitlines()[4].split()[2:], "-q", "-p", "no:cacheprovider")
    assert (tested.returncode, "1 passed" in tested.stdout) == (0, True), tested.stdout + tested.stderr


def test_new_handler_in_a_plugin_passes_its_test(checkout: Path) -> None:
    """In a folder of its own the test passes by the command that is printed."""
    made = run(checkout, "app", "new", "handler", "feedback.tip.shared", "--plugin", "mine")
    assert (made.returncode, made.stderr) == (0, "")
    said = made.stdout.splitlines()
    assert said[2] == "TipShared has user_id only, for no message is stored on feedback.tip.shared"
    assert said[4] == "  PYTHONPATH=mine python -m pytest mine/test_tip_shared.py"
    tested = run(checkout, *said[4].split()[3:], "-q", "-p", "no:cacheprovider", PYTHONPATH="mine")
    assert (tested.returncode, "1 passed" in tested.stdout) == (0, True), tested.stdout + tested.stderr


@pytest.mark.parametrize(
    ("event", "declared"),
    [('{"user_id": 7}', "key=lane_of)"), ('{"account_id": "a"}', 'key="account_id")'), ('{"n": [1]}', 'order="none")')],
    ids=["number", "other-id", "nobody"],
)
def test_new_handler_passes_its_test_whatever_its_lane(checkout: Path, event: str, declared: str) -> None:
    """Events without a user's name make another lane, or a sum without order; the test of each passes."""
    assert run(checkout, "app", "streams", "apply").returncode == 0
    assert run(checkout, "app", "send", SUBJECT, event).returncode == 0
    assert run(checkout, "app", "new", "handler", SUBJECT).returncode == 0
    assert declared in (checkout / "streams" / "handlers" / "streak_broken.py").read_text()
    test = "tests/unit/streams/handlers/test_streak_broken.py"
    tested = run(checkout, "pytest", test, "-q", "-p", "no:cacheprovider")
    assert (tested.returncode, "1 passed" in tested.stdout) == (0, True), tested.stdout + tested.stderr


def test_new_handler_needs_a_checkout_or_a_folder(checkout: Path) -> None:
    """An installed application, where there are no tests, is not written into."""
    shutil.rmtree(checkout / "tests")
    made = run(checkout, "app", "new", "handler", SUBJECT)
    problem = "Error: this is an installed application, no checkout: name a folder with --plugin\n"
    assert (made.returncode, made.stderr) == (1, problem)
    assert not (checkout / "streams" / "handlers" / "streak_broken.py").exists()
