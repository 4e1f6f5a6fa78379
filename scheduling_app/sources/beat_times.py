"""When Celery Beat would run a periodic task, when the schedule made of it fires, and why the two differ where they do.

Beat's times come of Celery's and django-celery-beat's own classes, asked as Beat asks them: is it due, and if not, how
long is it until then? They are what Beat would do if it ran all along and was never late.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import islice, takewhile
from typing import Any

from scheduling_app.sources.beat import anchor
from scheduling_app.sources.found import Found

#: Times of each system that are compared, and how long before and after a change of the clocks.
COMPARED, AROUND = 5, timedelta(hours=6)
#: How far ahead changes of the clocks are looked for.
AHEAD = timedelta(days=366)
HOUR, LONG_AGO = timedelta(hours=1), timedelta(days=365 * 30)
#: Beat writes down its last runs so late at most; what seems overdue by less may have run.
WRITES_BEHIND = timedelta(minutes=5)

_CLOCKS = (
    "The clocks change. Beat takes a time that they skip by the offset before, and goes once through an hour that they "
    "repeat; here a fixed time that is skipped runs right after the gap, and a * follows the clocks."
)
_START = "Beat starts after the minute of its start time; here a time in that minute counts."
_UNKNOWN = "Why is not known."


@dataclass(frozen=True)
class Row:
    """A time at which one system or both of them run it; `why`, where only one does and the other was asked so far."""

    at: datetime
    in_beat: bool
    here: bool
    why: str = ""


@dataclass(frozen=True)
class Parity:
    """The next times in both systems, and where they differ around the next changes of the clocks."""

    next: list[Row]
    at_changes: list[Row]

    @property
    def differs(self) -> bool:
        return bool(self.at_changes) or any(row.why for row in self.next)


def compare(task: Any, found: Found, now: datetime) -> Parity:
    """Both systems' times after `now`: the next ones, and those around the changes of the clocks within a year."""
    timing, most = found.schedule.timing(), found.schedule.max_runs or COMPARED
    theirs = list(islice(beat_times(task, now), COMPARED))
    ours = list(islice(_seconds(timing.times_after(now)), min(most, COMPARED)))
    until = min((times[-1] for times in (theirs, ours) if len(times) == COMPARED), default=None)
    near = _rows(task, timing.zone, theirs, ours, until)
    far: list[Row] = []
    for change in changes_of(timing.zone, _hour(now)) if task.crontab and not task.one_off else []:
        start, end = max(change - AROUND, now), change + AROUND
        theirs, ours = (
            list(takewhile(lambda at: at < end, times))  # noqa: B023 it is used up at once
            for times in (beat_times(task, start), timing.times_after(start))
        )
        far += [row for row in _rows(task, timing.zone, theirs, ours, end) if row.why and row not in near]
    return Parity(near, far)


def _rows(task: Any, zone: tzinfo, theirs: list[datetime], ours: list[datetime], until: datetime | None) -> list[Row]:
    rows, in_beats, in_ours = [], set(theirs), set(ours)
    for at in sorted(in_beats | in_ours):
        in_beat, here = at in in_beats, at in in_ours
        known = in_beat != here and (until is None or at <= until)
        rows.append(Row(at, in_beat, here, _why(task, zone, at) if known else ""))
    return rows


def _why(task: Any, zone: tzinfo, at: datetime) -> str:
    if changes_of(zone, _hour(at - AROUND), 2 * AROUND):
        return _CLOCKS
    return _START if task.start_time and at - task.start_time < timedelta(minutes=1) else _UNKNOWN


@lru_cache(maxsize=1024)
def changes_of(zone: tzinfo, start: datetime, ahead: timedelta = AHEAD) -> list[datetime]:
    """The hours from `start` on within which a zone's clocks change."""
    hours = [start + number * HOUR for number in range(ahead // HOUR + 1)]
    offsets = [hour.astimezone(zone).utcoffset() for hour in hours]
    return [hour for hour, before, after in zip(hours, offsets, offsets[1:], strict=False) if before != after]


def beat_times(task: Any, now: datetime) -> Iterator[datetime]:
    """The times after `now`, in whole seconds, at which Beat would run a periodic task, in UTC."""
    for at in _seconds(_due_times(task, now.replace(microsecond=0))):
        if task.expires and at >= task.expires:
            return
        yield at
        if task.one_off:
            return


def _due_times(task: Any, at: datetime) -> Iterator[datetime]:
    schedule, last = task.schedule, at
    zone = schedule.tz  # a crontab's own, else the app's
    schedule.nowfun = lambda: at.astimezone(zone)
    if task.start_time and task.start_time > at:  # Beat looks again at its start, and takes it for due since long ago
        at = anchor(task, at) if task.interval else task.due_start_time(zone)
        last = at - LONG_AGO
    elif task.interval:
        last = anchor(task, at)
        last += (at - last) // schedule.run_every * schedule.run_every
    while True:
        is_due, wait = schedule.is_due(last.astimezone(zone))
        if is_due:
            yield at
            last = at
        at = at.astimezone(UTC) + timedelta(seconds=wait)


def notes_on(task: Any, now: datetime) -> list[str]:
    """What Beat would do besides, once, and a schedule does not."""
    if not task.enabled or task.clocked:
        return []
    if task.start_time and task.start_time > now:
        if task.interval or task.last_run_at:
            return []
        return ["Beat may also run it within five minutes of its start time, whatever its crontab says."]
    schedule, last = task.schedule, task.last_run_at or task.start_time or task.date_changed or now
    schedule.nowfun = lambda: now
    due = now + schedule.remaining_estimate(last)
    if due >= now - WRITES_BEHIND:
        return []
    return [f"Overdue since {due:%Y-%m-%d %H:%M} UTC: Beat would run it when it starts, a schedule goes on from now."]


def _seconds(times: Iterable[datetime]) -> Iterator[datetime]:
    return (at.astimezone(UTC).replace(microsecond=0) for at in times)


def _hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)
