"""Refuses outgoing connections of handlers while a replay runs: what happened must not happen to others again.

Python's audit hooks see every connect and every lookup of a name, whatever library makes them, as long as the event
loop is asyncio's own (uvloop connects by itself). A hook stays for the life of the process, asleep, so this is for
commands.
"""

import sys
from collections.abc import Collection
from types import TracebackType

from models.errors import NetworkRefused

Address = tuple[str, int]


class Offline:
    """A refusal of all connections of this process but some; a context manager.

    Args:
        allowed: the servers that the replay itself reads from.
    """

    def __init__(self, allowed: Collection[Address]) -> None:
        self._allowed = frozenset(allowed)
        self._is_on = False

    def __enter__(self) -> None:
        sys.addaudithook(self._watch)
        self._is_on = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_on = False

    def _watch(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._is_on or event not in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            return
        target = arguments[0:2] if event == "socket.getaddrinfo" else arguments[1]
        if isinstance(target, tuple) and len(target) >= 2:
            if (str(target[0]), _number(target[1])) in self._allowed:
                return
            raise NetworkRefused(f"{target[0]}:{target[1]}")
        raise NetworkRefused(str(target))


def _number(port: object) -> int:
    return int(port) if isinstance(port, int | str) and str(port).isdecimal() else -1
