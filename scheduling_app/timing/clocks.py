"""What a zone does to wall times: which of them its clocks skip, which they repeat, and when.

A wall time (naive) happens once, or a turn of the clocks skips it, or repeats it. `turn` tells which.
Turns of up to three hours are daylight saving; a longer one is a correction, as when Apia skipped a day.

The lowest of the modules that know time, and so the home of the error that all of them raise.
"""

import difflib
import zoneinfo
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache, lru_cache
from typing import NamedTuple

SECOND = timedelta(seconds=1)
LONGEST_DST_SHIFT = timedelta(hours=3)


class ScheduleError(ValueError):
    """A schedule that cannot be: `field` is its field at fault, str() says what to change."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class TimingError(ScheduleError):
    """A timing that cannot be."""


class Turn(NamedTuple):
    """A change of a zone's clocks: the instant (UTC), and the offset from UTC on either side."""

    at: datetime
    before: timedelta
    after: timedelta

    @property
    def is_gap(self) -> bool:
        return self.after > self.before

    @property
    def is_short(self) -> bool:
        return abs(self.after - self.before) <= LONGEST_DST_SHIFT

    @property
    def wall_before(self) -> datetime:
        """What the old clocks show at the turn: where a gap starts, where a repeated hour ends."""
        return self.at.replace(tzinfo=None) + self.before

    @property
    def wall_after(self) -> datetime:
        """What the new clocks show at the turn: where a gap ends, where a repeated hour starts."""
        return self.at.replace(tzinfo=None) + self.after


def turn(zone: tzinfo, wall: datetime) -> Turn | None:
    """The turn by which `wall` (naive, fold 0) was skipped or repeated; None if it happened once."""
    before, after = offset(zone, wall), offset(zone, wall.replace(fold=1))
    if before == after:
        return None
    at = _change(zone, wall - max(before, after), wall - min(before, after))
    return Turn(at, before, after)


@lru_cache(maxsize=1024)
def _change(zone: tzinfo, low: datetime, high: datetime) -> datetime:
    """The second after `low` and up to `high` (naive, in UTC) at which the zone's offset changes."""
    # zoneinfo keeps its transitions to itself, so: bisect. Cached, as many schedules share a moment.
    before = utc(low).astimezone(zone).utcoffset()
    while high - low > SECOND:
        middle = low + (high - low) / 2
        if utc(middle).astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return utc(high.replace(microsecond=0))


def turn_of_day(zone: tzinfo, midnight: datetime) -> Turn:
    """The turn of the day that starts at `midnight` (naive) and ends with another offset."""
    day = timedelta(days=1)
    before, after = offset(zone, midnight), offset(zone, midnight + day)
    return Turn(_change(zone, midnight - before - SECOND, midnight + day - after), before, after)


def offset(zone: tzinfo, wall: datetime) -> timedelta:
    return zone.utcoffset(wall) or timedelta(0)


def wall(zone: tzinfo, moment: datetime) -> datetime:
    """What the zone's clocks show at `moment` (aware), naive and without its fold."""
    # By way of UTC: a time of the zone itself would stay as it is, even one that a gap skips.
    return moment.astimezone(UTC).astimezone(zone).replace(tzinfo=None, fold=0)


def utc(naive: datetime) -> datetime:
    return naive.replace(tzinfo=UTC)


def check_aware(field: str, moment: datetime) -> None:
    """Raises TimingError on `field` for a time without a zone."""
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise TimingError(field, "must be a date and time with a time zone")


def skipped(moment: datetime) -> str:
    """Why a time cannot be meant that the clocks of its zone skip; "" where they show it."""
    if moment.tzinfo is None or wall(moment.tzinfo, moment) == moment.replace(tzinfo=None, fold=0):
        return ""
    return f"{moment:%H:%M} does not exist on that day in {moment.tzinfo}: the clocks go forward over it."


@lru_cache(maxsize=1024)
def zone(name: str) -> tzinfo:
    # Only listed names: ZoneInfo() opens any file a name leads to, and `localtime` is another on each host.
    if name not in names():
        close = difflib.get_close_matches(str(name)[:64], names(), 1)
        hint = f"did you mean {close[0]}?" if close else "use an IANA name such as Europe/Berlin"
        raise TimingError("timezone", f"{str(name)[:64]!r} is not a time zone: {hint}")
    return zoneinfo.ZoneInfo(name)


@cache
def names() -> frozenset[str]:
    """The zones that a schedule can name."""
    return frozenset(zoneinfo.available_timezones() - {"localtime", "Factory"})
