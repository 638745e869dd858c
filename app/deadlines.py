"""How long a caller waits, as a header of its request says."""

import re

from models.errors import RequestError

DEADLINE_HEADER = "X-Deadline-Ms"
MAX_DEADLINE_MS = 60_000


def read_deadline_s(header: str | None, *, default_ms: int) -> float:
    """Reads the deadline that a caller sets, in seconds from now.

    Raises:
        RequestError: 400; it is no whole number of milliseconds from 1 to ``MAX_DEADLINE_MS``.
    """
    if header is None:
        return default_ms / 1000
    if not re.fullmatch("[0-9]{1,5}", header) or not 1 <= int(header) <= MAX_DEADLINE_MS:
        raise RequestError(400, f"{DEADLINE_HEADER}: expected milliseconds from 1 to {MAX_DEADLINE_MS}, got {header!r}")
    return int(header) / 1000
