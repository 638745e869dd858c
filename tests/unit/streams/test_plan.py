"""From where rows can be made again: the first message, a snapshot, or not at all, and why."""

import datetime as dt
from collections.abc import Collection
from pathlib import Path
from typing import Any

import attrs
import pytest
from consume_kit import SPEC
from hypothesis import given
from hypothesis import strategies as st
from streams_kit import CREATED, make_floor, make_message

from state import ledger
from state.snapshots import Snapshot
from streams.moment import Known
from streams.plan import FAILURES_KEPT, Base, Failed, Plan, make_plan
from streams.subjects import SubjectTable

TABLE = SubjectTable("steps")
SEQS = st.sets(st.integers(1, 30), max_size=12)


def known_of(seqs: Collection[int], **fields: Any) -> Known:
    """What a store knows in which these sequences are applied."""
    segments = {0: ledger.mark(None, seqs)[0]} if seqs else {}
    return attrs.evolve(Known(floor=make_floor(50), floor_seq=50, segments=segments), **fields)


def base_of(seqs: Collection[int], day: int = 1, **fields: Any) -> Base:
    """A snapshot in which these sequences are applied."""
    taken = dt.datetime(2026, 3, day, tzinfo=dt.UTC)
    snapshot = Snapshot(
        path=Path("x"), taken_at=taken, store_id="s", app_version="1", tables={"steps": 1}, reason="daily"
    )
    return Base(snapshot=snapshot, known=known_of(seqs, **fields))


def stream(first_seq: int = 1, created: str = CREATED) -> dict[str, Any]:
    """What the server says of a stream."""
    return {"created": created, "state": {"first_seq": first_seq}}


def plan_of(known: Known, *bases: Base, first_seq: int = 1, upto: int | None = None) -> Plan:
    """Plans on a stream that begins somewhere."""
    return make_plan(TABLE, SPEC, known, stream=stream(first_seq), bases=bases, upto=upto)


def wanted(plan: Plan) -> set[int]:
    """The sequences that have to run."""
    return {seq for seq in range(1, 60) if plan.wants(seq)}


@given(SEQS, SEQS, st.integers(1, 31), st.integers(1, 31))
def test_plan_runs_what_the_ledger_has_and_the_snapshot_has_not(
    applied: set[int], had: set[int], upto: int, first_seq: int
) -> None:
    """A snapshot serves only if it has nothing else and the rest is in the stream; base and rest make the whole."""
    plan = plan_of(known_of(applied), base_of(had), first_seq=first_seq, upto=upto)
    whole = {seq for seq in applied if seq < upto}
    serves = had <= whole and all(seq >= first_seq for seq in whole - had)
    assert (plan.base is not None) == serves
    assert wanted(plan) == (whole - had if serves else whole)
    assert (plan.trouble is None) == (serves or all(seq >= first_seq for seq in whole))


def test_plan_takes_everything_that_was_applied() -> None:
    """Without an end, all that was applied runs, and the end lies behind the last one."""
    plan = plan_of(known_of({1, 2, 9}))
    assert (wanted(plan), plan.upto, plan.base, plan.trouble) == ({1, 2, 9}, 10, None, None)
    assert plan.proved == "SIGNALS 1 to 9"


def test_plan_takes_the_newest_snapshot_that_serves() -> None:
    """Of the snapshots, the newest first, one that knows what comes later is passed over."""
    later, good, older = base_of({1, 2, 3, 4}, 3), base_of({1, 2}, 2), base_of({1}, 1)
    plan = plan_of(known_of({1, 2, 3, 4}), later, good, older, upto=4)
    assert (plan.base, wanted(plan)) == (good, {3})
    assert plan.proved == "SIGNALS 3 to 3, on the snapshot of 2026-03-02T00:00:00+00:00; what led to that is not proved"


def test_plan_proves_nothing_after_a_snapshot_that_has_it_all() -> None:
    """When nothing came since the snapshot, that is said."""
    plan = plan_of(known_of({1, 2}), base_of({1, 2}), first_seq=40)
    assert (wanted(plan), plan.trouble) == (set(), None)
    assert plan.proved.startswith("no message since, on the snapshot of 2026-03-01")


def test_plan_of_nothing_proves_nothing() -> None:
    """Neither a store without a floor nor one that applied nothing has anything to run."""
    for plan in (plan_of(Known(), base_of({1})), plan_of(known_of(()))):
        assert (wanted(plan), plan.trouble, plan.proved) == (set(), None, "nothing was applied")


@pytest.mark.parametrize("found", [None, stream(created="2026-02-02T00:00:00Z")], ids=["gone", "made anew"])
def test_plan_refuses_another_stream(found: dict[str, Any] | None) -> None:
    """Sequences of a stream that is gone, or was made anew, say nothing; that is its trouble."""
    plan = make_plan(TABLE, SPEC, known_of({1}), stream=found, bases=[base_of(())])
    assert plan.trouble == "stream SIGNALS is not the one that the store has read: it is gone, or was made anew"
    assert (wanted(plan), plan.base) == (set(), None)


@pytest.mark.parametrize("floor", [None, make_floor(1, created="2025-01-01T00:00:00Z")], ids=["none", "other stream"])
def test_plan_passes_a_snapshot_of_another_stream_over(floor: Any) -> None:
    """A snapshot that has not read this stream is not begun with."""
    assert plan_of(known_of({1}), base_of((), floor=floor)).base is None


def test_plan_says_what_the_stream_no_longer_has() -> None:
    """Messages that retention took, with no snapshot of what they led to, are counted with the first of them."""
    plan = plan_of(known_of({1, 2, 3, 9}), first_seq=3)
    assert plan.trouble == (
        "2 messages that were applied, from sequence 1 on, are no longer in stream SIGNALS,"
        " and no snapshot has what they led to"
    )
    assert wanted(plan) == {1, 2, 3, 9}


def test_plan_keeps_redriven_messages_for_their_turn() -> None:
    """A dead letter that was applied later runs when it was applied, in the order of that."""
    plan = plan_of(known_of({1, 2, 3}, redriven={1: 20.0, 2: 10.0}))
    assert [plan.take(make_message(seq)) for seq in (1, 2, 3)] == [False, False, True]
    assert [message.seq for message in plan.late(10.0)] == []
    assert [message.seq for message in plan.late(10.1)] == [2]
    assert [message.seq for message in plan.late(float("inf"))] == [1]
    assert plan.missing_count == 0


def test_plan_counts_what_it_did_not_meet() -> None:
    """Once the stream is read, wanted messages that it does not have are missing; before that nobody knows."""
    plan = plan_of(known_of({1, 2, 3}))
    plan.take(make_message(2))
    assert (plan.missing_count, plan.ran) == (0, 1)
    plan.is_read = True
    assert plan.missing_count == 2


def test_plan_keeps_the_first_failures() -> None:
    """All failures are counted, and a bounded number is kept."""
    plan = plan_of(known_of({1}))
    for seq in range(FAILURES_KEPT + 5):
        plan.fail(seq, "steps.step", "broken")
    assert (plan.failed_count, len(plan.failed)) == (FAILURES_KEPT + 5, FAILURES_KEPT)
    assert plan.failed[0] == Failed(seq=0, handler="steps.step", error="broken")


def test_plan_knows_the_durable_as_the_store_does() -> None:
    """It is the former name as long as the store has no other, and the declared one without a store."""
    assert plan_of(known_of({1}, floor=make_floor(1, durable="former"))).durable == "former"
    assert plan_of(Known()).durable == SPEC.durable
