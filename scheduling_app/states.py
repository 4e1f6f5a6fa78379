"""The state of a schedule in a word, and what a page says about it besides."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property

from django.contrib.postgres.expressions import ArraySubquery
from django.db.models import F, OuterRef, Q
from django.db.models.functions import JSONObject

from scheduling_app.ledger.marks import FIELDS, Mark
from scheduling_app.ledger.policies import PUNCTUAL
from scheduling_app.models import Schedule, ScheduleRun
from scheduling_app.signatures import drift, queue_of
from scheduling_app.timing.clocks import TimingError
from tasks_app import moments
from tasks_app.storable import printable

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


class ScheduleRow:
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

    @cached_property
    def drift(self) -> str:
        """Why its task would not run, as this process knows it: it is not there, or does not take the arguments."""
        return drift(self.schedule)

    @property
    def queue(self) -> str:
        return queue_of(self.schedule)

    @property
    def next_run_at(self) -> datetime | None:
        return self.schedule.next_fire_at if self.state == ON else None

    @property
    def is_overdue(self) -> bool:
        return self.next_run_at is not None and self.next_run_at < moments.now() - PUNCTUAL

    @property
    def last_run_at(self) -> datetime | None:
        """When it was last acted on, by hand or by a scheduler."""
        return max((mark.fired_at for mark in self.marks if mark.fired_at), default=self.schedule.last_fire_at)


def rows_of(schedules: Iterable[Schedule]) -> list[ScheduleRow]:
    """These schedules with their last outcomes, by one query: a short index scan for each."""
    schedules = list(schedules)
    runs = ScheduleRun.objects.filter(schedule=OuterRef("pk")).order_by("-scheduled_for")
    run = JSONObject(**{name: F(name) for name in FIELDS})
    last = Schedule.objects.filter(pk__in=[schedule.pk for schedule in schedules]).values_list(
        "pk", ArraySubquery(runs.values(run=run)[:LAST])
    )
    marks = {pk: [Mark.of(run) for run in reversed(found)] for pk, found in last.order_by()}
    return [ScheduleRow(schedule, marks.get(schedule.pk, ())) for schedule in schedules]
