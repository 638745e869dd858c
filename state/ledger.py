"""Which sequences were applied, a bit each: what ``audit`` holds against the stream.

Sequences are cut into segments of 4,096; a segment is a blob of 512 bytes in the store, written in the transaction that
applies. Pure: the statements are in state/writes.py.
"""

from collections.abc import Iterable, Iterator, Mapping

SEGMENT_BITS = 12
SEGMENT_BYTES = (1 << SEGMENT_BITS) // 8


def segment_of(seq: int) -> int:
    """The segment in which a sequence lies."""
    return seq >> SEGMENT_BITS


def mark(bits: bytes | None, seqs: Iterable[int]) -> tuple[bytes, int]:
    """Sets the bits of sequences that all lie in one segment.

    Args:
        bits: the segment so far; None for an empty one.

    Returns:
        The new segment, and how many of the bits were set already.
    """
    segment = bytearray(bits or SEGMENT_BYTES)
    again = 0
    for seq in seqs:
        place, bit = (seq >> 3) % SEGMENT_BYTES, 1 << (seq & 7)
        again += bool(segment[place] & bit)
        segment[place] |= bit
    return bytes(segment), again


def has(bits: bytes, seq: int) -> bool:
    """Whether a sequence of this segment is set."""
    return bool(bits[(seq >> 3) % SEGMENT_BYTES] & (1 << (seq & 7)))


def seqs(segment: int, bits: bytes) -> Iterator[int]:
    """The sequences that are set, in order."""
    start = segment << SEGMENT_BITS
    for place, byte in enumerate(bits):
        for bit in range(8 if byte else 0):
            if byte & (1 << bit):
                yield start + place * 8 + bit


def without_above(segment: int, bits: bytes, last: int) -> bytes:
    """The segment without the sequences above ``last``, which a stream has lost and may use again."""
    kept = bytearray(SEGMENT_BYTES)
    for seq in seqs(segment, bits):
        if seq <= last:
            kept[(seq >> 3) % SEGMENT_BYTES] |= 1 << (seq & 7)
    return bytes(kept)


Numbers = dict[int, int]
"""Segments as numbers: bit ``seq % 4096`` of the number at ``seq // 4096``."""


def numbers(segments: Mapping[int, bytes]) -> Numbers:
    """The segments in a form in which sets are taken from each other quickly."""
    return {segment: int.from_bytes(bits, "little") for segment, bits in segments.items()}


def minus(one: Numbers, other: Numbers) -> Numbers:
    """The sequences of ``one`` that are not in ``other``."""
    found = {segment: number & ~other.get(segment, 0) for segment, number in one.items()}
    return {segment: number for segment, number in found.items() if number}


def below(one: Numbers, seq: int) -> Numbers:
    """The sequences of ``one`` that are lower than ``seq``."""
    last = segment_of(seq)
    found = {segment: number for segment, number in one.items() if segment < last}
    if rest := one.get(last, 0) & ((1 << (seq & ((1 << SEGMENT_BITS) - 1))) - 1):
        found[last] = rest
    return found


def lowest(one: Numbers) -> int | None:
    """The lowest sequence; None when there is none."""
    if not one:
        return None
    segment = min(one)
    return (segment << SEGMENT_BITS) + (one[segment] & -one[segment]).bit_length() - 1


def highest(one: Numbers) -> int:
    """The highest sequence; 0 when there is none."""
    if not one:
        return 0
    segment = max(one)
    return (segment << SEGMENT_BITS) + one[segment].bit_length() - 1


def count(one: Numbers) -> int:
    """How many sequences there are."""
    return sum(number.bit_count() for number in one.values())


def contains(one: Numbers, seq: int) -> bool:
    """Whether a sequence is among them."""
    return bool(one.get(segment_of(seq), 0) >> (seq & ((1 << SEGMENT_BITS) - 1)) & 1)
