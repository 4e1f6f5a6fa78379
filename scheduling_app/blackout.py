"""When a calendar keeps schedules from running. Pure, as `triggers` is."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from scheduling_app.clocks import TimingError
from scheduling_app.triggers import Cron

#: Windows that follow one another without a gap, at most, before a calendar counts as one that leaves no time at all.
MOST_IN_A_ROW = 1000


@dataclass(frozen=True)
class Dated:
    """From one time to another, the end excluded."""

    start_at: datetime
    end_at: datetime

    def end_around(self, at: datetime) -> datetime | None:
        """The end of this window, where `at` lies in it."""
        return self.end_at.astimezone(UTC) if self.start_at <= at < self.end_at else None


@dataclass(frozen=True)
class Recurring:
    """From each time of a cron expression, for as long as `length`."""

    starts: Cron
    length: timedelta

    def end_around(self, at: datetime) -> datetime | None:
        start = self.starts.next_after(at - self.length)
        return start + self.length if start and start <= at else None


@dataclass(frozen=True)
class Blackout:
    """A calendar's windows, ready to be asked."""

    name: str
    windows: Sequence[Dated | Recurring]

    def free_from(self, at: datetime) -> datetime | None:
        """The first moment from `at` on that lies in no window: `at` itself, mostly. None where there is none."""
        for _ in range(MOST_IN_A_ROW):
            ends = [end for window in self.windows if (end := window.end_around(at)) is not None]
            if not ends:
                return at
            at = max(ends)
        return None


def window(
    timezone: str, cron: str, minutes: int | None, start_at: datetime | None, end_at: datetime | None
) -> Dated | Recurring:
    """A window of these fields. Raises TimingError."""
    if cron:
        if not minutes or minutes < 1:
            raise TimingError("minutes", "say how many minutes it lasts: a whole number from 1 up")
        return Recurring(Cron(cron, timezone), timedelta(minutes=minutes))
    if start_at is None or end_at is None:
        raise TimingError("cron", "write a cron expression and minutes, or a start and an end")
    if end_at <= start_at:
        raise TimingError("end_at", "ends before it starts")
    return Dated(start_at, end_at)
