"""How a replay is shown: a line of JSON a message, lines of text, the summary, and the progress bar."""

import io
import json
import os
import pty
import sys
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from consume_kit import SPEC
from hypothesis import given
from hypothesis import strategies as st
from streams_kit import make_handler, make_message

from app.cli.playback import Printer, Summary, as_json, progress_bar, verdict_of
from streams.context import Effects
from streams.moment import Known
from streams.plan import Plan
from streams.player import Played
from streams.replay import Span
from streams.subjects import SubjectTable
from streams.verdict import APPLIED, Verdict

FAILED = Verdict(kind="parked", delay_s=1.23456, is_failure=True, error="ValueError: x", where="a.py:3 in step")
RETRY = Verdict(kind="parked", delay_s=2.0, is_failure=False, error="Retry: later")
DEAD = Verdict(kind="dead", is_failure=True, error="Reject: no")
EFFECTS = Effects(
    puts={("rows", "ana"): b'{"n":2}', ("rows", "bo"): None, ("rows", "same"): b"{}"},
    adds=[("counts", "all", "n", 1), ("counts", "all", "n", -2)],
    peeks=[("others", "b", b'{"x":1}'), ("others", "c", None)],
    publishes=[("signals.next", b'{"user_id":"ana"}')],
)
BEFORE = {("rows", "ana"): b'{"n":1}', ("rows", "bo"): b'{"n":5}', ("rows", "same"): b"{}", ("counts", "all"): None}


def played(verdict: Verdict = APPLIED, effects: Effects | None = None, **fields: Any) -> Played:
    """Message 7 of lane ana, stored seven seconds after 1970 began."""
    base = Played(
        message=make_message(7),
        table=SubjectTable("signals"),
        handler=make_handler(),
        key="ana",
        event=None,
        verdict=verdict,
        effects=effects or Effects(),
        before={},
        guessed=0,
    )
    return attrs.evolve(base, **fields)


def shown(one: Played, live: str = "applied") -> list[str]:
    """The lines that a person sees."""
    out = io.StringIO()
    Printer(out).show(one, live)
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("verdict", "word"), [(APPLIED, "applied"), (FAILED, "failed"), (RETRY, "retry"), (DEAD, "dead")]
)
def test_verdict_is_one_word(verdict: Verdict, word: str) -> None:
    """What failed and what only waits are told apart."""
    assert verdict_of(played(verdict)) == word


def test_as_json_has_everything() -> None:
    """A message is an object of its facts, its verdict, and its effects with the rows of before."""
    found = json.loads(as_json(played(effects=EFFECTS, before=BEFORE, guessed=1), "dead"))
    assert found == {
        **{"stream": "SIGNALS", "seq": 7, "time": "1970-01-01T00:00:07+00:00", "subject": "signals.task.synced"},
        **{"handler": "signals.task_synced", "key": "ana", "verdict": "applied", "live": "dead"},
        **{"error": None, "delay_s": None, "where": None, "guessed_peeks": 1},
        "writes": [
            {"table": "rows", "key": "ana", "before": {"n": 1}, "after": {"n": 2}},
            {"table": "rows", "key": "bo", "before": {"n": 5}, "after": None},
            {"table": "rows", "key": "same", "before": {}, "after": {}},
        ],
        "adds": [{"table": "counts", "key": "all", "field": "n", "n": n} for n in (1, -2)],
        "publishes": [{"subject": "signals.next", "event": {"user_id": "ana"}}],
        "peeks": [{"table": "others", "key": "b", "row": {"x": 1}}, {"table": "others", "key": "c", "row": None}],
    }


def test_as_json_tells_why_and_when_again() -> None:
    """Of a failure there is the error, its place and the delay; a dead letter has no delay."""
    found = json.loads(as_json(played(FAILED), "parked"))
    assert (found["verdict"], found["delay_s"], found["where"]) == ("failed", 1.235, "a.py:3 in step")
    assert json.loads(as_json(played(DEAD), "dead"))["delay_s"] is None


@given(st.binary(max_size=20) | st.sampled_from([b'{\n "a": 1\n}', b'"\\ud800"', b"[1,\r\n2]", b"[" * 2000, b"1e999"]))
def test_as_json_is_one_line_whatever_is_published(payload: bytes) -> None:
    """An event that was published as bytes, of several lines or of no text, is one line, and JSON if it was."""
    line = as_json(played(effects=Effects(publishes=[("signals.next", payload)])), "applied")
    assert line.endswith("\n") and line.count("\n") == 1
    event = json.loads(line)["publishes"][0]["event"]
    text = payload.decode("utf-8", "backslashreplace")
    assert event == text or event == json.loads(payload)


def test_printer_shows_effects_below_the_message() -> None:
    """Each changed field, increment and event has a line; so have peeks that were not kept."""
    assert shown(played(effects=EFFECTS, before=BEFORE, guessed=2)) == [
        "SIGNALS:7  1970-01-01 00:00:07  signals.task_synced  ana  applied",
        "    rows/ana  n: 1 -> 2",
        '    rows/bo  {"n":5} -> -',
        "    rows/same  unchanged",
        "    counts/all  n +1",
        "    counts/all  n -2",
        '    publishes signals.next  {"user_id":"ana"}',
        "    2 peeks were not kept with the message; answered from the rows of this replay",
    ]


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        (FAILED, "    ValueError: x at a.py:3 in step, again in 1.23 s"),
        (RETRY, "    Retry: later, again in 2 s"),
        (DEAD, "    Reject: no"),
    ],
    ids=["failed", "retry", "dead"],
)
def test_printer_shows_the_error(verdict: Verdict, line: str) -> None:
    """Below a message that was not applied stands why."""
    assert shown(played(verdict, key=""))[1:] == [line]


@pytest.mark.parametrize(
    ("live", "words"),
    [
        ("applied", ""),
        ("parked", "  (live: failed or waits)"),
        ("dropped", "  (live: dead, dropped)"),
        ("none", "  (live: no outcome)"),
        ("pending", "  (live: pending)"),
    ],
)
def test_printer_says_what_became_of_it_in_the_worker(live: str, words: str) -> None:
    """Only what was not applied live is worth a word."""
    assert shown(played(), live) == ["SIGNALS:7  1970-01-01 00:00:07  signals.task_synced  ana  applied" + words]


def test_printer_keeps_users_from_writing_to_the_terminal() -> None:
    """Keys, rows and events of users can't hold a line break or an escape."""
    effects = Effects(
        puts={("rows", "\x1b[2J\n"): b'{"n":"\xe2\x80\xae"}'}, publishes=[("signals.next", b"\x1b]0;\x07\n\xff")]
    )
    lines = shown(played(effects=effects, key="\x1b[2J\n"))
    assert len(lines) == 3 and all(line.isprintable() for line in lines)


def test_summary_counts_what_was_shown() -> None:
    """Verdicts, writes and events are counted, and the messages that end otherwise than live."""
    summary = Summary()
    for verdict, live in ((APPLIED, "applied"), (APPLIED, "dead"), (DEAD, "applied"), (FAILED, "parked")):
        summary.count(played(verdict, EFFECTS if live == "applied" else None), live)
    assert list(summary.lines()) == [
        "4 messages: 2 applied, 1 dead, 1 failed; 10 writes, 2 publishes",
        "2 end otherwise than they did in the worker",
    ]


def test_summary_of_nothing_is_a_line() -> None:
    """Where nothing was shown, that is said."""
    assert list(Summary().lines()) == ["0 messages; 0 writes, 0 publishes"]


def test_summary_says_what_the_rows_lack() -> None:
    """Rows that could not be made again, and messages that fail today, are remarks; sound plans are silent."""
    bad = Plan(table=SubjectTable("bad"), spec=SPEC, known=Known(), upto=1, trouble="it is gone")
    bad.fail(3, "bad.step", "ValueError: x")
    bad.fail(4, "bad.step", "ValueError: y")
    summary = Summary()
    summary.end([Plan(table=SubjectTable("good"), spec=SPEC, known=Known(), upto=1), bad])
    assert summary.remarks == [
        "bad: the rows before the first message are incomplete: it is gone",
        "bad: 2 earlier messages were applied once and fail today, the first at SIGNALS:3: ValueError: x",
    ]


@pytest.fixture
def terminal() -> Iterator[tuple[int, Any]]:
    """A terminal: the end that reads, and the file that programs write to."""
    reader, writer = pty.openpty()
    with open(writer, "w", encoding="utf-8") as file:
        yield reader, file
    os.close(reader)


def test_progress_bar_runs_on_a_terminal(monkeypatch: pytest.MonkeyPatch, terminal: tuple[int, Any]) -> None:
    """Where messages go to a file and errors to a terminal, the bar is drawn there."""
    monkeypatch.setattr(sys, "stderr", terminal[1])
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with progress_bar({"SIGNALS": Span(first=1, last=400)}) as progress:
        for seq in range(1, 401):
            progress("SIGNALS", seq)
    seen = b""
    while b"SIGNALS" not in seen:  # a terminal gives what it has in pieces; the test's time ends a bar without it
        seen += os.read(terminal[0], 65_536)


def test_progress_bar_is_silent_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal nothing is drawn."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar({"SIGNALS": Span(first=1, last=2)}) as progress:
        progress("SIGNALS", 2)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
