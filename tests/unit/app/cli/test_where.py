"""The condition of a replay: what it sees of a message, and what it says when it can't be answered."""

import datetime as dt
from typing import Any

import attrs
import click
import pytest
from streams_kit import make_handler, make_message

from app.cli.playback import verdict_of
from app.cli.where import NAMES, Where
from streams.context import Effects
from streams.player import Played
from streams.subjects import SubjectTable
from streams.verdict import APPLIED, Verdict


@attrs.frozen(kw_only=True)
class Step:
    user_id: str
    n: int | None
    at: dt.datetime = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


DEAD = Verdict(kind="dead", is_failure=True, error="PayloadError: n: missing")


def played(event: Any = None, verdict: Verdict = APPLIED, payload: bytes = b"{}") -> Played:
    """Message 7 of lane ana, stored seven seconds after 1970 began."""
    return Played(
        message=make_message(7, payload),
        table=SubjectTable("signals"),
        handler=make_handler(),
        key="ana",
        event=event,
        verdict=verdict,
        effects=Effects(),
        before={},
        guessed=0,
    )


STEP = played(Step(user_id="ana", n=3))


@pytest.mark.parametrize(
    "text",
    [
        "event.n == 3 && event.user_id == 'ana'",
        "event.at == timestamp('2026-03-01T00:00:00Z')",
        "subject == 'signals.task.synced' && subject.startsWith('signals.')",
        "handler == 'signals.task_synced'",
        "key == 'ana' && seq == 7",
        "time == timestamp('1970-01-01T00:00:07Z')",
        "verdict == 'applied' && error == ''",
        "has(event.n) && !has(event.other)",
        "seq in [6, 7]",
    ],
)
def test_where_sees_every_fact(text: str) -> None:
    """Each name stands for what it says, and instants compare as instants; the opposite does not hold."""
    assert Where(text).holds(STEP)
    assert not Where(f"!({text})").holds(STEP)


def test_where_sees_what_did_not_decode() -> None:
    """Of a message that does not fit its type the payload is there as it came; of other bytes, nothing."""
    where = Where("verdict == 'dead' && error.contains('missing') && event.n == 'x'")
    assert where.holds(played(verdict=DEAD, payload=b'{"n":"x"}'))
    for payload in (b"[1]", b"{", b"\xff"):
        assert not where.holds(played(verdict=DEAD, payload=payload))
    assert (where.answered, where.unanswered) == (1, 3)


@pytest.mark.parametrize(("is_failure", "word"), [(True, "failed"), (False, "retry")], ids=["failure", "no failure"])
def test_where_calls_a_verdict_as_it_is_shown(is_failure: bool, word: str) -> None:
    """What is tried again has the word that the replay prints for it."""
    found = played(Step(user_id="ana", n=1), Verdict(kind="parked", is_failure=is_failure, error="Retry: down"))
    assert verdict_of(found) == word
    assert Where(f"verdict == '{word}'").holds(found)


@pytest.mark.parametrize(
    ("text", "trouble"),
    [("event.other == 1", "KeyError: 'other'"), ("event.n + 'a' == 'b'", "TypeError: "), ("1 / (seq - 7) == 1", "")],
    ids=["missing field", "mixed types", "division by zero"],
)
def test_where_counts_what_it_can_not_answer(text: str, trouble: str) -> None:
    """A message for which there is no answer is not shown, but counted, with the reason in one line."""
    where = Where(text)
    assert not where.holds(STEP)
    assert (where.answered, where.unanswered) == (0, 1)
    assert where.trouble.startswith(trouble) and "\n" not in where.trouble


@pytest.mark.parametrize(
    "text",
    [
        "event.n.startsWith('a')",
        "size(event.n) > 1",
        "key.matches('(')",
        "int(key) > 1",
        "timestamp(key) > time",
        "[1][seq] == 1",
    ],
)
def test_where_counts_a_function_that_has_no_answer(text: str) -> None:
    """A function that does not take a message's value counts as unanswered for that message and ends nothing."""
    where = Where(text)
    assert not where.holds(STEP)
    assert (where.answered, where.unanswered) == (0, 1)
    assert "\n" not in where.trouble


@pytest.mark.parametrize("text", ["time.getFullYear() == 1970", "int(string(seq)) == 7", "[8, 7][seq - 6] == 7"])
def test_where_takes_what_fits_the_message_only(text: str) -> None:
    """What can be answered for a message alone, and not before there is one, is answered for it."""
    assert Where(text).holds(STEP)


@pytest.mark.parametrize(
    "text",
    ["seq >", "", "event.n = 3", "'", "(" * 500, "seq == 7 &&", "\ud800"],
    ids=["end", "empty", "assignment", "quote", "brackets", "half", "surrogate"],
)
def test_where_refuses_what_is_no_expression(text: str) -> None:
    """A slip is one line that names the option."""
    with pytest.raises(click.BadParameter, match="no expression: ") as caught:
        Where(text)
    assert "\n" not in caught.value.message
    assert caught.value.param_hint == "--where"


@pytest.mark.parametrize("text", ["evnt.n == 3", "foo(seq)", "seq == 7 || evnt.n == 1"])
def test_where_refuses_an_unknown_name(text: str) -> None:
    """A name that is not there is refused at once, with those that are."""
    with pytest.raises(click.BadParameter, match="Undefined variable or function: '") as caught:
        Where(text)
    assert caught.value.message.endswith(f"; there is {', '.join(NAMES)}")


def test_where_refuses_an_unknown_name_when_it_is_met() -> None:
    """A name that the first look did not meet is refused by the message that does."""
    where = Where("seq == 7 && evnt.n == 1")
    with pytest.raises(click.BadParameter, match="Undefined variable or function: 'evnt'"):
        where.holds(STEP)


@pytest.mark.parametrize("text", ["seq", "event", "event.n", "'yes'"])
def test_where_refuses_an_answer_that_is_neither_true_nor_false(text: str) -> None:
    """An expression that is no condition is refused, with what it gave."""
    with pytest.raises(click.BadParameter, match="expected true or false, got"):
        Where(text).holds(STEP)
