"""The audit's decision: one class for every sequence, and a missing outcome is named."""

from hypothesis import given
from hypothesis import strategies as st

from state import ledger
from streams.audit import Known, Report, classify

SUBJECT = "signals.a"
OUTCOMES = ("applied", "dead", "parked", "skipped", "on the server", "missing")


def known_of(outcomes: list[str], floor: int, since: int) -> Known:
    """What a store says that gave sequence 1, 2, … these outcomes."""
    seqs = {name: [seq for seq, outcome in enumerate(outcomes, 1) if outcome == name] for name in OUTCOMES}
    segments: dict[int, bytes] = {}
    for seq in seqs["applied"]:
        segment = ledger.segment_of(seq)
        segments[segment] = ledger.mark(segments.get(segment), [seq])[0]
    return Known(
        floor_seq=floor,
        since={SUBJECT: since},
        segments=segments,
        dead={seq: ("signals.step", "dead") for seq in seqs["dead"]},
        waiting=frozenset(seqs["parked"]),
    )


def order(outcomes: list[str]) -> list[str]:
    """Skipped ones come first, those that are on the server last, as in a real stream."""
    rank = {"skipped": 0, "on the server": 2}
    return sorted(outcomes, key=lambda outcome: rank.get(outcome, 1))


@given(st.lists(st.sampled_from(OUTCOMES), max_size=60).map(order))
def test_every_sequence_is_in_its_class_and_each_missing_one_is_a_gap(outcomes: list[str]) -> None:
    """Whatever became of the messages, the counts add up, and exactly the missing ones are named."""
    skipped, pending = outcomes.count("skipped"), outcomes.count("on the server")
    known = known_of(outcomes, floor=len(outcomes) - pending, since=skipped + 1)
    report = Report(durable="d", stream="S", first_seq=1, last_seq=len(outcomes))
    for seq in range(1, len(outcomes) + 1):
        report.note(seq, classify(seq, SUBJECT, known))
    missing = [seq for seq, outcome in enumerate(outcomes, 1) if outcome == "missing"]
    assert report.counts == {
        "applied": outcomes.count("applied"),
        "dead": outcomes.count("dead"),
        "pending": outcomes.count("parked") + pending,
        "skipped": skipped,
    }
    assert report.matched == len(outcomes)
    assert [seq for first, last in report.gaps for seq in range(first, last + 1)] == missing
    assert report.is_good == (not missing)


def test_gap_ranges_are_bounded_and_all_are_counted() -> None:
    """A thousand single gaps are counted, and a hundred of them named."""
    report = Report(durable="d", stream="S", first_seq=1, last_seq=2000)
    for seq in range(1, 2001, 2):
        report.note(seq, "gap")
    assert (report.gap_count, len(report.gaps), report.is_good) == (1000, 100, False)


def test_subject_that_was_never_read_is_pending() -> None:
    """A subject that no attach has noted yet is not skipped."""
    assert classify(5, "signals.b", Known(floor_seq=0, since={SUBJECT: 9})) == "pending"


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
