"""The ledger's bitmaps, held against plain sets of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from state import ledger

NEAR = [seq for edge in (0, 4096, 8192) for seq in range(max(0, edge - 70), edge + 70)]
"""Sequences around the edges of segments, of bytes and of machine words."""

SEQS = st.sets(st.sampled_from(NEAR), max_size=40)


def segments_of(seqs: set[int]) -> dict[int, bytes]:
    """The segments in which these sequences are set."""
    segments: dict[int, bytes] = {}
    for seq in seqs:
        segment = ledger.segment_of(seq)
        segments[segment] = ledger.mark(segments.get(segment), [seq])[0]
    return segments


def numbers_of(seqs: set[int]) -> ledger.Numbers:
    """The same as numbers."""
    return ledger.numbers(segments_of(seqs))


def set_of(numbers: ledger.Numbers) -> set[int]:
    """The sequences of numbers, found one by one."""
    return {seq for seq in NEAR if ledger.contains(numbers, seq)}


@given(SEQS)
def test_segments_keep_what_was_marked(seqs: set[int]) -> None:
    """Each sequence that was marked is read back, in order, and no other one is."""
    segments = segments_of(seqs)
    found = [seq for segment in sorted(segments) for seq in ledger.seqs(segment, segments[segment])]
    assert found == sorted(seqs)
    assert all(len(bits) == ledger.SEGMENT_BYTES for bits in segments.values())


@given(SEQS.filter(bool))
def test_mark_counts_what_was_marked_before(seqs: set[int]) -> None:
    """A sequence that is marked again changes nothing and is counted."""
    first = ledger.segment_of(min(seqs))
    inside = [seq for seq in seqs if ledger.segment_of(seq) == first]
    bits, again = ledger.mark(None, inside)
    assert again == 0
    assert ledger.mark(bits, [*inside, inside[0]]) == (bits, len(inside) + 1)
    assert all(ledger.has(bits, seq) for seq in inside)


@given(st.sets(st.integers(4096, 8191)), st.integers(0, 9000))
def test_without_above_drops_the_lost_end(seqs: set[int], last: int) -> None:
    """Sequences above the last one are gone from the segment, the others stay."""
    bits, _ = ledger.mark(None, seqs)
    kept = ledger.without_above(1, bits, last)
    assert set(ledger.seqs(1, kept)) == {seq for seq in seqs if seq <= last}
    assert len(kept) == ledger.SEGMENT_BYTES


@given(SEQS)
def test_numbers_hold_the_same_sequences(seqs: set[int]) -> None:
    """Numbers contain what the segments contain; so count, lowest and highest are those of the set."""
    numbers = numbers_of(seqs)
    assert set_of(numbers) == seqs
    assert ledger.count(numbers) == len(seqs)
    assert ledger.lowest(numbers) == min(seqs, default=None)
    assert ledger.highest(numbers) == max(seqs, default=0)


@given(SEQS, SEQS)
def test_minus_is_the_difference_of_sets(one: set[int], other: set[int]) -> None:
    """What is left are the sequences of the first alone, and a segment that became empty is not kept."""
    left = ledger.minus(numbers_of(one), numbers_of(other))
    assert set_of(left) == one - other
    assert all(left.values())


@given(SEQS, st.sampled_from(NEAR))
def test_below_leaves_lower_sequences(seqs: set[int], seq: int) -> None:
    """The sequence itself is left out, also where a segment begins, and no empty segment is kept."""
    left = ledger.below(numbers_of(seqs), seq)
    assert set_of(left) == {one for one in seqs if one < seq}
    assert all(left.values())
