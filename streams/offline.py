"""Refuses outgoing connections of handlers while a replay runs: what happened must not happen to others again.

Python's audit hooks see every connect and every lookup of a name, whatever library makes them, as long as the event
loop is asyncio's own (uvloop connects by itself). A hook stays for the life of the process, so this is for commands.
"""

import sys
from collections.abc import Collection

from models.errors import NetworkRefused

Address = tuple[str, int]


class Offline:
    """A refusal of all connections but some; it begins with ``begin`` and never ends."""

    def __init__(self) -> None:
        self._allowed: frozenset[Address] | None = None
        sys.addaudithook(self._watch)

    def begin(self, allowed: Collection[Address]) -> None:
        """Refuses from now on what goes elsewhere than ``allowed``, the servers that the replay reads from."""
        self._allowed = frozenset(allowed)

    def _watch(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._allowed is None or event not in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            return
        target = arguments[0:2] if event == "socket.getaddrinfo" else arguments[1]
        if isinstance(target, tuple) and len(target) >= 2:
            if (str(target[0]), _number(target[1])) in self._allowed:
                return
            raise NetworkRefused(f"{target[0]}:{target[1]}")
        raise NetworkRefused(str(target))


def _number(port: object) -> int:
    return int(port) if isinstance(port, int | str) and str(port).isdecimal() else -1
