"""Dead letters as commands read them: what a letter says, and what the store knows of it."""

import attrs
import pytest
from streams_kit import ts_of

from app.cli.letters import Letter, current_names, parse_letter, show_payload
from state.store import DeadLetter
from streams.changes import instant
from streams.context import Context
from streams.subjects import SubjectTable
from streams.topology import DEAD_LETTER_PREFIX

SUBJECT = f"{DEAD_LETTER_PREFIX}SIGNALS.steps.step.7"
HEADERS = {
    "Nats-Msg-Id": "x",
    "Tipstream-Sequence": "7",
    "Tipstream-Time": instant(ts_of(7) / 1e9),
    "Tipstream-Subject": "signals.st\\u00e9p",
    "Tipstream-Failures": "2",
    "Tipstream-Error": "ValueError: \\u26",
    "Tipstream-Attempts": '[{"at": "2026-01-01T00:00:00+00:00", "error": "a\\u00e9"}]',
}
KNOWN = DeadLetter(handler="steps.step", at=1.0, error="again", ts=ts_of(7), redrives=1)


@attrs.frozen(kw_only=True)
class Thing:
    """An event of which nothing is asked."""

    user_id: str


def parse(known: DeadLetter | None = None, **changed: str) -> Letter | None:
    """The letter with some headers changed."""
    headers = HEADERS | {f"Tipstream-{name}": value for name, value in changed.items()}
    return parse_letter(SUBJECT, headers, {("steps.step", 7): known} if known else {})


def test_letter_tells_what_its_headers_say() -> None:
    """Escapes are undone, also where one was cut in half; a store that does not know it leaves its state unknown."""
    letter = parse()
    assert letter is not None
    assert (letter.id, letter.stream, letter.subject) == ("steps.step:7", "SIGNALS", "signals.stép")
    assert (letter.state, letter.error, letter.failures) == ("unknown", "ValueError: \ufffd", 2)
    assert letter.attempts == [{"at": "2026-01-01T00:00:00+00:00", "error": "aé"}]
    assert letter.facts()["subject"] == "signals.stép" and "nats-msg-id" not in letter.facts()


def test_letter_has_the_state_of_its_own_message() -> None:
    """What the store knows counts when it is of the same message, not of one that had the sequence before."""
    letter, other = parse(KNOWN), parse(KNOWN, Time="2020-01-01T00:00:00+00:00")
    assert letter is not None and (letter.state, letter.error) == ("dead", "again")
    assert other is not None and other.state == "unknown"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({"Sequence": "8"}, None, id="another-sequence"),
        pytest.param({"Failures": "many", "Attempts": "{"}, (0, []), id="unreadable"),
        pytest.param({"Failures": "-1", "Attempts": "[1, 2]"}, (0, []), id="of-other-types"),
        pytest.param({"Attempts": "7"}, (2, []), id="no-list"),
    ],
)
def test_letter_of_others_does_no_harm(changed: dict[str, str], expected: tuple[int, list[object]] | None) -> None:
    """Headers that we have not written are skipped or left empty."""
    letter = parse(**changed)
    assert (letter and (letter.failures, letter.attempts)) == expected


def test_letter_is_found_by_every_name_of_its_handler() -> None:
    """Today's name stands for the function's former one and the table's, alone and together; no other name does."""
    table = SubjectTable("walks", renamed_from="steps")

    @table.on("signals.stride", renamed_from="step")
    async def stride(event: Thing, ctx: Context) -> None:
        """Does nothing."""

    names = current_names([table])
    assert names == dict.fromkeys(["walks.stride", "walks.step", "steps.stride", "steps.step"], "walks.stride")
    letter = parse()
    assert letter is not None
    assert [letter.is_of(name, names) for name in ("steps.step", "walks.stride", "walks.step")] == [True, True, False]


def test_payload_is_text_or_base64() -> None:
    """What is no text is shown as base64; what is gone is null."""
    assert show_payload(b"{}") == {"payload": "{}"}
    assert show_payload(b"\xff") == {"payload_base64": "/w=="}
    assert show_payload(None) == {"payload": None}
