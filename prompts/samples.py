"""Contexts that every variant must be able to print: the fullest one, the emptiest one, and each variable alone.

A variant that takes something for granted (a topic, a second signal, a number that is not 0) fails with one of them
when its file is read (prompts/registry.py), and not with the first user of whom less is known. They come from the
declarations of the context, so a new number is in them without a change here. Pure.
"""

from collections.abc import Iterable
from types import MappingProxyType

import attrs

from models.context import SIGNAL_CHARS, SIGNALS_MAX, TIP_KIND_CHARS, Fact, PromptContext
from models.profile_schema import PROFILE
from prompts.registry import Samples

_TEXT = 'Moved "write the report" to tomorrow; '


def _text(chars: int) -> str:
    return (_TEXT * (chars // len(_TEXT) + 1))[:chars]


def _facts(values: Iterable[float]) -> tuple[Fact, ...]:
    return tuple(
        Fact(name=one.name, value=value, unit=one.unit, meaning=one.meaning)
        for one, value in zip(PROFILE, values, strict=True)
    )


_EMPTY = PromptContext()
_FULL = PromptContext(
    tip_kind=_text(TIP_KIND_CHARS),
    signals=(_text(SIGNAL_CHARS),) * SIGNALS_MAX,
    profile=_facts(one.high or 1 for one in PROFILE),
)
_LEAST = _facts(one.low or 0 for one in PROFILE)

SAMPLES: Samples = MappingProxyType(
    {
        "full": _FULL.variables(),
        "empty": _EMPTY.variables(),
        "only tip_kind": attrs.evolve(_EMPTY, tip_kind="focus").variables(),
        "only signals": attrs.evolve(_EMPTY, signals=("completed a task",)).variables(),
        "only profile, at its least": attrs.evolve(_EMPTY, profile=_LEAST).variables(),
    }
)
"""The fullest comes first: what is too long or too slow is so with it."""
