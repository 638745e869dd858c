"""The handlers of ``signals.>``, run on events over rows in memory."""

import asyncio
import datetime as dt
import itertools
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams_kit import MemoryRows, ts_of

from models.events import TaskSynced, TipFeedback
from models.rows import ProviderSync, UserSync
from streams.handlers.signals import USER_SYNC, subjects, task_synced, tip_feedback

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def synced(minute: int, *, provider: str = "todo", count: int | None = None, event_id: str | None = None) -> TaskSynced:
    """A synchronisation of Ana's some minutes after noon."""
    at = NOON + dt.timedelta(minutes=minute)
    cursor = f"c{minute}"
    return TaskSynced(
        user_id="ana", provider=provider, synced_at=at, task_count=count, cursor=cursor, event_id=event_id
    )


async def fold(events: list[TaskSynced]) -> UserSync:
    """Ana's row after the events in this order, as messages 1, 2, 3 …"""
    memory = MemoryRows([USER_SYNC])
    for seq, event in enumerate(events, 1):
        await memory.run(task_synced, event, key="ana", seq=seq)
    row = USER_SYNC.decode(memory.rows["user_sync", "ana"])
    assert isinstance(row, UserSync)
    return row


async def test_task_synced_makes_the_row_of_a_new_user() -> None:
    """The first event makes the row, with the message's sequence and the stream's time."""
    row = await fold([synced(1, count=3, event_id="e1")])
    assert row == UserSync(
        providers={"todo": ProviderSync(synced_at=NOON + dt.timedelta(minutes=1), task_count=3, cursor="c1")},
        last_event_id="e1",
        stream_seq=1,
        updated_at=dt.datetime.fromtimestamp(ts_of(1) / 1e9, dt.UTC),
    )


async def test_task_synced_keeps_each_provider_by_itself() -> None:
    """An event of one provider leaves the others as they are."""
    row = await fold([synced(5, provider="mail"), synced(1), synced(7, provider="mail")])
    assert {name: sync.cursor for name, sync in row.providers.items()} == {"mail": "c7", "todo": "c1"}


async def test_task_synced_late_never_replaces_newer() -> None:
    """An older synced_at leaves the provider, whatever zone it is told in; the row still tells the last message."""
    zone = dt.timezone(dt.timedelta(hours=5))
    late = TaskSynced(user_id="ana", provider="todo", synced_at=(NOON + dt.timedelta(minutes=1)).astimezone(zone))
    row = await fold([synced(2, event_id="e1"), late])
    assert (row.providers["todo"].cursor, row.stream_seq, row.last_event_id) == ("c2", 2, "e1")


async def test_task_synced_at_the_same_instant_takes_the_later_message() -> None:
    """Of two events of one instant the later in the stream wins."""
    row = await fold([synced(2, count=1), synced(2, count=2)])
    assert row.providers["todo"].task_count == 2


async def test_task_synced_writes_one_row_and_nothing_else() -> None:
    """The only effect is the user's own row."""
    effects = await MemoryRows([USER_SYNC]).run(task_synced, synced(1), key="ana")
    assert effects is not None
    assert (set(effects.puts), effects.adds, effects.publishes) == ({("user_sync", "ana")}, [], [])


EVENTS = st.builds(
    synced, st.integers(0, 4), provider=st.sampled_from(["todo", "mail"]), count=st.none() | st.integers(0, 3)
)


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=4))
def test_task_synced_ends_the_same_for_every_order(events: list[TaskSynced]) -> None:
    """The providers end at their newest instant for each order; only between events of one instant order decides."""
    newest: dict[str, dt.datetime] = {}
    for event in events:
        newest[event.provider] = max(event.synced_at, newest.get(event.provider, event.synced_at))
    for order in itertools.permutations(events):
        row = asyncio.run(fold(list(order)))
        assert {name: sync.synced_at for name, sync in row.providers.items()} == newest
        for name, sync in row.providers.items():
            ties = [event for event in order if (event.provider, event.synced_at) == (name, newest[name])]
            assert (sync.task_count, sync.cursor) == (ties[-1].task_count, ties[-1].cursor)


async def test_tip_feedback_only_logs_without_the_user(caplog: pytest.LogCaptureFixture) -> None:
    """Feedback writes nothing; its line tells where the message lies and the reaction, not who or which tip."""
    event = TipFeedback(user_id="ana-secret", tip_id="tip-secret", reaction="snoozed", occurred_at=NOON)
    with caplog.at_level(logging.INFO, "streams.handlers.signals"):
        assert await MemoryRows([USER_SYNC]).run(tip_feedback, event, key="ana-secret", seq=9) is None
    (record,) = caplog.records
    assert (record.message, record.__dict__["fields"]) == (
        "tip feedback",
        {"reaction": "snoozed", "stream": "SIGNALS", "seq": 9},
    )


def test_signals_table_is_the_contract() -> None:
    """Names, subjects and event types are the outside contract."""
    declared = [(handler.name, handler.subject, handler.event) for handler in subjects.handlers]
    assert declared == [
        ("signals.task_synced", "signals.task.synced", TaskSynced),
        ("signals.tip_feedback", "signals.tip.feedback", TipFeedback),
    ]
    assert (subjects.name, subjects.key, subjects.tables) == ("signals", "user_id", (USER_SYNC,))
