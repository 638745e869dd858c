"""What people type for a place in a stream, and what they are told when it is none."""

import datetime as dt

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.instants import InstantParam, Place, PlaceParam, SpanParam, instant_of

NINE = dt.datetime(2026, 3, 1, 9, tzinfo=dt.UTC)
NO_PLACES = {
    "zero": "0",
    "negative": "-1",
    "word": "yesterday",
    "empty": "",
    "no zone": "2026-03-01T09:00:00",
    "no such day": "2026-02-30T09:00:00Z",
    "before the calendar": "0001-01-01T00:00:00+14:00",
    "after the calendar": "9999-12-31T23:59:59-14:00",
    "endless": "9" * 5000,
    "more than a sequence has": str(2**64),
}


@given(st.integers(1, 2**64 - 1))
def test_place_reads_a_sequence(seq: int) -> None:
    """Every number that a stream can have is that sequence."""
    assert PlaceParam().convert(str(seq), None, None) == Place(seq)


@pytest.mark.parametrize("text", ["2026-03-01T09:00:00Z", "2026-03-01T10:00:00+01:00", "2026-03-01 09:00+00:00"])
def test_place_and_instant_read_rfc_3339(text: str) -> None:
    """An instant is read with its zone."""
    assert PlaceParam().convert(text, None, None) == Place(NINE)
    assert InstantParam().convert(text, None, None) == NINE


@pytest.mark.parametrize("text", NO_PLACES.values(), ids=NO_PLACES)
def test_place_refuses_anything_else(text: str) -> None:
    """What is neither a sequence nor an instant with a zone is one error that says what is."""
    with pytest.raises(click.BadParameter, match=r"expected .*2026-03-01T09:00:00Z"):
        PlaceParam().convert(text, None, None)


def test_instant_refuses_a_sequence() -> None:
    """Where an instant is needed, a sequence is none."""
    with pytest.raises(click.BadParameter, match="expected an instant as 2026-03-01T09:00:00Z, got '7'"):
        InstantParam().convert("7", None, None)


@given(st.datetimes(min_value=dt.datetime(1900, 1, 1), timezones=st.just(dt.UTC)))
def test_instant_of_reads_back_every_instant(instant: dt.datetime) -> None:
    """What Python writes is read as the same instant."""
    assert instant_of(instant.isoformat(), "an instant") == instant


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604_800), ("0s", 0)],
)
def test_span_reads_a_number_with_a_unit(text: str, seconds: float) -> None:
    """Milliseconds, seconds, minutes, hours and days are understood."""
    assert SpanParam().convert(text, None, None) == dt.timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1w", "1 h", "999999d", "36501d", "9" * 400 + "s"])
def test_span_refuses_anything_else(text: str) -> None:
    """A number without a unit, an unknown unit, or a span that reaches beyond the calendar is one error."""
    with pytest.raises(click.BadParameter, match="expected a time span as 90s, 15m, 2h or 7d"):
        SpanParam().convert(text, None, None)


def test_what_was_read_once_is_left_alone() -> None:
    """Values that are converted already, as defaults are, stay as they are."""
    span = dt.timedelta(seconds=1)
    assert PlaceParam().convert(Place(1), None, None) == Place(1)
    assert InstantParam().convert(NINE, None, None) is NINE
    assert SpanParam().convert(span, None, None) is span
