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
        sys.addaudithook(self.watch)
        self._is_on = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_on = False

    def watch(self, event: str, arguments: tuple[object, ...]) -> None:
        """What Python calls before each audited event.

        Raises:
            NetworkRefused: it would reach somebody else.
        """
        if self._is_on and (target := refused(event, arguments, self._allowed)) is not None:
            raise NetworkRefused(target)


def refused(event: str, arguments: tuple[object, ...], allowed: Collection[Address]) -> str | None:
    """Whom an audited event wants to reach without being allowed to; None when there is nothing to refuse."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        target = arguments[1]
    elif event == "socket.getaddrinfo":
        target = arguments[0:2]
    elif event in ("socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"):
        target = arguments[0]
    else:
        return None
    if target is None:  # over a socket that is connected, which was watched already
        return None
    if isinstance(target, tuple) and len(target) >= 2:
        is_allowed = (str(target[0]), _number(target[1])) in allowed
        return None if is_allowed else f"{target[0]}:{target[1]}"
    return str(target)


def _number(port: object) -> int:
    return int(port) if isinstance(port, int | str) and str(port).isdecimal() else -1
