"""Instants at which timers fire, as pure calendar: every so many seconds, or by a cron expression in a time zone.

A tick is an event like any other; streams/timers.py publishes it.
"""

import datetime as dt
import zoneinfo
from collections.abc import Iterator

import attrs
from cronsim import CronSim, CronSimError

from models.codec import aware
from models.errors import DeclarationError

TIMERS_PREFIX = "timers."
EVERY_LIMIT_S = 31 * 86_400
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


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

    @property
    def schedule(self) -> str:
        """When it fires, in words."""
        return f"every {self.every_s} s" if self.every_s is not None else f"{self.cron} ({self.tz})"

    def next_after(self, instant: dt.datetime) -> dt.datetime:
        """The first instant after the given one, in UTC."""
        if self.every_s is not None:
            return self._multiple(instant, 1)
        later = self._scheduled(instant)  # in an hour that comes twice, these begin before the instant
        return next(moment for moment in later if moment > instant)

    def newest_until(self, instant: dt.datetime) -> dt.datetime:
        """The last instant that is not after the given one, in UTC."""
        if self.every_s is not None:
            return self._multiple(instant, 0)
        earlier = self._scheduled(instant + dt.timedelta(minutes=1), is_reverse=True)
        found = next(moment for moment in earlier if moment <= instant)
        while (later := self.next_after(found)) <= instant:  # an hour that comes twice in autumn
            found = later
        return found

    def _multiple(self, instant: dt.datetime, more: int) -> dt.datetime:
        """The multiple of ``every_s`` at or before an instant, or some more; whole microseconds, so it is exact."""
        step = dt.timedelta(seconds=self.every_s or 0.0)
        return EPOCH + ((instant - EPOCH) // step + more) * step

    def _scheduled(self, instant: dt.datetime, *, is_reverse: bool = False) -> Iterator[dt.datetime]:
        """The instants of the expression from the local time of an instant on, in UTC."""
        assert self.cron is not None, "check_timer sees to it"
        local = instant.astimezone(zoneinfo.ZoneInfo(self.tz))
        return (moment.astimezone(dt.UTC) for moment in CronSim(self.cron, local, reverse=is_reverse))


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
        if len(timer.cron.split()) != 5:
            raise CronSimError("Wrong number of fields")  # CronSim takes seconds too, for which every_s is there
    except (CronSimError, StopIteration, TypeError, AttributeError) as error:
        wanted = "five fields (minute hour day month weekday) that some instant fits"
        raise DeclarationError(where, f"cron: expected {wanted}, got {timer.cron!r} ({error})") from error
