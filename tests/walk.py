"""Cron by a slow walk through real time: the oracle of the property tests, which shares no code with the engine.

`Expression` is crontab(5), read word by word: it says whether a wall time is named. `walk` is the loop of the
daemon: it looks at the wall clock every minute, and keeps a clock of its own that nobody turns. Where the
wall clock jumps ahead of it, the daemon's clock passes the skipped minutes at once; where the wall clock falls
behind, it waits. A job with a wildcard minute or hour runs by the wall clock, the others by the daemon's own.
A difference of more than three hours is a correction: the daemon sets its clock, and that is all.

The daemon would run a job for each of the skipped minutes that it names; ours runs once, as one instant is one
due time. And it says of three hours sharp one thing in its manual and another in its code: they are no correction.
"""

from calendar import monthrange
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from random import Random
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
DAY, WEEK = timedelta(days=1), timedelta(days=7)

NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
MONTHS = ["", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]

# The tz database has had no shift of more than three hours since these. They are within the day that follows.
CORRECTIONS = {
    "Antarctica/Casey": ["1968-12-31"],
    "Antarctica/Davis": ["1964-10-31", "1969-01-31"],
    "Antarctica/Vostok": ["1994-01-31", "1994-10-31"],
    "Pacific/Apia": ["2011-12-30"],
    "Pacific/Enderbury": ["1994-12-31"],
    "Pacific/Fakaofo": ["2011-12-30"],
    "Pacific/Kiritimati": ["1994-12-31"],
    "Pacific/Kwajalein": ["1969-09-30", "1993-08-21"],
}


class Walk(NamedTuple):
    """What the two clocks show, as (real time, wall time): the daemon's own shows many times at once, or none."""

    wall_clock: list[tuple[datetime, datetime]]
    own_clock: list[tuple[datetime, datetime]]


def every(step, start, end):
    while start < end:
        yield start
        start += step


@lru_cache(maxsize=4)
def walk(zone: str, start: datetime, end: datetime, step: timedelta = MINUTE) -> Walk:
    info = ZoneInfo(zone)
    wall_clock = [(at, at.astimezone(info).replace(tzinfo=None)) for at in every(step, start, end)]
    own_clock, shows = [], wall_clock[0][1] - step
    for at, wall in wall_clock:
        if abs(wall - shows - step) > 3 * HOUR:
            shows = wall - step
        while shows < wall:
            shows += step
            own_clock.append((at, shows))
    return Walk(wall_clock, own_clock)


class Expression:
    def __init__(self, text: str):
        parts = NICKNAMES.get(text.lower(), text).lower().split()
        second, minute, hour, self.day, month, self.weekday = ["0"] * (6 - len(parts)) + parts
        self.seconds, self.minutes = numbers(second, 0, 59), numbers(minute, 0, 59)
        self.hours, self.months = numbers(hour, 0, 23), numbers(month, 1, 12, MONTHS)
        self.is_fixed = not minute.startswith("*") and not hour.startswith("*")
        self.names_day = cache(self._names_day)

    def times(self, steps: Walk) -> list[datetime]:
        clock = steps.own_clock if self.is_fixed else steps.wall_clock
        return list(dict.fromkeys(at for at, wall in clock if self.names(wall)))

    def names(self, wall: datetime) -> bool:
        in_clock = wall.minute in self.minutes and wall.hour in self.hours and wall.second in self.seconds
        return in_clock and self.names_day(wall.date())

    def _names_day(self, day: date) -> bool:
        in_month = any(is_month_day(item, day) for item in self.day.split(","))
        in_week = any(is_weekday(item, day) for item in self.weekday.split(","))
        if self.day.startswith("*") or self.weekday.startswith("*"):
            return day.month in self.months and in_month and in_week
        return day.month in self.months and (in_month or in_week)

    def can_come(self) -> bool:
        return any(map(self._names_day, kinds_of_day()))


def numbers(field, low, high, names=()):
    return set().union(*(item_numbers(item, low, high, names) for item in field.split(",")))


def item_numbers(item, low, high, names):
    span, _, step = item.partition("/")
    first, dash, last = span.partition("-")
    number = lambda text: names.index(text) if text in names else int(text)  # noqa: E731
    if first == "*":
        return set(range(low, high + 1, int(step or 1)))
    if dash:
        return set(range(number(first), number(last) + 1, int(step or 1)))
    # crontab(5) has no step after a single number; where it is taken, it goes on to the end of the field.
    return set(range(number(first), high + 1, int(step))) if step else {number(first)}


def is_month_day(item: str, day: date) -> bool:
    if item not in ("l", "lw"):
        return day.day in item_numbers(item, 1, 31, ())
    later = [each for n in range(1, 31) if (each := day + n * DAY).month == day.month]
    if item == "lw":
        return day.isoweekday() < 6 and all(each.isoweekday() >= 6 for each in later)
    return not later


def is_weekday(item: str, day: date) -> bool:
    if item.endswith("l"):
        return is_weekday(item[:-1], day) and (day + WEEK).month != day.month
    name, _, nth = item.partition("#")
    if nth and (day.day - 1) // 7 + 1 != int(nth):
        return False
    return day.isoweekday() % 7 in {number % 7 for number in item_numbers(name, 0, 7, WEEKDAYS)}


@cache
def kinds_of_day() -> list[date]:
    """One day of each month, number, weekday and length of month, of the 400 years in which the calendar turns."""
    days = every(DAY, date(2000, 1, 1), date(2400, 1, 1))
    return list({(day.month, day.day, day.weekday(), monthrange(day.year, day.month)): day for day in days}.values())


@cache
def shifts() -> list[tuple[str, datetime]]:
    """Every zone with some of its shifts: one of each size and direction from 2015 to 2030, and all corrections."""
    found = []
    days = list(every(DAY, utc("2015-01-01"), utc("2031-01-01")))
    for zone in sorted(available_timezones() - {"localtime"}):  # which is the machine's, and in no database
        info = ZoneInfo(zone)
        offsets = [day.astimezone(info).utcoffset() for day in days]
        by_size = defaultdict(list)
        for day, before, after in zip(days, offsets, offsets[1:], strict=False):
            if before != after:
                by_size[before, after].append(day)
        some = [Random(f"{zone} {size}").choice(those) for size, those in by_size.items()]
        for day in [*some, *map(utc, CORRECTIONS.get(zone, []))]:
            found.append((zone, shift_within(info, day)))
    return found


def shift_within(zone: ZoneInfo, day: datetime) -> datetime:
    before = day.astimezone(zone).utcoffset()
    return next(at for at in every(MINUTE, day, day + DAY + MINUTE) if at.astimezone(zone).utcoffset() != before)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
