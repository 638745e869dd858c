"""Verdicts become changes: rows, events, parked messages, dead letters."""

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams_kit import DURABLE, make_handler, make_item, make_message, make_parked, ts_of

from models.codec import fingerprint
from state.store import Change, DeadLetter, Failure, OutboxRow, Tried
from streams import changes
from streams.context import Effects, Written
from streams.patterns import is_subject
from streams.topology import HEADER_BUDGET_BYTES
from streams.verdict import History, Verdict

NOW = 1000.0
DEAD = Verdict(kind="dead", is_failure=True, error="ValueError: bad")
LIMIT = 100_000
FACTS = changes.LetterFacts(epoch="2026-01-01T00:00:00Z", version="1.2.3", max_payload_bytes=LIMIT)
GIVEN_UP = DeadLetter(handler="signals.task_synced", at=NOW, error="ValueError: bad")


@attrs.frozen(kw_only=True)
class Nudge:
    user_id: str


Journal = tuple[Failure, ...]
CHANGE = Change(durable=DURABLE, stream="SIGNALS", seq=7, ts=ts_of(7))


def _dead(payload: bytes = b"{}", error: str = "x", subject: str = "signals.a", journal: Journal = ()) -> OutboxRow:
    history = History(failures=len(journal), attempts=len(journal), journal=journal) if journal else None
    item = make_item(message=make_message(7, payload, subject=subject), history=history)
    verdict = attrs.evolve(DEAD, error=error)
    return changes.dead(DURABLE, item, verdict, now=NOW, facts=FACTS).outbox[0]


def _attempts(row: OutboxRow) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(row.headers["Tipstream-Attempts"])
    return found


@pytest.mark.parametrize("is_parked", [False, True], ids=["delivered", "parked-before"])
def test_applied_without_effects_only_ends_the_message(is_parked: bool) -> None:
    """A handler that asks for nothing writes nothing; a parked message leaves the parked ones."""
    change = changes.applied(DURABLE, make_item(7, is_parked=is_parked), None, now=NOW)
    assert change == attrs.evolve(CHANGE, unparked=is_parked)


def test_applied_carries_rows_and_increments() -> None:
    """Each row is written or deleted, each increment is added."""
    effects = Effects(adds=[("days", "mon", "n", 2)])
    effects.puts = {("t", "ana"): b"{}", ("u", "ana"): None}
    effects.rows = {("t", "ana"): Written(object())}
    change = changes.applied(DURABLE, make_item(7), effects, now=NOW)
    assert change == attrs.evolve(
        CHANGE, puts=[("t", "ana", b"{}"), ("u", "ana", None)], adds=[("days", "mon", "n", 2)], peeks=[], outbox=[]
    )


def test_applied_sends_events_in_order_under_ids_of_the_message() -> None:
    """An event's id tells handler, stream, sequence, timestamp and place; its lane is the key's own."""
    effects = Effects(publishes=[("signals.a", b"1"), ("signals.b", b"2")])
    change = changes.applied(DURABLE, make_item(7, key="ü ana"), effects, now=NOW)
    rows = [
        OutboxRow(
            id=f"signals.task_synced:SIGNALS:7:{ts_of(7)}:{place}",
            lane=f"{DURABLE}:ü ana",
            subject=subject,
            payload=payload,
            headers={},
            created=NOW,
        )
        for place, (subject, payload) in enumerate(effects.publishes)
    ]
    assert change == attrs.evolve(CHANGE, puts=[], adds=[], peeks=[], outbox=rows)


def test_applied_again_gives_the_same_ids() -> None:
    """The same message gives its events the same ids at every attempt, so that the server can drop copies."""
    effects = Effects(publishes=[("signals.a", b"1"), ("signals.a", b"1")])
    first, second = (
        [row.id for row in changes.applied(DURABLE, make_item(7), effects, now=now).outbox] for now in (1.0, 2.0)
    )
    assert first == second and len(set(first)) == 2


@pytest.mark.parametrize(
    ("is_failure", "failures", "journal"),
    [
        pytest.param(True, 3, Failure(at=NOW, error="ValueError: bad"), id="failure"),
        pytest.param(False, 2, None, id="retry"),
    ],
)
def test_parked_counts_attempts_and_failures(is_failure: bool, failures: int, journal: Failure | None) -> None:
    """A tried message waits for its delay, keeps its first attempt's time, and only a failure is counted and noted."""
    item = make_item(7, history=History(failures=2, attempts=4, age_s=60.0), is_parked=True)
    verdict = Verdict(kind="parked", delay_s=5.0, is_failure=is_failure, error="ValueError: bad")
    change = changes.parked(DURABLE, item, verdict, now=NOW)
    parked = make_parked(7, due=NOW + 5, since=NOW - 60, failures=failures, attempts=5)
    assert change == attrs.evolve(CHANGE, parked=parked, failure=journal, unparked=False)


def test_parked_first_time_starts_its_history() -> None:
    """A message without a history begins it now; a failure that says nothing is noted as such."""
    verdict = Verdict(kind="parked", delay_s=0.5, is_failure=True)
    change = changes.parked(DURABLE, make_item(7), verdict, now=NOW)
    assert change.parked == make_parked(7, due=NOW + 0.5, since=NOW, failures=1, attempts=1)
    assert change.failure == Failure(at=NOW, error="")


def test_parked_behind_is_untried() -> None:
    """A message behind a parked one waits as it came: no attempt, no failure, no instant."""
    item = make_item(7, key="bob", message=make_message(7, b"\x00\xff", subject="signals.x"))
    parked = make_parked(7, lane="bob", payload=b"\x00\xff", subject="signals.x")
    assert changes.parked_behind(DURABLE, item) == attrs.evolve(CHANGE, parked=parked)


def test_dead_letter_holds_the_payload_and_what_is_known() -> None:
    """The dead letter is the message's own bytes on a subject and under an id of its own, with the facts in headers."""
    message = make_message(7, b"\x00\xff", subject="signals.x", ts=1_700_000_000_500_000_000)
    handler = make_handler(event=Nudge)
    item = make_item(message=message, handler=handler, history=History(failures=4, attempts=9), is_parked=True)
    change = changes.dead(DURABLE, item, attrs.evolve(DEAD, trace="Traceback:\nü"), now=NOW, facts=FACTS)
    facts = {
        "Stream": "SIGNALS",
        "Epoch": "2026-01-01T00:00:00Z",
        "Sequence": "7",
        "Subject": "signals.x",
        "Time": "2023-11-14T22:13:20.500000+00:00",
        "Handler": "signals.task_synced",
        "Failures": "5",  # the 4 before and this one
        "Error": "ValueError: bad",
        "Attempts": '[{"at": "1970-01-01T00:16:40+00:00", "error": "ValueError: bad"}]',  # 16 min 40 s are 1000 s
        "Version": "1.2.3",
        "Schema": f"Nudge:{fingerprint(Nudge)}",
        "Traceback": r"Traceback:\nü".replace("ü", r"\xfc"),
    }
    row = OutboxRow(
        id="signals.task_synced:SIGNALS:7:1700000000500000000:dead",
        lane="deadletters.SIGNALS:7",
        subject="deadletters.SIGNALS.signals.task_synced.7",
        payload=b"\x00\xff",
        headers={f"Tipstream-{name}": value for name, value in facts.items()},
        created=NOW,
    )
    assert change == attrs.evolve(CHANGE, ts=message.ts, outbox=[row], unparked=True, dead=GIVEN_UP)


def test_dead_letter_keeps_the_end_of_a_long_traceback() -> None:
    """Of a traceback that is too long the end stays, for there stands the error."""
    verdict = attrs.evolve(DEAD, trace="x" * 5000 + "the end")
    row = changes.dead(DURABLE, make_item(7), verdict, now=NOW, facts=FACTS).outbox[0]
    assert row.headers["Tipstream-Traceback"] == "x" * 1993 + "the end"  # 1993 + 7 are 2000


def test_dead_letter_that_fails_once_more_stays_the_one_it_is() -> None:
    """A redriven message that is given up again sends no second letter; what is known of it is renewed."""
    change = changes.dead(DURABLE, make_item(7, is_redriven=True), DEAD, now=NOW, facts=FACTS)
    assert change == attrs.evolve(CHANGE, dead=GIVEN_UP, is_redriven=True)


@pytest.mark.parametrize("is_failure", [True, False], ids=["failure", "retry"])
def test_tried_counts_what_the_server_keeps(is_failure: bool) -> None:
    """Without order the message stays on the server; the store knows its attempts, and notes a failure only."""
    item = make_item(7, is_shared=True, history=History(failures=1, attempts=2, age_s=10.0))
    verdict = Verdict(kind="parked", delay_s=5.0, is_failure=is_failure, error="E")
    tried = Tried(due=NOW + 5, since=NOW - 10, failures=1 + is_failure, attempts=3)
    failure = Failure(at=NOW, error="E") if is_failure else None
    change = changes.tried(DURABLE, item, verdict, now=NOW)
    assert change == attrs.evolve(CHANGE, is_shared=True, tried=tried, failure=failure)
    assert not change.is_applied


def test_dead_letter_of_an_undecodable_message_counts_one_failure() -> None:
    """A message that was never tried has this one failure, and an error that says nothing an empty one."""
    item = make_item(7, handler=make_handler("signals.other"))
    change = changes.dead(DURABLE, item, attrs.evolve(DEAD, error=None), now=NOW, facts=FACTS)
    headers = change.outbox[0].headers
    assert (headers["Tipstream-Failures"], headers["Tipstream-Error"]) == ("1", "")
    assert (headers["Tipstream-Handler"], change.unparked) == ("signals.other", False)


@pytest.mark.parametrize(
    ("size", "is_copied"),
    [
        pytest.param(LIMIT - HEADER_BUDGET_BYTES, True, id="fits"),
        pytest.param(LIMIT - HEADER_BUDGET_BYTES + 1, False, id="too-large"),
    ],
)
def test_dead_letter_points_to_what_is_too_large(size: int, is_copied: bool) -> None:
    """A payload that leaves no room for the headers is replaced by where it lies."""
    row = _dead(b"x" * size)
    assert (len(row.payload), row.headers.get("Tipstream-Pointer")) == ((size, None) if is_copied else (0, "SIGNALS:7"))


def test_dead_letter_tells_each_failure_with_its_time() -> None:
    """The journal and the last failure stand in one header, oldest first, their words as they were."""
    journal = (Failure(at=0.5, error='ValueError: "ü" 🙂'), Failure(at=61.0, error="KeyError: 'k'"))
    row = _dead(error="TimeoutError", journal=journal)
    assert _attempts(row) == [
        {"at": "1970-01-01T00:00:00.500000+00:00", "error": 'ValueError: "ü" 🙂'},
        {"at": "1970-01-01T00:01:01+00:00", "error": "KeyError: 'k'"},
        {"at": "1970-01-01T00:16:40+00:00", "error": "TimeoutError"},
    ]
    assert row.headers["Tipstream-Attempts"].isascii()


def test_dead_letter_tells_the_newest_failures_of_many() -> None:
    """Of more than ten failures the ten newest are told, all are counted."""
    row = _dead(error="12th", journal=tuple(Failure(at=float(n), error=f"{n}th") for n in range(1, 12)))
    assert [attempt["error"] for attempt in _attempts(row)] == [f"{n}th" for n in range(3, 13)]
    assert row.headers["Tipstream-Failures"] == "12"


def test_dead_letter_leaves_out_old_failures_that_are_long_in_ascii() -> None:
    """Ten failures in another script would be larger than what is kept free for headers: the newest ones are told."""
    row = _dead(error="end", journal=tuple(Failure(at=float(n), error=f"{n} " + "🙂" * 298) for n in range(9)))
    errors = [attempt["error"] for attempt in _attempts(row)]
    assert errors[1:] == ["8 " + "🙂" * 298, "end"] and errors[0].startswith("7 ")
    assert _header_bytes(row) < HEADER_BUDGET_BYTES


def _header_bytes(row: OutboxRow) -> int:
    return len("".join(f"{name}: {value}\r\n" for name, value in row.headers.items()).encode())


@given(
    st.text(st.characters(), max_size=600),
    st.text(st.characters(), max_size=600),
    st.lists(st.builds(Failure, at=st.floats(0, 4e9), error=st.text(st.characters(), max_size=500)), max_size=12),
)
def test_dead_letter_headers_are_printable_ascii_and_fit(error: str, subject: str, journal: list[Failure]) -> None:
    """Whatever a message or its errors hold, no header carries more than printable ASCII, and all fit their budget."""
    row = _dead(error=error, subject=subject, journal=tuple(journal))
    text = "".join(f"{name}: {value}" for name, value in row.headers.items())
    assert text.isascii() and text.isprintable()
    assert _header_bytes(row) < HEADER_BUDGET_BYTES
    assert 1 <= len(_attempts(row)) <= 10
    assert is_subject(row.subject)
