"""Reads what a person types for a place in a stream: a sequence, an instant, or how long ago."""

import datetime as dt
import re

import attrs
import click

SEQ_MAX = 2**64 - 1
SPAN_MAX = dt.timedelta(days=36_500)
"""A century: no stream is older, and the calendar reaches as far back."""

_SEQ = re.compile(r"[1-9][0-9]{0,19}")
_AGO = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@attrs.frozen
class Place:
    """A sequence, or an instant with a zone."""

    at: int | dt.datetime


class PlaceParam(click.ParamType[Place]):
    """A sequence or an RFC 3339 instant."""

    name = "sequence or instant"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """As click.ParamType."""
        if isinstance(value, Place):
            return value
        text = str(value)
        if _SEQ.fullmatch(text) and int(text) <= SEQ_MAX:
            return Place(int(text))
        return Place(instant_of(text, "a sequence from 1 on, or an instant as 2026-03-01T09:00:00Z"))


class InstantParam(click.ParamType[dt.datetime]):
    """An RFC 3339 instant."""

    name = "instant"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dt.datetime:
        """As click.ParamType."""
        return value if isinstance(value, dt.datetime) else instant_of(str(value), "an instant as 2026-03-01T09:00:00Z")


class SpanParam(click.ParamType[dt.timedelta]):
    """A time span as ``90s``, ``15m``, ``2h`` or ``7d``."""

    name = "time span"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dt.timedelta:
        """As click.ParamType."""
        if isinstance(value, dt.timedelta):
            return value
        found = _AGO.fullmatch(str(value))
        seconds = float(found[1]) * _UNIT_S[found[2]] if found else 0.0
        if not found or seconds > SPAN_MAX.total_seconds():
            self.fail(f"expected a time span as 90s, 15m, 2h or 7d, got {value!r}", param, ctx)
        return dt.timedelta(seconds=seconds)


def instant_of(text: str, wanted: str) -> dt.datetime:
    """Reads an instant, as UTC.

    Raises:
        click.BadParameter: it is none, or has no zone.
    """
    try:
        instant = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"expected {wanted}, got {text!r}") from error
    if instant.tzinfo is None:
        raise click.BadParameter(f"expected an instant with its zone (2026-03-01T09:00:00Z), got {text!r}")
    try:
        return instant.astimezone(dt.UTC)
    except OverflowError as error:  # the first and the last hours of the calendar, in another zone
        raise click.BadParameter(f"expected {wanted}, got {text!r}") from error
