"""demo/report.py: what must come of the log, and the judgement of what came."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence

import attrs
import pytest
from demo.report import (
    Counts,
    DeadLetter,
    ExpectedRow,
    Played,
    Result,
    expected_rows,
    find_all_problems,
    find_wrong_row,
    kind_of_reason,
    show_counts,
    show_rows,
)
from demo.rows import FEEDBACK, SYNCED, Event, Impression, encode, synced

NOON = dt.datetime(2019, 11, 24, 12, tzinfo=dt.UTC)


def event(number: int, minutes: int = 0, *, user: str = "pseudo-1", damage: str | None = None) -> Event:
    """A synchronisation some minutes after noon."""
    at = NOON + dt.timedelta(minutes=minutes)
    row = Impression(number=number, at=at, item_id="14", pseudo_user=user, is_click=False)
    return Event(subject=SYNCED, payload=encode(synced(row)), message_id=str(number), damage=damage)


def stored(minutes: int, cursor: str) -> dict[str, object]:
    """A row as the worker answers it."""
    at = (NOON + dt.timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")
    return {"providers": {"obd": {"synced_at": at, "cursor": cursor, "task_count": None}}, "stream_seq": 1}


# Three events behind sequence 10; the one at 11 is broken. So: 3 sent = 2 applied + 1 dead.
EVENTS = [event(0), event(1, damage="nothing at all"), event(2, 5)]
GOOD = Result(
    played=Played(count=3, first_seq=10, last_seq=12, duplicates=0, started=0.0, seconds=0.5),
    apply_s=0.5,
    counts={SYNCED: Counts(sent=3, applied=2, dead=1), FEEDBACK: Counts(sent=0, applied=0, dead=0)},
    letters=[DeadLetter(seq=11, reason="PayloadError: user_id: missing")],
    found_rows={"pseudo-1": stored(5, "2")},
)


def with_letters(*seqs: int) -> Result:
    """The good result with other dead letters."""
    return attrs.evolve(GOOD, letters=[DeadLetter(seq=seq, reason="") for seq in seqs])


def with_counts(*, sent: int, applied: int, dead: int) -> Result:
    """The good result with other counts."""
    return attrs.evolve(GOOD, counts={SYNCED: Counts(sent=sent, applied=applied, dead=dead)})


def test_expected_rows_keep_the_newest_sound_event() -> None:
    """A row is expected to say the newest instant of its pseudo-user; broken payloads count for nothing."""
    events = [event(0, 5), event(1, 3), event(2, 9, damage="cut"), event(3, 1, user="pseudo-2")]
    rows = expected_rows(events)
    assert rows["pseudo-1"] == ExpectedRow(synced_at=NOON + dt.timedelta(minutes=5), cursor="0", event_count=2)
    assert rows["pseudo-2"].cursor == "3"


def test_problems_none_when_all_adds_up() -> None:
    """Three sent, two applied and one dead letter for the broken one leave nothing to complain of."""
    assert find_all_problems(GOOD, EVENTS, expected_rows(EVENTS)) == []


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        pytest.param(
            with_counts(sent=3, applied=1, dead=1), "3 sent, but 1 applied and 1 dead-lettered", id="one-lost"
        ),
        pytest.param(
            with_counts(sent=3, applied=3, dead=0), "2 sound payloads, but 3 applied", id="broken-one-applied"
        ),
        pytest.param(with_letters(), "1 broken payloads have no dead letter (sequences [11])", id="none"),
        pytest.param(with_letters(11, 12), "1 sound payloads have a dead letter (sequences [12])", id="innocent"),
        pytest.param(with_letters(11, 11), "1 messages have more than one dead letter", id="twice"),
        pytest.param(
            attrs.evolve(GOOD, played=attrs.evolve(GOOD.played, count=2)), "3 events, but 2 stored", id="not-stored"
        ),
        pytest.param(
            attrs.evolve(GOOD, played=attrs.evolve(GOOD.played, duplicates=1)), "1 of them duplicates", id="duplicate"
        ),
        pytest.param(attrs.evolve(GOOD, found_rows={"pseudo-1": None}), "user_sync pseudo-1: no row", id="row-missing"),
    ],
)
def test_problems_name_what_does_not_add_up(result: Result, problem: str) -> None:
    """Whatever is lost, doubled or given up wrongly is named."""
    found = find_all_problems(result, EVENTS, expected_rows(EVENTS))
    assert any(problem in sentence for sentence in found), found


@pytest.mark.parametrize(
    ("row", "why"),
    [
        pytest.param(stored(5, "2"), None, id="right"),
        pytest.param(stored(4, "2"), "instead of cursor 2", id="older-time"),
        pytest.param(stored(5, "1"), "cursor 1 at", id="other-row"),
        pytest.param({"providers": {}}, "no provider obd", id="no-provider"),
        pytest.param(None, "no row", id="no-row"),
    ],
)
def test_wrong_row_is_explained(row: Mapping[str, object] | None, why: str | None) -> None:
    """A row is right only with the log's instant and the log's cursor."""
    expected = ExpectedRow(synced_at=NOON + dt.timedelta(minutes=5), cursor="2", event_count=1)
    found = find_wrong_row(row, expected)
    assert found is None if why is None else found and why in found


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        pytest.param("at: got 2019-11-24T00:00:34.762830", "at: got 2019-11-30T23:59:47", True, id="instants"),
        pytest.param("payload: bad (byte 3)", "payload: bad (byte 81)", True, id="places"),
        pytest.param("user_id: missing", "tip_id: missing", False, id="fields"),
    ],
)
def test_kind_of_reason_forgets_values_only(one: str, other: str, is_same: bool) -> None:
    """Reasons that differ in instants or places are one kind; those of other fields are not."""
    assert (kind_of_reason(f"PayloadError: {one}") == kind_of_reason(f"PayloadError: {other}")) is is_same


@pytest.mark.parametrize(
    "show",
    [
        pytest.param(lambda result: show_counts(result), id="counts"),
        pytest.param(lambda result: show_rows(result, expected_rows(EVENTS)), id="rows"),
    ],
)
def test_output_fits_80_columns(
    show: Callable[[Result], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even a long reason and a long row stay within 80 columns, on a wider terminal too, with nothing cut off."""
    monkeypatch.setenv("COLUMNS", "200")
    letters: Sequence[DeadLetter] = [DeadLetter(seq=11, reason="word " * 60)]
    row = stored(5, "2") | {"last_event_id": "word " * 60}
    show(attrs.evolve(GOOD, letters=letters, found_rows={"pseudo-1": row}))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("word") == 60
