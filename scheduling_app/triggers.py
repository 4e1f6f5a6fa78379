"""A schedule's timing: next times, words, previews, validation, and APScheduler's trigger.

Everything here is pure: time comes in as an argument, nothing reads a clock, a setting or a row.

Cron expressions are parsed by `cronsim`, which also decides whether a day matches. The walk from one
time to the next is our own, because cronsim's ticks along the real clock: started inside the second pass
of a repeated hour it can answer with a time in the past, where a gap swallows two times it answers the
same one twice, and it takes the day that Apia skipped for a very long DST gap. Ours never ticks. It asks
for the next *wall* time that matches, as if clocks never changed, and then asks the zone what became of
that wall time. There are three answers:

    it happened once        run then
    it was skipped          a fixed time runs right after the gap, a wildcard does not run
    it happened twice       a fixed time runs in the first pass, a wildcard runs in both

A time is fixed if neither its minute nor its hour starts with `*`, and an interval of days or weeks is
too. That is Debian's rule, and as there it holds for shifts of up to three hours. A longer one is a
correction of the clock: the new time holds at once, nothing is made up for or held back.
"""

import calendar
import difflib
import hashlib
import re
import zoneinfo
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import cache, lru_cache
from itertools import islice
from typing import NamedTuple

from apscheduler.triggers.base import BaseTrigger
from cronsim import CronSim, CronSimError
from cronsim.cronsim import RANGES, Field

DAY, SECOND, MICROSECOND = timedelta(days=1), timedelta(seconds=1), timedelta(microseconds=1)
LONGEST_DST_SHIFT = timedelta(hours=3)
LONGEST_INTERVAL = timedelta(days=3653)
LONGEST_EXPRESSION = 600  # characters; every value of every field, written out, makes 528
UNITS = {unit: timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days", "weeks")}
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


class TimingError(ValueError):
    """A timing that cannot be: `field` is the Schedule's field at fault, str() says what to change."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class Timing(ABC):
    """When a schedule fires. All times in and out are aware; those that come out are in UTC."""

    timezone: str
    start_at: datetime | None = None
    end_at: datetime | None = None

    @property
    def zone(self) -> tzinfo:
        return _zone(self.timezone)

    def next_after(self, moment: datetime) -> datetime | None:
        """The first time strictly later than `moment` and within [start_at, end_at]; None when over."""
        if moment.tzinfo is None:
            raise ValueError("next_after() needs an aware datetime")
        try:
            # In UTC first: two datetimes of one zone are compared and subtracted by their wall times.
            moment = moment.astimezone(UTC)
            if self.start_at is not None:
                moment = max(moment, self.start_at.astimezone(UTC) - MICROSECOND)
            found = self._next(moment)
        except OverflowError:  # the calendar ends with the year 9999
            return None
        return None if found is None or (self.end_at and found > self.end_at) else found

    def times_after(self, moment: datetime) -> Iterator[datetime]:
        """Every time strictly later than `moment`, lazily and in order; it may never end."""
        while (found := self.next_after(moment)) is not None:
            yield (moment := found)

    @abstractmethod
    def describe(self) -> str:
        """The timing in a few words that are always true."""

    @abstractmethod
    def _next(self, moment: datetime) -> datetime | None:
        """As next_after(), start and end aside."""

    def made_up_for(self, at: datetime) -> datetime | None:
        """The wall time that the gap ending at `at` skipped, where `at` runs in its place."""
        return None

    def _is_fixed_at(self, turn: "Turn") -> bool:
        return False

    def _check_bounds(self) -> None:
        _zone(self.timezone)
        if self.start_at is not None:
            _check_aware("start_at", self.start_at)
        if self.end_at is not None:
            _check_aware("end_at", self.end_at)
        if self.start_at and self.end_at and self.end_at.astimezone(UTC) < self.start_at.astimezone(UTC):
            raise TimingError("end_at", "ends before it starts")


class WallTiming(Timing):
    """A timing told in wall times (naive), as if clocks never changed; here they meet the real ones."""

    @property
    @abstractmethod
    def fixed(self) -> bool:
        """Whether it runs right after the gap that skips it, and only in the first pass of an hour."""

    @abstractmethod
    def next_wall(self, wall: datetime) -> datetime:
        """The first wall time later than `wall`."""

    def _next(self, moment: datetime) -> datetime | None:
        here = moment.astimezone(self.zone)
        wall = here.replace(tzinfo=None, fold=0)
        turn = _turn(self.zone, wall)  # None, unless `moment` lies in a repeated hour
        if turn is None:
            return self._first_after(wall)
        if self._is_fixed_at(turn):
            return self._first_after(turn.wall_before - MICROSECOND if here.fold else wall)
        if here.fold:
            return self._first_after(wall, second_pass_of=turn)
        found = self._first_after(wall)
        if found < turn.at:
            return found
        return self._first_after(turn.wall_after - MICROSECOND, second_pass_of=turn)

    def _first_after(self, wall: datetime, second_pass_of: "Turn | None" = None) -> datetime:
        """The instant of the first wall time later than `wall` that runs at all."""
        wall = self.next_wall(wall)
        turn = _turn(self.zone, wall)
        if turn is None:
            return _utc(wall - _offset(self.zone, wall))
        if not turn.is_gap:
            return _utc(wall - (turn.after if turn == second_pass_of else turn.before))
        return turn.at if self._is_fixed_at(turn) else self._first_after(turn.wall_after - MICROSECOND)

    def made_up_for(self, at: datetime) -> datetime | None:
        turn = _turn(self.zone, at.astimezone(self.zone).replace(tzinfo=None, fold=0) - MICROSECOND)
        if turn is None or turn.at != at or not turn.is_gap or not self._is_fixed_at(turn):
            return None
        wall = self.next_wall(turn.wall_before - MICROSECOND)
        return wall if wall < turn.wall_after else None

    def _is_fixed_at(self, turn: "Turn") -> bool:
        return self.fixed and turn.is_short


@dataclass(frozen=True)
class Cron(WallTiming):
    """A crontab expression of five fields, six with seconds first, or an @name, in a zone's wall time."""

    expression: str
    timezone: str = "UTC"
    start_at: datetime | None = None
    end_at: datetime | None = None

    def __post_init__(self):
        _parse(self.expression)
        self._check_bounds()

    def describe(self) -> str:
        return _words(_parse(self.expression).parts) or self.expression

    @property
    def fixed(self) -> bool:
        return _parse(self.expression).fixed

    def next_wall(self, wall: datetime) -> datetime:
        return _parse(self.expression).next_wall(wall.replace(microsecond=0))


@dataclass(frozen=True)
class Interval(WallTiming):
    """anchor + n * every for n = 0, 1, 2 and so on: restarts do not shift it, and it does not drift.

    Seconds, minutes and hours are real ones; days and weeks keep the anchor's wall time in the zone.
    """

    every: int
    unit: str
    anchor: datetime
    timezone: str = "UTC"
    start_at: datetime | None = None
    end_at: datetime | None = None

    def __post_init__(self):
        _check_every(self.every, self.unit)
        _check_aware("start_at", self.anchor)
        self._check_bounds()

    def describe(self) -> str:
        return f"every {self.unit[:-1]}" if self.every == 1 else f"every {self.every} {self.unit}"

    @property
    def fixed(self) -> bool:
        return self.unit in ("days", "weeks")

    def next_wall(self, wall: datetime) -> datetime:
        return self._step_past(wall, self.anchor.astimezone(self.zone).replace(tzinfo=None, fold=0))

    def _next(self, moment: datetime) -> datetime | None:
        anchor = self.anchor.astimezone(UTC)
        if moment < anchor:
            return anchor
        return super()._next(moment) if self.fixed else self._step_past(moment, anchor)

    def _step_past(self, moment: datetime, anchor: datetime) -> datetime:
        step = self.every * UNITS[self.unit]
        return anchor + ((moment - anchor) // step + 1) * step


@dataclass(frozen=True)
class Date(Timing):
    """Once, at `run_at`; the zone is for showing it."""

    run_at: datetime
    timezone: str = "UTC"

    def __post_init__(self):
        _check_aware("run_at", self.run_at)
        self._check_bounds()

    def describe(self) -> str:
        local = self.run_at.astimezone(self.zone)
        return f"once at {local:{'%Y-%m-%d %H:%M:%S' if local.second else '%Y-%m-%d %H:%M'}} {self.timezone}"

    def _next(self, moment: datetime) -> datetime | None:
        return self.run_at.astimezone(UTC) if self.run_at > moment else None


class TimingTrigger(BaseTrigger):
    """A timing as APScheduler's trigger."""

    def __init__(self, timing: Timing):
        self.timing = timing

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """The first time later than the previous one and not before `now` (`now` itself counts).

        APScheduler walks from a late run to `now` with this. Times missed in between are left out, so
        that the walk is one step after any downtime: catching up is decided where schedules fire.
        """
        after = now.astimezone(UTC) - MICROSECOND
        return self.timing.next_after(max(previous_fire_time or after, after))

    def __str__(self) -> str:
        return self.timing.describe()


def trigger_for(timing: Timing) -> TimingTrigger:
    """The APScheduler trigger of a timing."""
    return TimingTrigger(timing)


def parse_every(text: str) -> tuple[int, str]:
    """`30s`, `90m`, `2h`, `1d`, `1w` as Interval's (every, unit); TimingError on "every" for the rest."""
    match = re.fullmatch(r"([0-9]{1,9}) ?([smhdw])", text.strip())
    if not match:
        raise TimingError("every", f"cannot read {text!r}: write a number and s, m, h, d or w, such as 90m")
    every, unit = int(match[1]), next(unit for unit in UNITS if unit[0] == match[2])
    _check_every(every, unit)
    return every, unit


def jittered(
    schedule_key: str | int,
    scheduled_for: datetime,
    jitter: int,
    following: datetime | None,
) -> datetime:
    """`scheduled_for` plus [0, jitter) seconds, in UTC, the same for the same arguments in any process.

    It stays before `following`, the next due time, so that jitter never changes the order of runs.
    """
    due, room = scheduled_for.astimezone(UTC), timedelta(seconds=jitter)
    if following is not None:
        room = min(room, following - due)
    if room <= timedelta(0):
        return due
    digest = hashlib.blake2b(f"{schedule_key} {due.isoformat()}".encode(), digest_size=8).digest()
    return due + int.from_bytes(digest) % (room // MICROSECOND) * MICROSECOND


@dataclass(frozen=True)
class PreviewTime:
    """One coming run: in UTC, in the timing's zone, and what the clocks do to it ("" mostly)."""

    at: datetime
    local: datetime
    note: str


def preview(timing: Timing, after: datetime, count: int) -> list[PreviewTime]:
    """The next `count` times strictly later than `after`, fewer if it ends, with DST marked."""
    times = islice(timing.times_after(after), count)
    return [PreviewTime(at, at.astimezone(timing.zone), _note(timing, at)) for at in times]


def _note(timing: Timing, at: datetime) -> str:
    if skipped := timing.made_up_for(at):
        return f"clocks go forward: {skipped:%H:%M} does not exist, runs right after the gap"
    local = at.astimezone(timing.zone)
    turn = _turn(timing.zone, local.replace(tzinfo=None, fold=0))
    if turn is None:
        return ""
    if timing._is_fixed_at(turn):
        return "clocks go back: runs once, in the first pass"
    return f"clocks go back: {'second' if local.fold else 'first'} pass"


class Pattern:
    """A parsed expression: the wall times that match in a world where clocks never change."""

    def __init__(self, sim: CronSim):
        self.parts, self.months, self.matches_day = sim.parts, sim.months, sim.match_day
        self.seconds, self.minutes, self.hours = map(sorted, (sim.seconds, sim.minutes, sim.hours))
        self.fixed = not any(part.startswith("*") for part in sim.parts[1:3])

    def next_wall(self, wall: datetime) -> datetime:
        """The first match later than `wall` (both naive, in whole seconds)."""
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
def _parse(expression: str) -> Pattern:
    """Raises TimingError on "cron" that names the part, also where no date can ever match."""
    parts = _split(str(expression))
    for field, name, part in zip(Field, PARTS, parts, strict=True):
        for item in part.split(","):
            if not _is_readable(field, item):
                raise TimingError("cron", f"{name}: {_complaint(field, item)}")
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
    name = text.strip().lower()
    if name == "@reboot":
        raise TimingError("cron", "@reboot is refused: schedules fire by the clock, not at a start")
    if name.startswith("@") and name not in NICKNAMES:
        raise TimingError("cron", f"{name!r} is unknown: there are {', '.join(NICKNAMES)}")
    parts = NICKNAMES.get(name, text).split()
    if len(parts) not in (5, 6):
        hint = "minute, hour, day of month, month and day of week, or six with seconds first"
        raise TimingError("cron", f"five fields are needed, not {len(parts)}: {hint}")
    # cronsim reads 5-5/10 as 5/10, which is 5, 15, 25 and so on; it is 5 alone.
    parts = [re.sub(r"(?<![^,])(\w+)-\1/0*[1-9][0-9]*(?![^,])", r"\1", part) for part in parts]
    return ["0"] * (6 - len(parts)) + parts


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
    if _is_readable(field, first) and _is_readable(field, last):
        return f"the range {span} runs backwards" + ("; Sunday can be 7" if field == Field.DOW else "")
    if field == Field.DOW and "#" in span:
        return f"{item!r} must be a weekday, # and 1 to 5: 1#2 is the second Monday"
    names = {Field.MONTH: ", or jan to dec", Field.DOW: ", or sun to sat"}.get(field, "")
    return f"{item!r} is none of {low} to {high}{names}"


def _words(parts: list[str]) -> str | None:
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


def _turn(zone: tzinfo, wall: datetime) -> Turn | None:
    """The turn by which `wall` (naive, fold 0) was skipped or repeated; None if it happened once."""
    before, after = _offset(zone, wall), _offset(zone, wall.replace(fold=1))
    if before == after:
        return None
    at = _change(zone, wall - max(before, after), wall - min(before, after))
    return Turn(at, before, after)


@lru_cache(maxsize=1024)
def _change(zone: tzinfo, low: datetime, high: datetime) -> datetime:
    """The second after `low` and up to `high` (naive, in UTC) at which the zone's offset changes."""
    # zoneinfo keeps its transitions to itself, so: bisect. Cached, as many schedules share a moment.
    before = _utc(low).astimezone(zone).utcoffset()
    while high - low > SECOND:
        middle = low + (high - low) / 2
        if _utc(middle).astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return _utc(high.replace(microsecond=0))


def _offset(zone: tzinfo, wall: datetime) -> timedelta:
    return zone.utcoffset(wall) or timedelta(0)


def _utc(naive: datetime) -> datetime:
    return naive.replace(tzinfo=UTC)


@lru_cache(maxsize=1024)
def _zone(name: str) -> tzinfo:
    # Only listed names: ZoneInfo() opens any file a name leads to, and `localtime` is another on each host.
    if name not in _zone_names():
        close = difflib.get_close_matches(str(name)[:64], _zone_names(), 1)
        hint = f"did you mean {close[0]}?" if close else "use an IANA name such as Europe/Berlin"
        raise TimingError("timezone", f"{str(name)[:64]!r} is not a time zone: {hint}")
    return zoneinfo.ZoneInfo(name)


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones() - {"localtime", "Factory"})


def _check_aware(field: str, moment: datetime) -> None:
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise TimingError(field, "must be a date and time with a time zone")


def _check_every(every: int, unit: str) -> None:
    if unit not in UNITS:
        raise TimingError("unit", f"{unit!r} is not one of {', '.join(UNITS)}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise TimingError("every", "must be a whole number from 1 up")
    if every > LONGEST_INTERVAL // UNITS[unit]:
        raise TimingError("every", "must not be longer than ten years")
