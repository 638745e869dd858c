"""Ids of requests, errors and events that this process mints; models/codec.py has the form that is accepted of others.

A minted id is a UUIDv7: it sorts by the millisecond it was made in, and 74 random bits keep replicas apart.
"""

import os
import time


def uuid7(now_ms: int, random_bytes: bytes) -> str:
    """Lays out a UUIDv7 in its usual text form (RFC 9562, section 5.7).

    Args:
        now_ms: milliseconds since 1970, 48 bits of it are kept.
        random_bytes: ten bytes, of which 74 bits are kept.
    """
    if len(random_bytes) != 10:
        raise ValueError(f"random_bytes: expected 10 bytes, got {len(random_bytes)}")
    raw = bytearray(now_ms.to_bytes(8, "big")[2:] + random_bytes)
    raw[6] = 0x70 | raw[6] & 0x0F  # the version, 7
    raw[8] = 0x80 | raw[8] & 0x3F  # the variant, binary 10
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def new_id() -> str:
    """Mints an id from the clock and the system's random source."""
    return uuid7(time.time_ns() // 1_000_000, os.urandom(10))
