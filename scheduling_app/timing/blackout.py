"""When a calendar keeps schedules from running. Pure, as `triggers` is.

Free time is found by intervals, so that the work is known beforehand however often windows recur: of a day's windows
the union is made once for each combination of days on which they recur, and a day is one look into it. So a walk costs
days, not windows, and ends after MOST_DAYS of them; stretches once found are kept.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from scheduling_app.timing import clocks, cron
from scheduling_app.timing.clocks import TimingError
from scheduling_app.timing.cron import DAY
from scheduling_app.timing.kinds import Cron

#: Minutes that a recurring window lasts at most: a longer one is better told by its start and its end.
LONGEST = 366 * 24 * 60
#: Recurring windows, and windows, of a calendar.
MOST_RECURRING, MOST_WINDOWS = 100, 1000
#: Days without a free moment after which a calendar counts as one that leaves none: each kind of year is among them.
MOST_DAYS = 1500
#: Days whose union a calendar keeps at once.
_DAYS_KEPT = 64

#: From one moment to another, the end excluded; of a day, counted from its start.
Span = tuple[timedelta, timedelta]


@dataclass(frozen=True)
class Dated:
    """From one time to another, the end excluded."""

    start_at: datetime
    end_at: datetime


@dataclass(frozen=True)
class Recurring:
    """From each time of a cron expression, for as long as `length`."""

    starts: Cron
    length: timedelta


class Day:
    """A day of a zone: when it starts (in UTC), and the spans in which windows keep schedules from running.

    A span may end on a later day. They are in order, and do not touch.
    """

    def __init__(self, starts_at: datetime, spans: Sequence[Span]):
        self.starts_at = starts_at
        self.spans = spans

    def reach(self, moment: datetime) -> datetime:
        """Until when windows that start on this day last, of those that have started by `moment`; or `moment`."""
        number = bisect_right(self.spans, moment - self.starts_at, key=_start)
        return max(moment, self.starts_at + self.spans[number - 1][1]) if number else moment


class Stretch(NamedTuple):
    """Time without a free moment, and the first one after it; None where the search for that was given up."""

    start: datetime
    end: datetime
    free_from: datetime | None


class Blackout:
    """A calendar's windows, ready to be asked."""

    def __init__(self, name: str, windows: Sequence[Dated | Recurring]):
        self.name = name
        self.windows = windows
        self._recurring = [each for each in windows if isinstance(each, Recurring)]
        self._zone = self._recurring[0].starts.zone if self._recurring else UTC
        #: On how many days before a moment a window may have started that lasts until then.
        self._days_back = max((each.length // DAY + 2 for each in self._recurring), default=0)
        dated = [each for each in windows if isinstance(each, Dated)]
        self._dated = merged((each.start_at.astimezone(UTC), each.end_at.astimezone(UTC)) for each in dated)
        self._unions: dict[tuple[bool, ...], Sequence[Span]] = {}
        self._days: dict[date, Day] = {}
        #: The last one that was found.
        self._stretch: Stretch | None = None

    def free_from(self, at: datetime) -> datetime | None:
        """The first moment from `at` on that lies in no window: `at` itself, mostly. None where MOST_DAYS have none."""
        start, stretch = at.astimezone(UTC), self._stretch
        if stretch is None or not stretch.start <= start < stretch.end:
            stretch = self._stretch_from(start)
            if stretch.free_from == start:
                return at
            self._stretch = stretch
        return stretch.free_from

    def _stretch_from(self, start: datetime) -> Stretch:
        """The one that starts at this moment; empty where that is free."""
        known, end, left = self._stretch, start, MOST_DAYS + self._days_back
        with suppress(OverflowError):  # the calendar ends with the year 9999
            day = self._first_day(start)
            while left > 0:
                if known and known.start <= end < known.end:
                    return known._replace(start=start)
                today = self._day(day)
                if today.starts_at <= end:
                    end, day, left = today.reach(end), day + DAY, left - 1
                elif (further := self._dated_end(end)) > end:
                    # Windows of the day on which it stood may start meanwhile; those of days before had started.
                    day, end = max(self._local_day(end), self._first_day(further)), further
                else:
                    return Stretch(start, end, end)
        return Stretch(start, end, None)

    def _local_day(self, moment: datetime) -> date:
        return clocks.wall(self._zone, moment).date()

    def _first_day(self, moment: datetime) -> date:
        """The first on which a window may have started that lasts until then."""
        return self._local_day(moment) - self._days_back * DAY

    def _dated_end(self, moment: datetime) -> datetime:
        number = bisect_right(self._dated, moment, key=_start)
        return max(moment, self._dated[number - 1][1]) if number else moment

    def _day(self, day: date) -> Day:
        if day not in self._days:
            if len(self._days) >= _DAYS_KEPT:
                self._days = {}
            self._days[day] = self._made(day)
        return self._days[day]

    def _made(self, day: date) -> Day:
        midnight = datetime(day.year, day.month, day.day)
        before, after = (clocks.offset(self._zone, each) for each in (midnight, midnight + DAY))
        starts_at = clocks.utc(midnight - before)
        patterns = [(cron.parse(each.starts.expression), each.length) for each in self._recurring]
        chosen = tuple(day.month in each.months and each.matches_day(midnight) for each, _ in patterns)
        here = [pattern for pattern, is_chosen in zip(patterns, chosen, strict=True) if is_chosen]
        if before == after:
            if chosen not in self._unions:
                self._unions[chosen] = merged(span for pattern, length in here for span in _spans(pattern, length))
            return Day(starts_at, self._unions[chosen])
        turn = clocks.turn_of_day(self._zone, midnight)
        turned = (_turned(pattern, length, turn, midnight) for pattern, length in here)
        return Day(starts_at, merged(span for spans in turned for span in spans))


def _start(span: tuple[Any, Any]) -> Any:
    return span[0]


def merged(spans: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """The union of spans, as ones that do not touch, in order."""
    found: list[tuple[Any, Any]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


@lru_cache(maxsize=1024)
def _starts(pattern: cron.Pattern) -> Sequence[timedelta]:
    """The times of a day at which a pattern matches; of those within a minute the first and the last alone, as no
    window is shorter than a minute."""
    seconds = sorted({pattern.seconds[0], pattern.seconds[-1]})
    return [
        timedelta(hours=hour, minutes=minute, seconds=second)
        for hour in pattern.hours
        for minute in pattern.minutes
        for second in seconds
    ]


@lru_cache(maxsize=1024)
def _spans(pattern: cron.Pattern, length: timedelta) -> Sequence[Span]:
    return merged((start, start + length) for start in _starts(pattern))


def _turned(pattern: cron.Pattern, length: timedelta, turn: clocks.Turn, midnight: datetime) -> list[Span]:
    """The spans of a day on which the clocks change: what `triggers.WallTiming` makes of its times, all at once."""
    starts, fixed = _starts(pattern), pattern.fixed and turn.is_short
    wall_before, wall_after = turn.wall_before - midnight, turn.wall_after - midnight
    # Where an hour is repeated, a fixed time is in the first pass alone.
    first, second = bisect_left(starts, wall_before), bisect_left(starts, wall_before if fixed else wall_after)
    shift = turn.after - turn.before
    if turn.is_gap:
        second = bisect_left(starts, wall_after)
    found = [*starts[:first], *(start - shift for start in starts[second:])]
    if turn.is_gap and fixed and first < second:
        found.append(wall_before)  # right after the gap
    return [(start, start + length) for start in found]


def window(
    timezone: str, cron: str, minutes: int | None, start_at: datetime | None, end_at: datetime | None
) -> Dated | Recurring:
    """A window of these fields. Raises TimingError."""
    if cron:
        if start_at or end_at:
            raise TimingError("cron", "write it and minutes, or a start and an end, not both")
        if not minutes or minutes < 1:
            raise TimingError("minutes", "say how many minutes it lasts: a whole number from 1 up")
        if minutes > LONGEST:
            raise TimingError("minutes", f"{LONGEST:,} at most, which is a year: give a longer one a start and an end")
        return Recurring(Cron(cron, timezone), timedelta(minutes=minutes))
    if minutes:
        raise TimingError("minutes", "minutes belong to a cron expression: leave them out, or write one")
    if start_at is None or end_at is None:
        raise TimingError("cron", "write a cron expression and minutes, or a start and an end")
    clocks.check_aware("start_at", start_at)
    clocks.check_aware("end_at", end_at)
    if end_at <= start_at:
        raise TimingError("end_at", "ends before it starts")
    return Dated(start_at, end_at)


@lru_cache(maxsize=1024)
def blackout(name: str, timezone: str, windows: tuple[tuple[Any, ...], ...]) -> Blackout:
    """A calendar of these windows, each as `window` takes it. (Kept, with the stretches that it found: a calendar is
    asked anew in each pass.) Raises TimingError."""
    clocks.zone(timezone)
    check_number(windows)
    return Blackout(name, [window(timezone, *each) for each in windows])


def check_number(windows: Sequence[tuple[Any, ...]]) -> None:
    """Raises TimingError where these windows, as `window` takes them, are more than a calendar can have."""
    if sum(1 for cron, *_ in windows if cron) > MOST_RECURRING:
        raise TimingError("windows", f"{MOST_RECURRING} recurring ones at most")
    if len(windows) > MOST_WINDOWS:
        raise TimingError("windows", f"{MOST_WINDOWS:,} at most")
