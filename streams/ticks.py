"""Instants at which timers fire, as pure calendar: every so many seconds, or by a cron expression in a time zone.

A tick is an event like any other; streams/timers.py publishes it.
"""

import datetime as dt
import math
import zoneinfo

import attrs
from cronsim import CronSim, CronSimError

from models.codec import aware
from models.errors import DeclarationError

TIMERS_PREFIX = "timers."
EVERY_LIMIT_S = 31 * 86_400


@attrs.frozen(kw_only=True)
class Tick:
    """The event of a timer: its name, ``<table>.<function>``, and the instant for which it was set."""

    name: str
    at: dt.datetime = attrs.field(validator=aware)


@attrs.frozen(kw_only=True)
class Timer:
    """When a timer fires: ``every_s`` seconds since 1970, or ``cron`` in the zone ``tz``."""

    name: str
    every_s: float | None = None
    cron: str | None = None
    tz: str = "UTC"

    @property
    def subject(self) -> str:
        """Where its ticks are published."""
        return TIMERS_PREFIX + self.name

    def next_after(self, instant: dt.datetime) -> dt.datetime:
        """The first instant after the given one, in UTC."""
        if self.every_s is not None:
            return _at((math.floor(instant.timestamp() / self.every_s) + 1) * self.every_s, self.every_s, instant)
        assert self.cron is not None, "check_timer sees to it"
        local = instant.astimezone(zoneinfo.ZoneInfo(self.tz))
        return next(CronSim(self.cron, local)).astimezone(dt.UTC)

    def newest_until(self, instant: dt.datetime) -> dt.datetime:
        """The last instant that is not after the given one, in UTC."""
        if self.every_s is not None:
            return dt.datetime.fromtimestamp(math.floor(instant.timestamp() / self.every_s) * self.every_s, dt.UTC)
        assert self.cron is not None, "check_timer sees to it"
        zone = zoneinfo.ZoneInfo(self.tz)
        earlier = CronSim(self.cron, (instant + dt.timedelta(minutes=1)).astimezone(zone), reverse=True)
        found = next(moment for moment in earlier if moment <= instant)
        while (later := self.next_after(found.astimezone(dt.UTC))) <= instant:  # an hour that comes twice in autumn
            found = later
        return found.astimezone(dt.UTC)


def _at(seconds: float, every_s: float, after: dt.datetime) -> dt.datetime:
    """An instant from seconds, which rounding must not bring back to the one before."""
    found = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return found if found > after else dt.datetime.fromtimestamp(seconds + every_s, dt.UTC)


def check_timer(timer: Timer, where: str) -> None:
    """Refuses a timer that can't fire.

    Raises:
        DeclarationError: naming ``where``, the field, its value and what is accepted.
    """
    every_s: object = timer.every_s
    if timer.cron is None:
        is_number = isinstance(every_s, int | float) and not isinstance(every_s, bool)
        if not (is_number and 1 <= every_s <= EVERY_LIMIT_S):  # type: ignore[operator]  # a number, as is_number says
            raise DeclarationError(where, f"every_s: expected 1 to {EVERY_LIMIT_S} seconds, got {every_s!r}")
        return
    try:
        zone = zoneinfo.ZoneInfo(timer.tz)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError) as error:
        raise DeclarationError(where, f"tz: expected a time zone's name, as Europe/Berlin, got {timer.tz!r}") from error
    try:
        next(CronSim(timer.cron, dt.datetime.now(zone)))
    except (CronSimError, StopIteration, TypeError, AttributeError) as error:
        wanted = "five fields (minute hour day month weekday) that some instant fits"
        raise DeclarationError(where, f"cron: expected {wanted}, got {timer.cron!r} ({error})") from error
