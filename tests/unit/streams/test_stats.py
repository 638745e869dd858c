"""Counts of one subject table."""

import time

from streams_kit import make_handler, make_item, ts_of

from streams.health import HandlerCounts
from streams.stats import TableStats

NAMES = ("signals.task_synced", "signals.other")


def test_stats_start_at_nothing() -> None:
    """Every declared handler is there from the start, and no message was seen."""
    stats = TableStats(NAMES)
    assert stats.by_handler() == {name: HandlerCounts() for name in NAMES}
    assert (stats.last_ts, stats.last_outcome_at) == (None, 0)


def test_stats_count_by_handler_and_verdict() -> None:
    """Applied, dead and failed are counted apart; a parked message has no outcome yet."""
    stats = TableStats(NAMES)
    other = make_item(1, handler=make_handler("signals.other"))
    stats.committed(make_item(1), "applied")
    stats.committed(make_item(2), "applied")
    stats.committed(make_item(3), "parked")
    stats.committed(other, "dead")
    stats.failed("signals.other")
    assert stats.by_handler() == {
        "signals.task_synced": HandlerCounts(processed=2),
        "signals.other": HandlerCounts(errors=1, dead_lettered=1),
    }


def test_stats_keep_the_newest_message() -> None:
    """The last message is the newest of the stream, in whatever order outcomes come, parked ones included."""
    stats = TableStats(NAMES)
    for seq, kind in ((5, "parked"), (3, "applied")):
        stats.committed(make_item(seq), kind)  # type: ignore[arg-type]
    assert stats.last_ts == ts_of(5)


def test_stats_take_note_of_a_commit() -> None:
    """The last outcome is on the monotonic clock."""
    stats, before = TableStats(NAMES), time.monotonic()
    stats.touched()
    assert before <= stats.last_outcome_at <= time.monotonic()
