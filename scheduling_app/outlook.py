"""What a schedule is up to, for whoever looks at it: its state in a word, what comes, what became of the last times.

The coming times are those that fire: from the timing that schedulers go by, with the jitter that they add.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Self

from django.conf import settings
from django.contrib.postgres.expressions import ArraySubquery
from django.db.models import F, OuterRef, Q
from django.db.models.functions import JSONObject
from django.utils import timezone

from scheduling_app.models import Schedule, ScheduleRun
from scheduling_app.policies import PUNCTUAL
from scheduling_app.triggers import PreviewTime, Timing, TimingError, jittered, preview
from tasks_app.models import TaskRecord, printable

_RUN = (
    "scheduled_for",
    "fired_at",
    "outcome",
    "reason",
    "detail",
    "record_id",
    "record__state",
    "record__eta",
    "record__parked_at",
)
#: Characters of a schedule's arguments that are shown on its page; the form has all of them.
SHOWN = 2000
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


@dataclass(frozen=True)
class Mark:
    """What became of one due time."""

    scheduled_for: datetime
    fired_at: datetime
    #: Where its task is, in the words of TaskRecord.phase; "skipped" where none was made, "waiting" where one will be,
    #: "fired" where it was deleted.
    phase: str
    reason: str
    detail: str
    task_id: str | None

    @classmethod
    def of(cls, run: dict) -> Self:
        """From the fields in _RUN, from JSON or not."""
        return cls(
            scheduled_for=_moment(run["scheduled_for"]),
            fired_at=_moment(run["fired_at"]),
            phase=_phase(run),
            reason=ScheduleRun.Reason(run["reason"]).label,
            detail=run["detail"],
            task_id=run["record_id"],
        )

    @property
    def late(self) -> timedelta:
        return self.fired_at - self.scheduled_for


class Outlook:
    """A schedule, and what a page says about it."""

    def __init__(self, schedule: Schedule, marks: Sequence[Mark] = ()):
        self.schedule = schedule
        #: Its last outcomes, the oldest first.
        self.marks = marks

    @property
    def state(self) -> str:
        schedule = self.schedule
        if schedule.problem:
            return PROBLEM
        if not schedule.enabled:
            return PAUSED
        if schedule.changed_at:
            return PLANNING
        return ON if schedule.next_fire_at else FINISHED

    @property
    def state_word(self) -> str:
        return STATE_WORDS[self.state]

    @cached_property
    def words(self) -> str:
        """Its timing in a few words; as it was written, where it is at fault."""
        schedule = self.schedule
        try:
            return schedule.timing().describe()
        except TimingError:
            return schedule.cron or f"every {schedule.every} {schedule.unit}"

    @property
    def arguments(self) -> list[tuple[str, str, int]]:
        """What its task is given: a name, the JSON, and how many characters of that were cut off."""
        given = {"Arguments": self.schedule.args, "Keyword arguments": self.schedule.kwargs}
        texts = {name: printable(json.dumps(value, ensure_ascii=False)) for name, value in given.items() if value}
        return [(name, text[:SHOWN], max(len(text) - SHOWN, 0)) for name, text in texts.items()]

    @property
    def queue(self) -> str:
        return self.schedule.queue or settings.CRON_QUEUE

    @property
    def next_run_at(self) -> datetime | None:
        return self.schedule.next_fire_at if self.state == ON else None

    @property
    def is_overdue(self) -> bool:
        return self.next_run_at is not None and self.next_run_at < timezone.now() - PUNCTUAL

    @property
    def last_run_at(self) -> datetime | None:
        """When it was last acted on, by hand or by a scheduler."""
        return max((mark.fired_at for mark in self.marks), default=self.schedule.last_fire_at)


@dataclass(frozen=True)
class Upcoming:
    """A coming time: when it is due, what the clocks do to it, and where jitter puts its start (None: not known)."""

    due: PreviewTime
    starts_at: datetime | None


def upcoming(timing: Timing, now: datetime, count: int, *, key: int | None, jitter: int = 0) -> list[Upcoming]:
    """The next `count` times after `now`; `key` is the schedule's primary key, None before it has one."""
    times = preview(timing, now, count + 1)
    following = [*(time.at for time in times[1:]), None][: len(times)]
    starts = [
        None if key is None else jittered(key, time.at, jitter, after).astimezone(time.local.tzinfo)
        for time, after in zip(times, following, strict=True)
    ]
    return [Upcoming(time, start) for time, start in zip(times[:count], starts, strict=False)]


@dataclass(frozen=True)
class Preview:
    """What a timing means: words and coming times, or what is wrong with it, as (label of the field, complaint)."""

    timing: Timing | None = None
    times: Sequence[Upcoming] = ()
    jitter: int = 0
    complaints: Sequence[tuple[str, str]] = ()

    @property
    def clock(self) -> str:
        """Django's format of a time of day: with seconds where they matter."""
        return "H:i:s" if any(time.due.at.second for time in self.times) else "H:i"


def outlooks(schedules: Iterable[Schedule]) -> list[Outlook]:
    """These schedules with their last outcomes, by one query: a short index scan for each."""
    schedules = list(schedules)
    runs = ScheduleRun.objects.filter(schedule=OuterRef("pk")).order_by("-scheduled_for")
    run = JSONObject(**{name: F(name) for name in _RUN})
    last = Schedule.objects.filter(pk__in=[schedule.pk for schedule in schedules]).values_list(
        "pk", ArraySubquery(runs.values(run=run)[:LAST])
    )
    marks = {pk: [Mark.of(run) for run in reversed(found)] for pk, found in last.order_by()}
    return [Outlook(schedule, marks.get(schedule.pk, ())) for schedule in schedules]


def runs_of(schedule: Schedule, count: int, before: datetime | None = None) -> list[Mark]:
    """Its runs, the newest first, of due times earlier than `before`."""
    runs = schedule.runs.filter(scheduled_for__lt=before) if before else schedule.runs.all()
    return [Mark.of(run) for run in runs.order_by("-scheduled_for").values(*_RUN)[:count]]


def marks_between(schedule: Schedule, start: datetime, end: datetime) -> list[Mark]:
    """Its runs of the due times from `start` to `end`, the oldest first."""
    runs = schedule.runs.filter(scheduled_for__gte=start, scheduled_for__lte=end)
    return [Mark.of(run) for run in runs.order_by("scheduled_for").values(*_RUN)]


def _phase(run: dict) -> str:
    if run["outcome"] != ScheduleRun.Outcome.FIRED:
        return run["outcome"]
    if run["record__state"] is None:
        return "fired"
    eta = run["record__eta"]
    record = TaskRecord(state=run["record__state"], eta=eta and _moment(eta), parked_at=run["record__parked_at"])
    return record.phase


def _moment(value: datetime | str) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value
