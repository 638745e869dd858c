"""demo/rows.py: rows of the log, the events they become, the damaged payloads among them, the download's check."""

import datetime as dt
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from demo.rows import (
    DAMAGES,
    FEEDBACK,
    SYNCED,
    DemoError,
    Event,
    Impression,
    accepted,
    add_broken,
    build_events,
    encode,
    is_genuine,
    licence_field,
    pseudo_user,
    read_impressions,
    synced,
)
from hypothesis import given
from hypothesis import strategies as st

from models.codec import decoder_for
from models.errors import PayloadError
from models.events import TaskSynced, TipFeedback

COLUMNS = (
    "timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,user_feature_2,user_feature_3"
)
ROW = "2019-11-24 00:00:34.762830+00:00,14,3,1,0.0125,a,b,c,d"
DECODERS: dict[str, Callable[[bytes], object]] = {
    SYNCED: decoder_for(TaskSynced),
    FEEDBACK: decoder_for(TipFeedback),
}


def impression(number: int, time: str, *, user: str = "pseudo-1", click: bool = False) -> Impression:
    """A row of 24 November 2019."""
    at = dt.datetime.fromisoformat(f"2019-11-24T{time}+00:00")
    return Impression(number=number, at=at, item_id="14", pseudo_user=user, is_click=click)


def described(events: list[Event]) -> list[tuple[str, str]]:
    """Each event's subject and the id that it is published with."""
    return [(event.subject, event.message_id) for event in events]


def sample() -> list[Event]:
    """Twenty events: ten pseudo-users who see and click one item each."""
    return build_events(impression(n, "10:00:00", user=f"pseudo-{n}", click=True) for n in range(10))


def test_rows_keep_time_item_and_click() -> None:
    """A row's instant keeps its microseconds and zone, and its click is a truth value."""
    (row,) = read_impressions(io.StringIO(f"{COLUMNS}\n{ROW}\n"))
    assert row.at == dt.datetime(2019, 11, 24, 0, 0, 34, 762830, tzinfo=dt.UTC)
    assert (row.number, row.item_id, row.is_click) == (0, "14", True)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        pytest.param("+00:00", "", id="time-without-zone"),
        pytest.param("3,1,", "3,2,", id="click-neither-0-nor-1"),
        pytest.param("2019-11", "2019-13", id="no-such-month"),
    ],
)
def test_rows_unreadable_row_is_named(good: str, bad: str) -> None:
    """A row that is not what it should be ends the reading with its number, rather than becoming a wrong event."""
    with pytest.raises(DemoError, match="row 1 "):
        read_impressions(io.StringIO(f"{COLUMNS}\n{ROW}\n{ROW.replace(good, bad)}\n"))


def test_pseudo_user_depends_on_every_feature_and_its_place() -> None:
    """The same four features are one pseudo-user; another value, or the same ones elsewhere, are another."""
    names = {pseudo_user(features) for features in [tuple("abcd"), tuple("abce"), tuple("bacd"), ("ab", "", "c", "d")]}
    assert len(names) == 4
    assert pseudo_user(tuple("abcd")) in names
    assert all(name.startswith("pseudo-") for name in names)


def test_events_first_impression_of_an_hour_is_synced() -> None:
    """A pseudo-user's first impression of a clock hour is an event; a later one of it, unclicked, is not."""
    rows = [
        impression(0, "10:59:58"),
        impression(1, "10:59:59"),
        impression(2, "10:59:59", user="pseudo-2"),
        impression(3, "11:00:00"),
    ]
    assert described(build_events(rows)) == [(SYNCED, "synced:0"), (SYNCED, "synced:2"), (SYNCED, "synced:3")]


def test_events_click_is_accepted_feedback() -> None:
    """A click is a feedback event beside whatever else its row sends, also when it is not the first of its hour."""
    events = build_events([impression(0, "10:00:00", click=True), impression(1, "10:00:01", click=True)])
    assert described(events) == [(SYNCED, "synced:0"), (FEEDBACK, "accepted:0"), (FEEDBACK, "accepted:1")]
    feedback = decoder_for(TipFeedback)(events[1].payload)
    assert (feedback.user_id, feedback.tip_id, feedback.reaction) == ("pseudo-1", "14", "accepted")
    assert feedback.occurred_at == dt.datetime(2019, 11, 24, 10, tzinfo=dt.UTC)


def test_events_synced_says_only_what_the_log_knows() -> None:
    """The synchronisation carries the row's instant and number, and no count of tasks."""
    event = decoder_for(TaskSynced)(build_events([impression(7, "10:00:00.25")])[0].payload)
    assert (event.provider, event.cursor, event.task_count) == ("obd", "7", None)
    assert event.synced_at == dt.datetime(2019, 11, 24, 10, 0, 0, 250_000, tzinfo=dt.UTC)


@pytest.mark.parametrize("subject", [SYNCED, FEEDBACK])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damages_are_refused_by_the_event_type(damage: str, subject: str) -> None:
    """Every kind of damage makes a payload of either subject one that its event type refuses."""
    row = impression(0, "10:00:00")
    payload = synced(row) if subject == SYNCED else accepted(row)
    decode = DECODERS[subject]
    decode(encode(payload))
    with pytest.raises(PayloadError):
        decode(DAMAGES[damage](subject, payload))


@given(count=st.integers(0, 60), seed=st.integers())
def test_add_broken_keeps_the_log_and_its_order(count: int, seed: int) -> None:
    """With any number at any places, the sound events are all there in their order, and ids stay unique."""
    events = sample()
    mixed = add_broken(events, count=count, seed=seed)
    assert [event for event in mixed if event.damage is None] == events
    assert len({event.message_id for event in mixed}) == len(events) + count


def test_add_broken_uses_every_kind_on_both_subjects() -> None:
    """Fifty broken payloads hold all seven kinds of damage on both subjects, and one seed gives one order."""
    mixed = add_broken(sample())
    broken = [event for event in mixed if event.damage]
    assert len(broken) == 50
    assert {(event.damage, event.subject) for event in broken} == {(d, s) for d in DAMAGES for s in (SYNCED, FEEDBACK)}
    assert mixed == add_broken(sample())
    assert mixed != add_broken(sample(), seed=1)


def test_licence_is_the_field_of_the_metadata() -> None:
    """The licence is what the field says, not what the text below the headers does."""
    assert licence_field("Name: obp\nLicense: Apache License\n\nLicense: other\n") == "Apache License"
    assert licence_field("Name: obp\n\nLicense: other\n") == "nothing"


def test_is_genuine_needs_the_very_bytes(tmp_path: Path) -> None:
    """A missing file is not genuine, nor is one that differs in a byte."""
    wheel = tmp_path / "wheel"
    sha256 = hashlib.sha256(b"right").hexdigest()
    assert not is_genuine(wheel, sha256)
    wheel.write_bytes(b"wrong")
    assert not is_genuine(wheel, sha256)
    wheel.write_bytes(b"right")
    assert is_genuine(wheel, sha256)


def test_payloads_are_json_objects_of_texts() -> None:
    """What is published is JSON that other programs read."""
    assert json.loads(sample()[0].payload)["event_id"] == "obd:random/all:0"
