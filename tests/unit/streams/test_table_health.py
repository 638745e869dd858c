"""streams/table_health.py: for how long messages have waited while nothing happened."""

import time
from typing import Any

import attrs
import pytest
from streams_kit import DURABLE, make_item

from state.store import ParkedLane
from streams.health import ConsumerHealth
from streams.outcomes import Hand
from streams.stats import TableStats
from streams.table_health import Limits, TableHealth


@attrs.define
class Attach:
    """Stands in the consumer's place: when it attached."""

    attached_at: float = 0.0
    is_attached: bool = True
    reason: str | None = None


@attrs.define
class Unsent:
    """Stands in the outbox's place."""

    is_full: bool = False
    unsent_count: int = 0


def health_of(hand: Hand, *, outbox: Any = None) -> TableHealth:
    """The health of a worker with this hand."""
    limits = Limits(max_deliver=5, parked_max=10)
    return TableHealth(hand, limits, outbox or Unsent(), slots=None, consumer=Attach())  # type: ignore[arg-type]


def new_hand() -> Hand:
    """A hand that has done nothing yet."""
    return Hand(durable=DURABLE, stats=TableStats([]))


def test_first_message_after_a_quiet_hour_has_waited_no_hour() -> None:
    """Idleness counts from the moment at which something came to empty hands, not from the last outcome."""
    hand = new_hand()
    hand.stats.last_outcome_at = time.monotonic() - 3600
    hand.held.add(make_item(1))
    assert health_of(hand).idle_s(quiet_at=0.0) < 60
    hand.held.since -= 90
    hand.held.add(make_item(2))  # more of them change nothing
    assert 90 <= health_of(hand).idle_s(quiet_at=0.0) < 150


def test_messages_that_wait_on_the_server_count_from_its_last_quiet_look() -> None:
    """With empty hands the time since the server had nothing counts; an outcome or an attach starts it anew."""
    hand, now = new_hand(), time.monotonic()
    assert 5 <= health_of(hand).idle_s(quiet_at=now - 5) < 60
    hand.stats.last_outcome_at = now - 1
    assert 1 <= health_of(hand).idle_s(quiet_at=now - 50) < 45


@pytest.mark.parametrize(
    ("attached_at", "pending", "lag_s"),
    [
        pytest.param(0.0, 5, None, id="never-attached"),
        pytest.param(1.0, 5, 7.0, id="attached"),
        pytest.param(0.0, 0, 0.0, id="nothing-waits"),
    ],
)
def test_lag_of_a_durable_that_was_never_attached_is_unknown(
    attached_at: float, pending: int, lag_s: float | None
) -> None:
    """How long nothing happened says nothing before the first attach."""
    limits = Limits(max_deliver=5, parked_max=10)
    consumer: Any = Attach(attached_at)
    health = TableHealth(new_hand(), limits, Unsent(), slots=None, consumer=consumer)  # type: ignore[arg-type]
    assert health.describe(ConsumerHealth(pending=pending), 7.0).lag_s == lag_s


@pytest.mark.parametrize(
    ("elsewhere", "outbox", "said"),
    [
        pytest.param(10, Unsent(), "10 messages are parked (PARKED_MAX=10)", id="parked"),
        pytest.param(0, Unsent(is_full=True, unsent_count=7), "7 events wait to be published", id="outbox"),
        pytest.param(9, Unsent(), None, id="neither"),
    ],
)
def test_intake_stops_when_too_much_waits(elsewhere: int, outbox: Unsent, said: str | None) -> None:
    """Whatever waits too long elsewhere stops the intake, and is named."""
    hand = new_hand()
    hand.parked_elsewhere = elsewhere
    assert health_of(hand, outbox=outbox).intake_stopped == said


def test_unfinished_says_what_is_under_way() -> None:
    """Messages in hand, dead letters on their way and parked lanes are named; what is parked for later only if told."""
    hand = new_hand()
    health = health_of(hand)
    assert list(health.unfinished(with_parked=True)) == []
    hand.held.add(make_item(1))
    hand.letters[2] = make_item(2).message
    hand.parked.load({"ana": ParkedLane(due=time.time() + 3600, count=3)})
    under_way = ["1 messages in hand", "1 dead letters to be stored"]
    assert list(health.unfinished(with_parked=False)) == under_way
    assert list(health.unfinished(with_parked=True)) == [*under_way, "3 messages parked"]
    hand.parked.load({"ana": ParkedLane(due=time.time() - 1, count=3)})
    assert list(health.unfinished(with_parked=False))[-1] == "3 messages parked"


def test_unfinished_says_that_a_worker_is_not_attached() -> None:
    """Without an attach, nothing is known to be finished."""
    consumer: Any = Attach(is_attached=False, reason="reconnected")
    limits = Limits(max_deliver=5, parked_max=10)
    health = TableHealth(new_hand(), limits, Unsent(), slots=None, consumer=consumer)  # type: ignore[arg-type]
    assert list(health.unfinished(with_parked=True)) == ["not attached (reconnected)"]
