"""The profile features: what the recommender computes of a user and ships on every request.

This module owns their names, dtypes, units, meanings and ranges, each declared once, as a field of ``ProfileFeatures``;
``PROFILE`` says the same to whoever lists them. It computes no feature, and reads no request: models/profile_reader.py
does. models/profile_export.py writes the contract for the recommender, models/profile_registry.py compares it with
theirs.

A null or absent feature is missing, and so is each of a user whose ``profile_features`` is null. A value outside of its
range is no error: it is used as it was sent, and counted, for a caller's new unit must be seen and must not cost tips.
"""

import typing
from typing import Annotated, Any, Literal

import attrs
import msgspec

Dtype = Literal["float", "int", "bool"]

MAX_FLOAT = 3.4028234663852886e38  # the largest float32, since models read that
MAX_INT = 2**53 - 1  # the largest whole number that JavaScript writes exactly
_TEN_YEARS_H = 87_600
_TWENTY_YEARS_DAYS = 7_305

_DTYPES: dict[type, Dtype] = {float: "float", int: "int", bool: "bool"}


@attrs.frozen(kw_only=True)
class ProfileFeature:
    """One feature of the contract.

    Args:
        name: its key in ``profile_features``.
        dtype: a ``float`` may be sent as a whole number; an ``int`` has no decimals.
        unit: ``ratio``, ``count``, ``h`` …; ``flag`` for a bool.
        meaning: half a sentence that a person understands, and when it is null.
        low: the least value that makes sense; None where there is no such limit.
        high: the greatest one.
    """

    name: str
    dtype: Dtype
    unit: str
    meaning: str
    low: float | None = None
    high: float | None = None


# What a value must keep to be of its dtype at all.
_Float = Annotated[float, msgspec.Meta(ge=-MAX_FLOAT, le=MAX_FLOAT)]
_Int = Annotated[int, msgspec.Meta(ge=-MAX_INT, le=MAX_INT)]


def _number(unit: str, meaning: str, low: float, high: float) -> msgspec.Meta:
    """A number of that unit; ``low`` and ``high`` are what makes sense, and no rule of the decoder."""
    facts = {"unit": unit, "meaning": meaning, "low": low, "high": high}
    return msgspec.Meta(description=f"{meaning} ({unit}, {low:g} to {high:g})", extra=facts)


def _flag(meaning: str) -> msgspec.Meta:
    return msgspec.Meta(description=meaning, extra={"unit": "flag", "meaning": meaning})


class ProfileFeatures(msgspec.Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """What a request says of its user; None is missing, and unknown names are ignored."""

    completion_rate_7d: Annotated[
        _Float | None, _number("ratio", "share of the tips shown in 7 days that were completed; null without any", 0, 1)
    ] = None
    completion_rate_30d: Annotated[
        _Float | None,
        _number("ratio", "share of the tips shown in 30 days that were completed; null without any", 0, 1),
    ] = None
    acceptance_rate_30d: Annotated[
        _Float | None, _number("ratio", "share of the tips shown in 30 days that were accepted; null without any", 0, 1)
    ] = None
    dismissal_rate_30d: Annotated[
        _Float | None,
        _number("ratio", "share of the tips shown in 30 days that were dismissed; null without any", 0, 1),
    ] = None
    snooze_rate_30d: Annotated[
        _Float | None, _number("ratio", "share of the tips shown in 30 days that were snoozed; null without any", 0, 1)
    ] = None
    tips_shown_7d: Annotated[_Int | None, _number("count", "tips shown in 7 days", 0, 1_000)] = None
    tips_shown_30d: Annotated[_Int | None, _number("count", "tips shown in 30 days", 0, 5_000)] = None
    preferred_hour: Annotated[
        _Int | None,
        _number("hour", "local hour of the day in which most tips are completed; null before the first", 0, 23),
    ] = None
    current_streak_days: Annotated[
        _Int | None, _number("days", "days in a row up to today with a completed tip", 0, _TWENTY_YEARS_DAYS)
    ] = None
    longest_streak_days: Annotated[
        _Int | None, _number("days", "the most days in a row that ever had a completed tip", 0, _TWENTY_YEARS_DAYS)
    ] = None
    hours_since_last_tip: Annotated[
        _Float | None, _number("h", "time since a tip was last shown; null before the first", 0, _TEN_YEARS_H)
    ] = None
    hours_since_last_completion: Annotated[
        _Float | None, _number("h", "time since a tip was last completed; null before the first", 0, _TEN_YEARS_H)
    ] = None
    days_since_signup: Annotated[_Float | None, _number("days", "age of the account", 0, _TWENTY_YEARS_DAYS)] = None
    open_task_count: Annotated[_Int | None, _number("count", "tasks that are open now", 0, 100_000)] = None
    overdue_task_count: Annotated[_Int | None, _number("count", "open tasks past their due date", 0, 100_000)] = None
    tasks_completed_7d: Annotated[_Int | None, _number("count", "tasks completed in 7 days", 0, 10_000)] = None
    active_days_30d: Annotated[
        _Int | None, _number("days", "days of the last 30 on which the user opened the product", 0, 30)
    ] = None
    median_response_minutes_30d: Annotated[
        _Float | None,
        _number("min", "median time from a tip to the user's reaction in 30 days; null without any", 0, 30 * 24 * 60),
    ] = None
    is_weekend_active: Annotated[
        bool | None, _flag("whether the user was active on a weekend in 30 days; null before the first one")
    ] = None

    def __eq__(self, other: object) -> bool:
        """Whether both say the same; the reader's own subclass is no other record."""
        if not isinstance(other, ProfileFeatures):
            return NotImplemented
        return msgspec.structs.astuple(self) == msgspec.structs.astuple(other)

    def __ne__(self, other: object) -> bool:
        return not self == other  # msgspec's own would compare the two objects, not what they say

    def __hash__(self) -> int:
        return hash(msgspec.structs.astuple(self))


def _features_of(cls: type[msgspec.Struct]) -> tuple[ProfileFeature, ...]:
    types = typing.get_type_hints(cls)
    annotated: dict[str, Any] = typing.get_type_hints(cls, include_extras=True)
    return tuple(
        ProfileFeature(
            name=name,
            dtype=_DTYPES[typing.get_args(types[name])[0]],
            **typing.get_args(annotated[name])[-1].extra,
        )
        for name in cls.__struct_fields__
    )


PROFILE: tuple[ProfileFeature, ...] = _features_of(ProfileFeatures)
"""Every feature of the contract, in the order in which it is shown."""
