"""What the history of an alias says: its lines, and which version a rollback goes to.

A line is written before its alias moves, so the last one may tell of a move that a crash prevented, and a person may
have moved an alias by hand. Both show in the next line, which names the version that it found in place. Decides
without I/O; models/registry.py owns the file.
"""

from collections.abc import Iterable, Sequence

from models.card import Rollout
from models.codec import decoder_for
from models.errors import PayloadError

_decode = decoder_for(Rollout)


def decode_history(content: bytes) -> tuple[list[Rollout], int]:
    """Reads the lines of a history.

    A last line without an end that is no record was cut off by a crash, and is left out.

    Returns:
        The records, and how many of the bytes hold them.

    Raises:
        PayloadError: another line is no record; the reason names its number and the field.
    """
    found: list[Rollout] = []
    size = 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            if line.strip():  # an editor may leave an empty one
                found.append(_decode(line))
        except PayloadError as error:
            if not line.endswith(b"\n"):
                break
            raise PayloadError(f"line {number}: {error.reason}") from error
        size += len(line)
    return found, size


def earlier_versions(history: Iterable[Rollout], alias: str, current: str | None) -> Sequence[str]:
    """The versions that an alias had before its present one, oldest first; a rollback goes to the last of them.

    A rollback takes away the version that it left: after two of them the alias is two promotions back, and never to
    and fro between two versions. An alias that was taken away begins anew: what it had before is forgotten.
    """
    stack: list[str] = []
    before: list[str] = []  # as it was before the last line
    for line in (one for one in history if one.alias == alias):
        stack = _settled(stack, before, line.former)
        before = list(stack)
        if line.version is None:
            stack = []
            continue
        if line.action == "rollback":
            del stack[-1:]
        if stack[-1:] != [line.version]:
            stack.append(line.version)
    return _settled(stack, before, current)[:-1]


def _settled(stack: list[str], before: list[str], actual: str | None) -> list[str]:
    """The stack whose top is what was in place: without the last line if that one was never followed by its move."""
    if actual is None:
        return []
    for candidate in (stack, before):
        if candidate[-1:] == [actual]:
            return list(candidate)
    return [*stack, actual]  # moved by hand
