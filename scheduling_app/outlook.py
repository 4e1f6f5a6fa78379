"""What a schedule is up to, for whoever looks at it: its state in a word, and what became of its times."""

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

from scheduling_app.models import Backfill, Schedule, ScheduleRun
from scheduling_app.policies import PUNCTUAL
from scheduling_app.triggers import TimingError
from tasks_app.models import TaskRecord, printable

_RUN = (
    "scheduled_for",
    "fired_at",
    "outcome",
    "reason",
    "detail",
    "backfill_id",
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
    #: When it was decided about: fired or skipped.
    fired_at: datetime | None
    #: Where its task is, in the words of TaskRecord.phase; "skipped" where none was made, "waiting" where one will be,
    #: "fired" where it was deleted.
    phase: str
    reason: str
    detail: str
    task_id: str | None

    @classmethod
    def of(cls, run: dict) -> Self:
        """From the fields in _RUN, from JSON or not."""
        waits = run["outcome"] == ScheduleRun.Outcome.WAITING
        return cls(
            scheduled_for=_moment(run["scheduled_for"]),
            fired_at=None if waits else _moment(run["fired_at"]),
            phase=_phase(run),
            reason=_waits_for(run) if waits else ScheduleRun.Reason(run["reason"]).label,
            detail=run["detail"],
            task_id=run["record_id"],
        )

    @property
    def is_fired(self) -> bool:
        return self.phase not in (ScheduleRun.Outcome.SKIPPED, ScheduleRun.Outcome.WAITING)

    @property
    def late(self) -> timedelta | None:
        return self.fired_at - self.scheduled_for if self.fired_at else None


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
        """What its task and its message are given: a name, the JSON, and how many characters of that were cut off."""
        schedule = self.schedule
        given = {"Arguments": schedule.args, "Keyword arguments": schedule.kwargs, "Headers": schedule.headers}
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
        return max((mark.fired_at for mark in self.marks if mark.fired_at), default=self.schedule.last_fire_at)


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


def runs_of(source: Schedule | Backfill, count: int, before: datetime | None = None) -> list[Mark]:
    """The runs of a schedule or of a backfill, the newest first, of due times earlier than `before`."""
    runs = source.runs.filter(scheduled_for__lt=before) if before else source.runs.all()
    return [Mark.of(run) for run in runs.order_by("-scheduled_for").values(*_RUN)[:count]]


def marks_between(schedule: Schedule, start: datetime, end: datetime) -> list[Mark]:
    """Its runs of the due times from `start` to `end`, the oldest first."""
    runs = schedule.runs.filter(scheduled_for__gte=start, scheduled_for__lte=end)
    return [Mark.of(run) for run in runs.order_by("scheduled_for").values(*_RUN)]


def _waits_for(run: dict) -> str:
    if run["backfill_id"] is None:
        return "until an earlier run has ended"
    reason = ScheduleRun.Reason(run["reason"])
    return "for its turn in a backfill" + ("" if reason == reason.BACKFILL else f"; before: {reason.label}")


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
