"""The audit's decisions: one class for every sequence, a missing outcome is named, a contradiction is found."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import ledger
from streams.audit import Known, Ranges, Report, Rest, classify, contradictions, without_outcome

SUBJECT = "signals.a"
CLASSES = {
    "applied": "applied",
    "redriven": "applied",
    "dead": "dead",
    "dropped": "dead",
    "parked": "pending",
    "on the server": "pending",
    "skipped": "skipped",
    "missing": "gap",
}
OUTCOMES = tuple(CLASSES)
DEAD_STATES = {"redriven": "applied", "dead": "dead", "dropped": "dropped"}


def segments_of(seqs: set[int]) -> dict[int, bytes]:
    """The ledger in which these sequences are set."""
    segments: dict[int, bytes] = {}
    for seq in seqs:
        segment = ledger.segment_of(seq)
        segments[segment] = ledger.mark(segments.get(segment), [seq])[0]
    return segments


def known_of(outcomes: list[str], floor: int, since: int, first: int = 1) -> Known:
    """What a store says that gave sequence ``first`` and those after it these outcomes."""
    numbered = list(enumerate(outcomes, first))
    return Known(
        floor_seq=floor,
        since={SUBJECT: since},
        segments=segments_of({seq for seq, outcome in numbered if outcome == "applied"}),
        dead={seq: ("a.step", DEAD_STATES[outcome]) for seq, outcome in numbered if outcome in DEAD_STATES},
        waiting=frozenset(seq for seq, outcome in numbered if outcome == "parked"),
    )


def order(outcomes: list[str]) -> list[str]:
    """Skipped ones come first, those that are on the server last, as in a real stream."""
    rank = {"skipped": 0, "on the server": 2}
    return sorted(outcomes, key=lambda outcome: rank.get(outcome, 1))


def report_of(outcomes: list[str], known: Known, first: int = 1) -> Report:
    """The report on messages that are all in the stream."""
    last = first + len(outcomes) - 1
    report = Report(durable="d", stream="S", first_seq=first, last_seq=last)
    for seq in range(first, last + 1):
        report.note(seq, classify(seq, SUBJECT, known))
    return report


def seqs_of(ranges: Ranges) -> list[int]:
    """Every sequence of the ranges that are shown."""
    return [seq for first, last in ranges.shown for seq in range(first, last + 1)]


@given(st.lists(st.sampled_from(OUTCOMES), max_size=60).map(order), st.integers(1, 5000))
def test_every_sequence_is_in_its_class_and_each_missing_one_is_a_gap(outcomes: list[str], first: int) -> None:
    """Whatever became of the messages, the counts add up, and exactly the missing ones are named."""
    skipped, pending = outcomes.count("skipped"), outcomes.count("on the server")
    known = known_of(outcomes, first + len(outcomes) - 1 - pending, first + skipped, first)
    report = report_of(outcomes, known, first)
    classes = [CLASSES[outcome] for outcome in outcomes]
    assert report.counts == {name: classes.count(name) for name in ("applied", "dead", "pending", "skipped")}
    assert report.matched == len(outcomes)
    assert seqs_of(report.gaps) == [seq for seq, name in enumerate(classes, first) if name == "gap"]
    assert report.is_good == ("gap" not in classes)
    assert contradictions(first, first + len(outcomes), known) == []


@given(st.data())
def test_removed_outcome_is_a_gap_of_exactly_its_sequence(data: st.DataObject) -> None:
    """Take one outcome from a store in which nothing is missing: that sequence alone is named."""
    kinds = st.sampled_from(("applied", "redriven", "dead", "dropped", "parked"))
    outcomes = data.draw(st.lists(kinds, min_size=1, max_size=60))
    known = known_of(outcomes, len(outcomes), 1)
    assert report_of(outcomes, known).is_good
    gone = data.draw(st.integers(1, len(outcomes)))
    without = [outcome if seq != gone else "missing" for seq, outcome in enumerate(outcomes, 1)]
    assert report_of(outcomes, known_of(without, len(outcomes), 1)).gaps == Ranges([(gone, gone)], 1)


@given(st.sets(st.integers(1, 9000), max_size=50), st.sets(st.integers(1, 9000), max_size=20), st.integers(1, 9000))
def test_parts_of_a_range_without_outcome_are_all_that_the_store_does_not_have(
    applied: set[int], parked: set[int], first: int
) -> None:
    """Applied and parked sequences are cut out of a range; the rest remains, in order."""
    known = Known(segments=segments_of(applied), waiting=frozenset(parked))
    found = [seq for begin, end in without_outcome(first, 9000, known) for seq in range(begin, end + 1)]
    assert found == [seq for seq in range(first, 9001) if seq not in applied | parked]


@given(st.sets(st.integers(1, 9000), max_size=50), st.sets(st.integers(1, 9000), max_size=50))
def test_outcomes_without_a_message_are_left_over(applied: set[int], met: set[int]) -> None:
    """Every outcome whose message was met is taken out; the others stay, and are counted."""
    rest = Rest(Known(segments=segments_of(applied), dead={9001: ("a.step", "dead")}), 1, 9001)
    assert [seq for seq in sorted(met) if rest.meet(seq)] == sorted(applied & met)
    assert list(rest.seqs()) == [*sorted(applied - met), 9001]
    assert rest.count() == {"applied": len(applied - met), "dead": 1}
    assert (rest.meet(9001), rest.meet(9001)) == (True, False)


def test_gap_ranges_are_bounded_and_all_are_counted() -> None:
    """A thousand single gaps are counted, and a hundred of them named."""
    ranges = Ranges.of(range(1, 2001, 2))
    assert (ranges.count, len(ranges.shown), str(ranges).endswith("197, 199 and 900 more")) == (1000, 100, True)
    assert str(Ranges.of([1, 2, 3, 7])) == "1 to 3, 7"


@pytest.mark.parametrize(
    ("changed", "seq", "subject", "found"),
    [
        pytest.param({"floor_seq": None, "since": {}}, 5, SUBJECT, "pending", id="never read"),
        pytest.param({"floor_seq": 0}, 5, "signals.b", "pending", id="new subject, above the floor"),
        pytest.param({"floor_seq": 9}, 5, "signals.b", "skipped", id="new subject, below the floor"),
        pytest.param({"floor_seq": 9, "since": {}}, 5, SUBJECT, "gap", id="floor, and no subject noted"),
        pytest.param({"floor_seq": 9, "since": {"signals.>": 2}}, 5, SUBJECT, "gap", id="read by a pattern"),
        pytest.param({"floor_seq": 9, "since": {"signals.*": 6}}, 5, SUBJECT, "skipped", id="before a pattern"),
    ],
)
def test_message_without_outcome_is_judged_by_floor_and_subject(
    changed: dict[str, object], seq: int, subject: str, found: str
) -> None:
    """Pending above the floor or without one, skipped before its subject's first sequence, otherwise a gap."""
    known = attrs.evolve(Known(floor_seq=0, since={SUBJECT: 1}), **changed)  # type: ignore[arg-type]
    assert classify(seq, subject, known) == found


def test_two_outcomes_of_one_message_are_a_contradiction() -> None:
    """Applied and dead, applied and parked, dead and parked, applied twice: each is said with its sequences."""
    dead = {seq: ("a.step", "dead") for seq in (1, 3)} | {4: ("a.step", "applied")}
    known = Known(segments=segments_of({1, 2, 4}), dead=dead, waiting=frozenset({2, 3}), again_count=7)
    assert contradictions(1, 10, known) == [
        "7 messages were applied twice",
        "both applied and given up: 1",
        "both applied and yet to run: 2",
        "both given up and yet to run: 3",
    ]
    assert contradictions(3, 10, attrs.evolve(known, again_count=0)) == ["both given up and yet to run: 3"]


@given(st.sets(st.integers(1, 20_000), max_size=40), st.integers(0, 20_000))
def test_ledger_holds_what_was_marked_and_forgets_above_a_cut(marked: set[int], cut: int) -> None:
    """Bits are sequences, in order; a second mark is counted; above a cut nothing stays."""
    for segment in {ledger.segment_of(seq) for seq in marked}:
        mine = sorted(seq for seq in marked if ledger.segment_of(seq) == segment)
        bits, again = ledger.mark(None, mine)
        assert (list(ledger.seqs(segment, bits)), again) == (mine, 0)
        assert ledger.mark(bits, mine) == (bits, len(mine))
        assert all(ledger.has(bits, seq) for seq in mine)
        kept = ledger.without_above(segment, bits, cut)
        assert list(ledger.seqs(segment, kept)) == [seq for seq in mine if seq <= cut]
