"""The records of a store and where it lies."""

from pathlib import Path

import attrs
import pytest

from state.store import Change, Failure, Floor, OutboxRow, ParkedMessage, StoredRow, store_path


def test_store_lies_in_the_state_dir() -> None:
    """The database is one file with a fixed name."""
    assert store_path(Path("var")) == Path("var/state.db")


@pytest.mark.parametrize("record", [StoredRow, Floor, ParkedMessage, Failure, OutboxRow], ids=lambda cls: cls.__name__)
def test_store_records_are_frozen_and_named(record: type) -> None:
    """What the store gave or was given can't change afterwards, and no field is passed by place."""
    fields = attrs.fields(record)
    made = record(**{field.name: 1 for field in fields})
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(made, fields[0].name, 2)
    with pytest.raises(TypeError):
        record(*range(len(fields)))


def test_change_of_a_message_writes_nothing_by_default() -> None:
    """A change without more is a message that is done."""
    change = Change(durable="d", stream="S", seq=1, ts=2)
    assert not any((change.puts, change.adds, change.outbox, change.parked, change.unparked, change.failure))


def test_parked_message_starts_untried() -> None:
    """A message that was only parked behind another one has no attempts, no failures and no due instant."""
    parked = ParkedMessage(durable="d", seq=1, ts=2, lane="l", subject="s", payload=b"")
    assert (parked.due, parked.since, parked.failures, parked.attempts, parked.journal) == (0, 0, 0, 0, ())
