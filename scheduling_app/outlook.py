"""What a schedule is up to, for whoever looks at it: its state in a word, what comes, what became of the last times.

The coming times are those that fire: from the timing that schedulers go by, with the jitter that they add.
"""

from dataclasses import dataclass
from datetime import datetime

from django.contrib.postgres.expressions import ArraySubquery
from django.db.models import F, OuterRef, Q, QuerySet
from django.db.models.functions import JSONObject

from scheduling_app.models import Schedule, ScheduleRun
from scheduling_app.triggers import PreviewTime, Timing, TimingError, jittered, preview

#: How many of the last outcomes are shown beside a schedule.
LAST = 10

PROBLEM, PAUSED, PLANNING, FINISHED, ON = "problem", "paused", "planning", "finished", "on"
#: Which schedules are in which state; each is in exactly one.
STATES = {
    ON: Q(problem="", enabled=True, changed_at=None, next_fire_at__isnull=False),
    PAUSED: Q(problem="", enabled=False),
    FINISHED: Q(problem="", enabled=True, changed_at=None, next_fire_at=None),
    PLANNING: Q(problem="", enabled=True, changed_at__isnull=False),
    PROBLEM: ~Q(problem=""),
}
STATE_WORDS = {ON: "on", PAUSED: "paused", FINISHED: "finished", PLANNING: "being planned", PROBLEM: "problem"}


def state_of(schedule: Schedule) -> str:
    if schedule.problem:
        return PROBLEM
    if not schedule.enabled:
        return PAUSED
    if schedule.changed_at:
        return PLANNING
    return ON if schedule.next_fire_at else FINISHED


def words(schedule: Schedule) -> str:
    """Its timing in a few words; as it was written, where it is at fault."""
    try:
        return schedule.timing().describe()
    except TimingError:
        return schedule.cron or f"every {schedule.every} {schedule.unit}"


@dataclass(frozen=True)
class Upcoming:
    """A coming time: when it is due, what the clocks do to it, and when jitter lets it start (None: not known)."""

    due: PreviewTime
    starts_at: datetime | None


def upcoming(timing: Timing, now: datetime, count: int, *, key: int | None, jitter: int = 0) -> list[Upcoming]:
    """The next `count` times after `now`; `key` is the schedule's primary key, None before it has one."""
    times = preview(timing, now, count + 1)
    following = [time.at for time in times[1:]] + [None]
    return [
        Upcoming(time, jittered(key, time.at, jitter, after) if key is not None else None)
        for time, after in list(zip(times, following, strict=True))[:count]
    ]


def with_last_runs(schedules: QuerySet[Schedule]) -> QuerySet[Schedule]:
    """Each with `last_runs`, the newest first, as dicts; one short index scan a schedule."""
    runs = ScheduleRun.objects.filter(schedule=OuterRef("pk")).order_by("-scheduled_for")
    run = JSONObject(
        at=F("scheduled_for"),
        fired_at=F("fired_at"),
        outcome=F("outcome"),
        reason=F("reason"),
        detail=F("detail"),
        task_id=F("record_id"),
        state=F("record__state"),
    )
    return schedules.annotate(last_runs=ArraySubquery(runs.values(run=run)[:LAST]))
