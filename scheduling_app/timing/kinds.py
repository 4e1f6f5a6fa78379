"""The kinds of timing that a schedule can have: next times, words, previews, validation.

Everything here is pure, as in `cron`, which reads expressions, and `clocks`, which knows the zones: time
comes in as an argument, nothing reads a clock, a setting or a row.

A timing told in wall times asks for the next one that matches, as if clocks never changed, and then asks
the zone what became of it. There are three answers:

    it happened once        run then
    it was skipped          a fixed time runs right after the gap, a wildcard does not run
    it happened twice       a fixed time runs in the first pass, a wildcard runs in both

A time is fixed if neither its minute nor its hour starts with `*`, and an interval of days or weeks is
too. That is Debian's rule, and as there it holds for shifts of up to three hours. A longer one is a
correction of the clock: the new time holds at once, nothing is made up for or held back.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice

from scheduling_app.timing import clocks, cron
from scheduling_app.timing.clocks import TimingError, Turn

MICROSECOND = timedelta(microseconds=1)
#: What is later is shown by no zone's clocks: years have four digits.
LAST = datetime(9999, 12, 30, tzinfo=UTC)
LONGEST_INTERVAL = timedelta(days=3653)
UNITS = {unit: timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days", "weeks")}


class Timing(ABC):
    """When a schedule fires. All times in and out are aware; those that come out are in UTC."""

    timezone: str
    start_at: datetime | None = None
    end_at: datetime | None = None

    @property
    def zone(self) -> tzinfo:
        return clocks.zone(self.timezone)

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
        return None if found is None or found > LAST or (self.end_at and found > self.end_at) else found

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

    def _is_fixed_at(self, turn: Turn) -> bool:
        return False

    def _check_bounds(self) -> None:
        clocks.zone(self.timezone)
        if self.start_at is not None:
            clocks.check_aware("start_at", self.start_at)
        if self.end_at is not None:
            clocks.check_aware("end_at", self.end_at)
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
        turn = clocks.turn(self.zone, wall)  # None, unless `moment` lies in a repeated hour
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

    def _first_after(self, wall: datetime, second_pass_of: Turn | None = None) -> datetime:
        """The instant of the first wall time later than `wall` that runs at all."""
        wall = self.next_wall(wall)
        turn = clocks.turn(self.zone, wall)
        if turn is None:
            return clocks.utc(wall - clocks.offset(self.zone, wall))
        if not turn.is_gap:
            return clocks.utc(wall - (turn.after if turn == second_pass_of else turn.before))
        return turn.at if self._is_fixed_at(turn) else self._first_after(turn.wall_after - MICROSECOND)

    def made_up_for(self, at: datetime) -> datetime | None:
        turn = clocks.turn(self.zone, clocks.wall(self.zone, at) - MICROSECOND)
        if turn is None or turn.at != at or not turn.is_gap or not self._is_fixed_at(turn):
            return None
        wall = self.next_wall(turn.wall_before - MICROSECOND)
        return wall if wall < turn.wall_after else None

    def _is_fixed_at(self, turn: Turn) -> bool:
        return self.fixed and turn.is_short


@dataclass(frozen=True)
class Cron(WallTiming):
    """A crontab expression of five fields, six with seconds first, or an @name, in a zone's wall time."""

    expression: str
    timezone: str = "UTC"
    start_at: datetime | None = None
    end_at: datetime | None = None

    def __post_init__(self) -> None:
        cron.parse(self.expression)
        self._check_bounds()

    def describe(self) -> str:
        return cron.words(cron.parse(self.expression).parts) or self.expression

    @property
    def fixed(self) -> bool:
        return cron.parse(self.expression).fixed

    def next_wall(self, wall: datetime) -> datetime:
        return cron.parse(self.expression).next_wall(wall)


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

    def __post_init__(self) -> None:
        _check_every(self.every, self.unit)
        clocks.check_aware("start_at", self.anchor)
        self._check_bounds()

    def describe(self) -> str:
        return f"every {self.unit[:-1]}" if self.every == 1 else f"every {self.every} {self.unit}"

    @property
    def fixed(self) -> bool:
        return self.unit in ("days", "weeks")

    def next_wall(self, wall: datetime) -> datetime:
        return self._step_past(wall, clocks.wall(self.zone, self.anchor))

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

    def __post_init__(self) -> None:
        clocks.check_aware("run_at", self.run_at)
        self._check_bounds()

    def describe(self) -> str:
        local = clocks.wall(self.zone, self.run_at)
        return f"once at {local:{'%Y-%m-%d %H:%M:%S' if local.second else '%Y-%m-%d %H:%M'}} {self.timezone}"

    def _next(self, moment: datetime) -> datetime | None:
        return self.run_at.astimezone(UTC) if self.run_at > moment else None


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
    turn = clocks.turn(timing.zone, clocks.wall(timing.zone, at))
    if turn is None:
        return ""
    if timing._is_fixed_at(turn):
        return "clocks go back: runs once, in the first pass"
    return f"clocks go back: {'first' if at < turn.at else 'second'} pass"


def _check_every(every: int, unit: str) -> None:
    if unit not in UNITS:
        raise TimingError("unit", f"{unit!r} is not one of {', '.join(UNITS)}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise TimingError("every", "must be a whole number from 1 up")
    if every > LONGEST_INTERVAL // UNITS[unit]:
        raise TimingError("every", "must not be longer than ten years")
