"""``deadletters``: which letters are meant, what is said of them, and what is refused in one line."""

from pathlib import Path
from typing import Any

import attrs
import click
import pytest
from harness import NatsServer
from process_kit import invoke

from app.cli.deadletters import Action, _answer, _choose, _print_facts
from app.cli.letters import Letter
from state.store import DeadLetter

DEAD = DeadLetter(handler="t.old", at=1.0, error="boom")
NAMES = {"t.new": "t.new", "t.old": "t.new", "t.other": "t.other"}


def letter(seq: int = 1, handler: str = "t.old", *, is_known: bool = True, **fields: Any) -> Letter:
    """A dead letter of SIGNALS."""
    known = attrs.evolve(DEAD, handler=handler, **fields) if is_known else None
    return Letter(handler=handler, stream="SIGNALS", seq=seq, headers={}, known=known)


LETTERS = [letter(1), letter(2, "t.other"), letter(3, state="applied"), letter(4, "t.gone"), letter(5, is_known=False)]


@pytest.mark.parametrize(
    ("ids", "handler", "expected"),
    [
        pytest.param(("t.old:1", "t.new:1"), None, ["t.old:1"], id="once-by-either-name"),
        pytest.param((), "t.new", ["t.old:1"], id="handler"),
        pytest.param((), "t.old", ["t.old:1"], id="former-handler"),
        pytest.param((), "t.nobody", [], id="nobody"),
    ],
)
def test_letters_are_chosen(ids: tuple[str, ...], handler: str | None, expected: list[str]) -> None:
    """By id or by handler, under the name of today or of then; of a handler only what is still dead."""
    assert [one.id for one in _choose(LETTERS, "redrive", ids, handler, NAMES)] == expected


@pytest.mark.parametrize(
    ("one", "why"),
    [
        pytest.param("t.old:9", "there is no dead letter 't.old:9'", id="missing"),
        pytest.param("nonsense", "there is no dead letter 'nonsense'", id="no-id"),
        pytest.param("t.old:3", "t.old:3 is applied, not dead", id="applied"),
        pytest.param("t.gone:4", "t.gone:4: no handler 't.gone' any more", id="no-handler"),
        pytest.param("t.old:5", "t.old:5 is not known to the store of this STATE_DIR", id="unknown"),
    ],
)
def test_letter_that_can_not_be_asked_for_is_named(one: str, why: str) -> None:
    """Nothing is sent for any of them when one can't be done."""
    with pytest.raises(click.ClickException) as refused:
        _choose(LETTERS, "redrive", ("t.old:1", one), None, NAMES)
    assert why in refused.value.message


@pytest.mark.parametrize(("action", "is_refused"), [("redrive", False), ("drop", True)])
def test_letter_that_waits_for_its_turn_can_not_be_dropped(action: Action, is_refused: bool) -> None:
    """Its message is about to run; asking for that once more waits for the same outcome."""
    letters = [letter(1, is_waiting=True)]
    if is_refused:
        with pytest.raises(click.ClickException, match="waits behind parked messages"):
            _choose(letters, action, ("t.old:1",), None, NAMES)
    else:
        assert _choose(letters, action, (), None, NAMES) == letters


@pytest.mark.parametrize(
    ("now", "said", "is_good"),
    [
        pytest.param({"state": "applied", "redrives": 2}, "applied", True, id="applied"),
        pytest.param({"state": "dropped"}, "dropped", True, id="dropped"),
        pytest.param({"redrives": 2, "error": "again"}, "still dead: again", False, id="failed"),
        pytest.param({"redrives": 1}, "asked for, and has no outcome yet", None, id="nothing"),
        pytest.param({"redrives": 1, "is_waiting": True}, "waits behind parked", None, id="waiting"),
    ],
)
def test_answer_says_what_became_of_it(now: dict[str, Any], said: str, is_good: bool | None) -> None:
    """What was so before it was asked for does not count."""
    answer = _answer(letter(1, redrives=1), attrs.evolve(DEAD, **now))
    assert (said in answer.said, answer.is_good) == (True, is_good)


def test_shown_text_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """What users wrote can't move the cursor; lines stay lines; what is gone is said."""
    facts: dict[str, Any] = {
        "id": "t.old:1",
        "error": "a\x1b[2J",
        "attempts": [{"at": "then", "error": "b\nc"}],
        "traceback": "one\n  two\x07",
        "payload": None,
        "resolution": {"state": "dead", "note": "", "redrives": 0},
    }
    _print_facts(facts)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{'id':<20}  t.old:1", f"{'error':<20}  a\\x1b[2J"]
    assert lines[2:4] == [f"{'resolution.state':<20}  dead", f"{'resolution.redrives':<20}  0"]
    assert lines[4:] == [
        *("attempts:", "    then  b", "    c", "traceback:", "    one", "      two\\x07"),
        "payload: too large for the letter, and its stream no longer has it",
    ]


def test_commands_before_the_first_worker_say_so(nats_server: NatsServer, tmp_path: Path) -> None:
    """A server without the stream is one clear line, not an empty list."""
    result = invoke("deadletters", "list", NATS_URL=nats_server.url, STATE_DIR=str(tmp_path / "var"))
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: stream DEAD_LETTERS is not there yet; a worker makes it\n",
    )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        pytest.param(("redrive",), "give ids, or --handler, or --all", id="nothing"),
        pytest.param(("redrive", "t.h:1", "--all"), "give ids, or --handler, or --all", id="two-ways"),
        pytest.param(("redrive", "--all", "--wait", "-1"), "--wait", id="wait"),
        pytest.param(("drop", "t.h:1"), "--reason", id="no-reason"),
        pytest.param(("drop", "t.h:1", "--reason", " "), "--reason: expected a text", id="empty-reason"),
        pytest.param(("drop", "--reason", "x"), "ID", id="no-id"),
    ],
)
def test_bad_usage_is_code_two(arguments: tuple[str, ...], why: str) -> None:
    """What is missing is named before anything is asked."""
    result = invoke("deadletters", *arguments)
    assert (result.exit_code, why in result.stderr) == (2, True)
