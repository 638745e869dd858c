"""Which variant answers a request: the one it names, else the operator's default, else ``v1``.

A default of several versions is a rotation: a hash of the user and of the list decides, so a user keeps a variant as
long as the list is the same, and new users move nobody. A change of the list deals everybody anew, independently of
the list before. A default that there is not and never was is a slip, and stops the start. One that has vanished, as its
file was removed or can't be used, is replaced by ``v1`` for the users who had it, and by no other: those of the other
versions keep theirs; ``default_problems`` says so to /health. A restart changes nothing of that.

Decides without I/O. Who knows the versions is prompts/catalog.py.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Literal

import attrs

from models.errors import PromptUnknown, SettingsError

FALLBACK = "v1"
Source = Literal["request", "default", "fallback"]


@attrs.frozen(kw_only=True)
class Selected:
    """The version that answers.

    Args:
        source: who asked for it; ``fallback`` stands for a default that has vanished.
        propensity: with which probability a user whose request names none gets this version; 1 for one that is named.
    """

    version: str
    source: Source
    propensity: float = 1.0


def select_version(asked: str | None, *, user_id: str, defaults: Sequence[str], known: Collection[str]) -> Selected:
    """Selects the version for one request.

    Args:
        asked: the request's ``prompt_version``.
        defaults: DEFAULT_PROMPT_VERSION; nothing stands for ``v1``.
        known: the versions that are served now.

    Raises:
        PromptUnknown: the version that was asked for is not served, or there is neither a default nor ``v1``.
    """
    if asked is not None:
        if asked not in known:
            raise PromptUnknown(asked, known)
        return Selected(version=asked, source="request")
    dealt = defaults or (FALLBACK,)
    chosen = assign(user_id, dealt)
    version = chosen if chosen in known else FALLBACK
    if version not in known:
        raise PromptUnknown(chosen, known)
    source: Source = "default" if version == chosen else "fallback"
    served = [one if one in known else FALLBACK for one in dealt]
    return Selected(version=version, source=source, propensity=served.count(version) / len(served))


def assign(user_id: str, versions: Sequence[str]) -> str:
    """Deals one of the versions to a user, always the same one, each to an equal share of the users."""
    if len(versions) == 1:
        return versions[0]
    named = json.dumps([user_id, *versions]).encode()
    return versions[int.from_bytes(hashlib.sha256(named).digest()[:8]) % len(versions)]


def check_defaults(
    defaults: Sequence[str], known: Collection[str], *, before: Collection[str] = (), problems: Sequence[str] = ()
) -> None:
    """Refuses defaults that no variant has, and never had, before anything is served.

    Args:
        before: the versions that have been defaults; one of them may be missing, as it may vanish while a worker runs.
        problems: why files are not served, one of which may be the default's.

    Raises:
        SettingsError: names the version, and those that there are.
    """
    missing = [version for version in defaults if version not in known and version not in before]
    if missing:
        why = "".join(f"; {problem}" for problem in problems)
        expected = f"there is no prompt variant {missing[0]!r}, only {', '.join(known) or 'none'}{why}"
        raise SettingsError("DEFAULT_PROMPT_VERSION", ",".join(defaults), expected)


def default_problems(defaults: Sequence[str], known: Collection[str]) -> list[str]:
    """What is not as the operator wants it: a sentence for each default that has vanished."""
    return [
        f"DEFAULT_PROMPT_VERSION: there is no variant {version!r} any more, {FALLBACK} serves instead"
        for version in defaults
        if version not in known
    ]
