"""Cron expressions: read into the wall times that match them, refused with a reason, put into words.

`cronsim` parses them and decides whether a day matches. The walk from one match to the next is our own,
because cronsim's ticks along the real clock: started inside the second pass of a repeated hour it can
answer with a time in the past, where a gap swallows two times it answers the same one twice, and it takes
the day that Apia skipped for a very long DST gap. Ours never ticks: it knows wall times only, as if clocks
never changed. What becomes of those is for `kinds` to ask of `clocks`.

crontab(5) defines a step after a range or `*` only. After a single number cronsim's reading holds: from
there to the end of the field, so that 5/10 as a minute is 5-59/10.
"""

import calendar
import re
from bisect import bisect_left
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

from cronsim import CronSim, CronSimError

from scheduling_app.seams.cronsim import RANGES, Field
from scheduling_app.timing.clocks import SECOND, TimingError

DAY = timedelta(days=1)
LONGEST_EXPRESSION = 600  # characters; every value of every field, written out, makes 528
NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
PARTS = ("second", "minute", "hour", "day of month", "month", "day of week")


class Pattern:
    """A parsed expression: the wall times that match in a world where clocks never change."""

    def __init__(self, sim: CronSim):
        self.parts, self.months, self.matches_day = sim.parts, sim.months, sim.match_day
        self.seconds, self.minutes, self.hours = map(sorted, (sim.seconds, sim.minutes, sim.hours))
        self.fixed = not any(part.startswith("*") for part in sim.parts[1:3])

    def next_wall(self, wall: datetime) -> datetime:
        """The first match later than `wall` (both naive; matches are whole seconds)."""
        wall += SECOND
        clock = None
        if wall.month in self.months and self.matches_day(wall):
            clock = self._clock_from(wall.hour, wall.minute, wall.second)
        day = wall if clock else self.next_day(wall.date() + DAY)
        clock = clock or (self.hours[0], self.minutes[0], self.seconds[0])
        return datetime(day.year, day.month, day.day, *clock)

    def _clock_from(self, hour: int, minute: int, second: int) -> tuple[int, int, int] | None:
        """The first matching time of day at or after the given one."""
        if hour in self.hours:
            if minute in self.minutes and (found := _at_least(second, self.seconds)) is not None:
                return hour, minute, found
            if (found := _at_least(minute + 1, self.minutes)) is not None:
                return hour, found, self.seconds[0]
        found = _at_least(hour + 1, self.hours)
        return None if found is None else (found, self.minutes[0], self.seconds[0])

    def next_day(self, day: date, last: date = date.max) -> date:
        """The first matching day from `day` to `last`; OverflowError if there is none."""
        while day <= last:
            if day.month not in self.months:
                day = (day.replace(day=1) + 32 * DAY).replace(day=1)
            elif self.matches_day(day):
                return day
            else:
                day += DAY
        raise OverflowError


def _at_least(least: int, values: list[int]) -> int | None:
    index = bisect_left(values, least)
    return values[index] if index < len(values) else None


@lru_cache(maxsize=8192)
def parse(expression: str) -> Pattern:
    """Raises TimingError on "cron" that names the part, also where no date can ever match."""
    named = zip(Field, PARTS, _split(str(expression)), strict=True)
    parts = [_checked(field, name, part) for field, name, part in named]
    try:
        pattern = Pattern(CronSim(" ".join(parts), datetime(2000, 1, 1, tzinfo=UTC)))
        # 28 years hold every kind of year: each weekday for 1 January, leap and common.
        pattern.next_day(date(2000, 1, 1), last=date(2027, 12, 31))
    except (CronSimError, OverflowError):
        raise TimingError("cron", "day of month: no date ever matches day, month and weekday") from None
    return pattern


def _split(text: str) -> list[str]:
    """Six fields, seconds first, whatever the expression came as."""
    if len(text) > LONGEST_EXPRESSION:
        raise TimingError("cron", f"longer than {LONGEST_EXPRESSION} characters")
    name = text.strip(" \t").lower()
    if name == "@reboot":
        raise TimingError("cron", "@reboot is refused: schedules fire by the clock, not at a start")
    if name.startswith(("tz=", "cron_tz=")):
        raise TimingError("cron", "TZ= and CRON_TZ= are refused: choose the time zone in its own field")
    if name.startswith("@") and name not in NICKNAMES:
        raise TimingError("cron", f"{name!r} is unknown: there are {', '.join(NICKNAMES)}")
    parts = [part for part in re.split("[ \t]+", NICKNAMES.get(name, text)) if part]
    if len(parts) not in (5, 6):
        hint = "minute, hour, day of month, month and day of week, or six with seconds first"
        raise TimingError("cron", f"five fields are needed, not {len(parts)}: {hint}")
    return ["0"] * (6 - len(parts)) + parts


def _checked(field: Field, name: str, part: str) -> str:
    """One field, in capitals; TimingError that names it if an item cannot be read."""
    for item in part.split(","):
        if not _is_readable(field, item):
            raise TimingError("cron", f"{name}: {_complaint(field, item)}")
    return ",".join(_without_range_of_one(field, item) for item in part.upper().split(","))


def _without_range_of_one(field: Field, item: str) -> str:
    # cronsim reads 5-5/10 as 5/10, which is 5, 15, 25 and so on; it is 5 alone. So is mon-1/2 a Monday.
    first, dash, last = item.partition("/")[0].partition("-")
    return first if dash and field.int(first) == field.int(last) else item


def _is_readable(field: Field, item: str) -> bool:
    # upper() makes an S of the long s, and cronsim takes L/2 for L.
    if not item.isascii() or re.match("LW?/", item.upper()):
        return False
    try:
        return bool(field.parse(item.upper()))
    except CronSimError:
        return False


def _complaint(field: Field, item: str) -> str:
    """What is wrong with an unreadable item of a field."""
    low, high = RANGES[field][0], RANGES[field][-1]
    span, slash, step = item.partition("/")
    if slash and not re.fullmatch("0*[1-9][0-9]*", step):
        return f"the step in {item!r} must be a number from 1 up"
    for number in re.findall("[0-9]+", span.partition("#")[0]):
        if not low <= int(number) <= high:
            return f"{number} is not between {low} and {high}"
    first, _, last = span.partition("-")
    if all(_is_readable(field, f"{end}-{end}") for end in (first, last)):  # numbers or names, not L
        return f"the range {span} runs backwards" + ("; Sunday can be 7" if field == Field.DOW else "")
    if field == Field.DOW and "#" in span:
        return f"{item!r} must be a weekday, # and 1 to 5: 1#2 is the second Monday"
    if field == Field.DOW and item.upper().endswith("L"):
        return f"{item!r} must be a weekday's number and L: 5L is the last Friday"
    others = {Field.DAY: ", L or LW", Field.MONTH: ", or jan to dec", Field.DOW: ", or sun to sat"}
    return f"{item!r} is none of {low} to {high}{others.get(field, '')}"


def words(parts: list[str]) -> str | None:
    """Words for the simple forms, where they cannot be wrong; None for the rest."""
    clock, days = _clock_words(*parts[:3]), _day_words(*parts[3:])
    return None if clock is None or days is None else clock + days


def _clock_words(second: str, minute: str, hour: str) -> str | None:
    match second, minute, hour:
        case "0", "*", "*":
            return "every minute"
        case _, "*", "*":
            return _every(second, "second")
        case "0", _, "*" if minute.isdigit():
            return f"every hour at minute {int(minute)}"
        case "0", _, "*":
            return _every(minute, "minute")
        case "0", _, _ if re.fullmatch(r"\d+ \d+(,\d+){,3}", f"{minute} {hour}"):
            hours = sorted(set(map(int, hour.split(","))))
            return "at " + _and(f"{hour:02}:{int(minute):02}" for hour in hours)
    return None


def _every(part: str, unit: str) -> str | None:
    step = int(part[2:] or 1) if re.fullmatch(r"\*(/\d+)?", part) else 0
    if step == 1:
        return f"every {unit}"
    # */7 is not every seven minutes: it starts again with each hour, 56, 00, 07.
    return f"every {step} {unit}s" if step and 60 % step == 0 else None


def _day_words(day: str, month: str, weekday: str) -> str | None:
    match day, month, weekday:
        case "*", "*", "*":
            return ""
        case "L", "*", "*":
            return " on the last day of the month"
        case "*", "*", _ if re.fullmatch(r"(\b([0-7]|[A-Z]{3})\b[-,]?)+", weekday):
            spans = [map(_weekday_name, span.split("-")) for span in weekday.split(",")]
            return f", {_and(' to '.join(span) for span in spans)}"
        case _, "*", "*" if day.isdigit():
            return f" on day {int(day)} of the month"
        case _, _, "*" if day.isdigit() and re.fullmatch(r"\w+", month):
            return f" on {int(day)} {calendar.month_name[Field.MONTH.int(month)]}"
    return None


def _weekday_name(value: str) -> str:
    return calendar.day_name[(Field.DOW.int(value) - 1) % 7]


def _and(items: Iterable[str]) -> str:
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last
