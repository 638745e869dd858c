"""Which decisions are logged when not all can be: by a hash of the request's id, at a rate that falls under pressure.

Pure. The same id under the same rate has the same answer, so a retried request is logged as the first one was, and what
a low rate takes a higher one takes too.
"""

import zlib

STEPS = ((0.5, 1.0), (0.7, 0.5), (0.85, 0.25), (0.95, 0.1))
"""Up to which fill of the buffer or the spool, whichever is fuller, which rate holds."""
LEAST_RATE = 0.02


def admission_rate(fill: float) -> float:
    """The share of decisions that is logged while the fuller one of buffer and spool is filled to ``fill`` (0 to 1)."""
    return next((rate for below, rate in STEPS if fill < below), LEAST_RATE)


def is_admitted(request_id: str, rate: float) -> bool:
    """Whether the decision on this request is logged at this rate."""
    return zlib.crc32(request_id.encode()) < rate * 2**32
