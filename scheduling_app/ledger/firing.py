"""Firing what is due: decisions are those of `policies`; here is one transaction for a whole batch of them.

Rows are locked while they are fired or planned, so an edit that committed before decides, and one that comes later
waits and decides about the next time: no old definition fires once a save has returned.
"""

import logging
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from django.db import connection, transaction
from django.db.models import Count, Func, QuerySet
from django.db.models.functions import Now

from scheduling_app.conf import conf
from scheduling_app.ledger.policies import (
    Judge,
    Outcome,
    Overlap,
    Reason,
    Run,
    Standing,
    due_times,
    expires_at,
    failures,
)
from scheduling_app.models import Calendar, Schedule, ScheduleQuerySet, ScheduleRun
from scheduling_app.outages import is_away
from scheduling_app.signatures import arguments_of, drift, named_queue
from scheduling_app.timing.blackout import Blackout
from scheduling_app.timing.clocks import TimingError
from scheduling_app.timing.kinds import jittered
from tasks_app import states
from tasks_app.exceptions import DuplicateTask, NotUnique, TaskConsoleError
from tasks_app.guard import RETRY_HEADER
from tasks_app.models import TaskRecord
from tasks_app.moments import MomentField
from tasks_app.recording import current_app
from tasks_app.statements import check_constraints, execute, load
from tasks_app.storable import printable

logger = logging.getLogger(__name__)

#: Rows of runs after which a batch is full: many schedules may each have missed many times.
MOST_RUNS = 1000
#: Seconds of judging after which it is full, too: what a batch has locked, nobody else can have.
STEPPING = 0.3
#: A schedule's old runs are deleted once in so many new ones.
TRIMMED_EACH = 100
_NAMESPACE = UUID("6f0e2c53-6d3a-4c3c-9a4f-2f6f2d6a6e51")

#: The time itself, not that of the transaction's start: two runs by hand in one have times of their own.
_CLOCK = Func(function="clock_timestamp", output_field=MomentField())


class Batch:
    """What becomes of some schedules that are due; `write` does it, in the transaction that has locked them."""

    def __init__(self) -> None:
        self.schedules: list[Schedule] = []
        self.runs: list[Run] = []
        self._patterns = Patterns()
        self._cancelling: list[Schedule] = []
        self._failing: list[Schedule] = []

    def step(self, schedule: Schedule, standing: Standing) -> None:
        """Judge its due times, and move it on to its next one."""
        self.schedules.append(schedule)
        try:
            timing = schedule.timing()
        except TimingError as error:  # changed by SQL past the trigger, or by an update of the zones
            schedule.next_fire_at, schedule.problem = None, f"{error.field}: {error}"[:500]
            return
        assert schedule.next_fire_at is not None  # it is due
        due = due_times(timing, schedule.next_fire_at, schedule.database_now)
        judge = Judge(schedule, due, standing, self._patterns.drift_of(schedule))
        self.runs += judge.runs()
        schedule.last_fire_at, schedule.next_fire_at = schedule.database_now, due.following
        if judge.cancels:
            self._cancelling.append(schedule)
        if standing.failed:
            self._failing.append(schedule)

    def write(self) -> None:
        _cancel_unfinished(self._cancelling)
        inserted = submit(self.runs, self._patterns)
        for run in self.runs:
            if run.outcome != Outcome.SKIPPED and (run.schedule.pk, run.scheduled_for) in inserted:
                run.schedule.fired_count = min(run.schedule.fired_count + 1, Schedule.MOST_FIRED)
        for schedule in self.schedules:
            if schedule.is_used_up:
                schedule.next_fire_at = None
        Schedule.objects.advance(self.schedules)
        for schedule in self._failing:
            Schedule.objects.filter(pk=schedule.pk).set_enabled(False, failures(schedule))
            logger.warning("Schedule %r pauses itself. %s", schedule.name, failures(schedule))
        trim({run.schedule.pk for run in self.runs if random.random() < 1 / TRIMMED_EACH})  # noqa: S311


def fire_due(limit: int = 500, newest_first: bool = False) -> int:
    """Fire a batch of due schedules: runs, tasks and next times in one transaction, messages after it. A count.

    `newest_first`: those that have just come due before those that are late, which may have missed much.
    """
    try:
        return _fire(Schedule.objects.all(), limit, newest_first)
    except Exception as error:
        if is_away(error):
            raise
        logger.exception("A batch of schedules could not be fired together; each is fired by itself.")
        return fire_each(limit)


def fire_each(limit: int = 500) -> int:
    """The same, one by one: a fault of one, be it an error of the database, is recorded, and the others fire."""
    due = Schedule.objects.filter(enabled=True, next_fire_at__lte=Now()).order_by("next_fire_at")
    return sum(_fire_one(pk) for pk in list(due.values_list("pk", flat=True)[:limit]))


def _fire(schedules: ScheduleQuerySet, limit: int, newest_first: bool = False) -> int:
    with transaction.atomic():
        due = load(schedules.due(limit, newest_first))
        fired = _step_all(due, _standings(due)) if due else 0
        if fired > 1:
            check_constraints()
        return fired


def _step_all(schedules: list[Schedule], standings: dict[int, Standing]) -> int:
    batch, give_up_at = Batch(), time.monotonic() + STEPPING
    for schedule in schedules:
        if len(batch.runs) >= MOST_RUNS or (batch.schedules and time.monotonic() > give_up_at):
            break
        batch.step(schedule, standings[schedule.pk])
    batch.write()
    return len(batch.schedules)


def _fire_one(pk: int) -> int:
    try:
        return _fire(Schedule.objects.filter(pk=pk), 1)
    except Exception as error:
        if is_away(error):
            raise
        logger.exception("Schedule %s cannot be fired.", pk)
        return _move_on(pk, said(error))


def _move_on(pk: int, said: str) -> int:
    """Record its due time as invalid, and go on to the next one; where not even that can be, leave it as it is."""
    try:
        with transaction.atomic():
            schedules = load(Schedule.objects.filter(pk=pk).due(1))
            for schedule in schedules:
                at = schedule.next_fire_at
                ScheduleRun.objects.insert([Run(schedule, at, Outcome.SKIPPED, Reason.INVALID, said)])
                schedule.last_fire_at = schedule.database_now
                try:
                    schedule.next_fire_at = schedule.timing().next_after(schedule.database_now)
                except Exception:  # it is the timing, then: there is no next one
                    schedule.next_fire_at, schedule.problem = None, said
            Schedule.objects.advance(schedules)
            return len(schedules)
    except Exception as error:
        if is_away(error):
            raise
        logger.exception("Nor can it be recorded that schedule %s cannot be fired.", pk)
        return 0


def run_now(schedule: Schedule, by: str = "") -> Run:
    """Run a schedule's task once, at once, with its own settings; its times stay as they are."""
    with transaction.atomic():
        at = Schedule.objects.values_list(_CLOCK, flat=True).get(pk=schedule.pk)
        detail = f"by {by}" if by else ""
        run = Run(schedule, at, Outcome.FIRED, Reason.MANUAL, detail, following=schedule.next_fire_at)
        submit([run])
    return run


def submit(runs: Sequence[Run], patterns: "Patterns | None" = None) -> set[tuple[int, datetime]]:
    """Insert the runs, and the tasks of those that are new: (id of the schedule, due time) of these.

    A run whose task cannot be made is recorded as skipped.
    """
    records = make_records(runs, patterns)
    inserted = ScheduleRun.objects.insert(runs)
    submit_records(runs, [record for key, record in records.items() if key in inserted])
    return inserted


def make_records(runs: Iterable[Run], patterns: "Patterns | None" = None) -> dict[tuple[int, datetime], TaskRecord]:
    """The tasks of those that are to fire, by schedule and due time; what has none is marked as skipped, and why."""
    records, patterns = {}, Patterns() if patterns is None else patterns
    for run in runs:
        if run.outcome == Outcome.FIRED:
            try:
                records[run.schedule.pk, run.scheduled_for] = _record(run, patterns)
            except (TaskConsoleError, TypeError, ValueError, OverflowError) as error:
                run.skip(Reason.INVALID, str(error))
    return records


class Patterns(dict[tuple[Any, ...], TaskRecord]):
    """Records from which those of a batch are made, by what schedules say of a task besides its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self._drifts: dict[int, str] = {}

    def drift_of(self, schedule: Schedule) -> str:
        """Why no record can be made of this one; "" mostly."""
        if (said := self._drifts.get(schedule.id)) is None:
            said = self._drifts[schedule.id] = drift(schedule)
        return said

    def of(self, schedule: Schedule, args: Any, kwargs: Any) -> TaskRecord:
        key = (schedule.task, schedule.queue, schedule.priority, schedule.soft_time_limit, schedule.time_limit)
        if key not in self:
            name, _, priority, soft, hard = key
            options = {"priority": priority} | ({"queue": queue} if (queue := named_queue(schedule)) else {})
            limits = {"soft_time_limit": soft, "time_limit": hard}
            self[key] = current_app.build_record(name, args, kwargs, announce=False, **options, **limits)
        return self[key]


def submit_records(runs: Iterable[Run], records: Sequence[TaskRecord]) -> None:
    """Submit the tasks of runs that are written; one that is not unique leaves its run as skipped."""
    for record in current_app.submit_new(records) if records else []:
        try:
            current_app.submit_one(record)  # the other may have ended just now
        except NotUnique as error:
            _skip_not_unique(next(run for run in runs if run.record_id == record.task_id), error)
        except DuplicateTask:  # it was made before, and its run was deleted since: the row has it again
            logger.warning("Task %s of a due time was there already.", record.task_id)


def trim(schedule_ids: Iterable[int]) -> None:
    """Delete the runs of these schedules that are older than those that are kept of each, and settled."""
    if ids := list(schedule_ids):
        execute(_TRIM, [conf.SCHEDULE_RUNS_KEPT, ids, list(states.UNREADY_STATES)])


def _standings(schedules: Sequence[Schedule]) -> dict[int, Standing]:
    """What the policies of these need to know, by a query for each kind of policy that one of them has."""
    standings: dict[int, Standing] = defaultdict(Standing)
    if overlapping := [schedule.pk for schedule in schedules if schedule.overlap != Overlap.ALLOW]:
        runs = ScheduleRun.objects.filter(schedule__in=overlapping, backfill=None)  # a backfill has a limit of its own
        for pk, count in _counts(runs.unfinished()):
            standings[pk].unfinished = count
        for pk, count in _counts(runs.filter(outcome=Outcome.WAITING)):
            standings[pk].waiting = count
    if watched := [schedule for schedule in schedules if schedule.pause_after_failures]:
        for pk in _failing(watched):
            standings[pk].failed = True
    if calendars := {each.blackout_id for each in schedules if each.blackout_id is not None}:
        named = Calendar.objects.filter(pk__in=calendars).prefetch_related("windows")
        blackouts = {calendar.pk: _blackout(calendar) for calendar in named}
        for schedule in schedules:
            if schedule.blackout_id is not None:
                standings[schedule.pk].blackout = blackouts[schedule.blackout_id]
    return standings


def _counts(runs: QuerySet[ScheduleRun]) -> Iterable[tuple[int, int]]:
    return runs.order_by().values_list("schedule").annotate(count=Count("pk"))


def _blackout(calendar: Calendar) -> Blackout | str:
    try:
        return calendar.blackout()
    except TimingError as error:
        return f"Calendar {calendar.name}: {error.field}: {error}"
    except Exception as error:  # written by SQL: the schedules that go by it are told of it, and the others fire
        logger.exception("Calendar %r cannot be read.", calendar.name)
        return f"Calendar {calendar.name}: {said(error)}"


def _failing(schedules: Sequence[Schedule]) -> list[int]:
    """Which of them failed so often in a row, since they were last switched on, that they are to pause."""
    with connection.cursor() as cursor:
        cursor.execute(_FAILING, [[each.pk for each in schedules], states.FAILURE, list(states.READY_STATES)])
        return [row[0] for row in cursor.fetchall()]


def _cancel_unfinished(schedules: Sequence[Schedule]) -> None:
    if schedules:
        runs = ScheduleRun.objects.filter(schedule__in=schedules, backfill=None).unfinished()
        current_app.control.revoke(list(runs.values_list("record", flat=True)), terminate=True)


def _skip_not_unique(run: Run, error: NotUnique) -> None:
    run.skip(Reason.OVERLAP, str(error))
    row = ScheduleRun.objects.filter(schedule=run.schedule, scheduled_for=run.scheduled_for)
    row.update(outcome=run.outcome, reason=run.reason, detail=run.detail, record=None)


def _record(run: Run, patterns: Patterns) -> TaskRecord:
    """A run's task, under an id that any scheduler would give it. Raises TaskConsoleError, TypeError, ValueError."""
    schedule, at = run.schedule, run.scheduled_for
    if complaint := patterns.drift_of(schedule):
        raise ValueError(complaint)
    starts_at = run.starts_at
    if starts_at is None and schedule.jitter and run.reason in (Reason.DUE, Reason.LATE) and not run.has_waited:
        starts_at = jittered(schedule.pk, at, schedule.jitter, run.following)
    args, kwargs = arguments_of(schedule, at)
    headers = schedule.headers | {"periodic_task_name": schedule.name, "scheduled_for": at.isoformat()}
    if schedule.max_retries:
        headers[RETRY_HEADER] = {"max_retries": schedule.max_retries, "backoff": schedule.retry_backoff or 0}
    key = f"{schedule.pk} {at.timestamp()}" + (f" backfill {run.backfill_id}" if run.backfill_id else "")
    run.record_id = str(uuid5(_NAMESPACE, key))
    now = getattr(schedule, "database_now", None) or max(at, starts_at or at)
    expires = expires_at(schedule, max(now, starts_at or now), run.following)
    pattern = patterns.of(schedule, args, kwargs)
    return current_app.build_like(
        pattern, args, kwargs, task_id=run.record_id, eta=starts_at, expires=expires, headers=headers
    )


_SCHEDULES, _RUNS, _TASKS = (model._meta.db_table for model in (Schedule, ScheduleRun, TaskRecord))
_FAILING = f"""
SELECT watched.id FROM {_SCHEDULES} AS watched
WHERE watched.id = ANY(%s) AND watched.pause_after_failures = (
    SELECT count(*) FILTER (WHERE last.state = %s) FROM (
        SELECT task.state FROM {_RUNS} AS run JOIN {_TASKS} AS task ON task.task_id = run.record_id
        WHERE run.schedule_id = watched.id AND run.fired_at > watched.switched_at AND task.state = ANY(%s)
        ORDER BY run.scheduled_for DESC LIMIT watched.pause_after_failures
    ) AS last
)
"""
_TRIM = f"""
DELETE FROM {_RUNS} AS run USING (
    SELECT schedule.id, (
        SELECT scheduled_for FROM {_RUNS} WHERE schedule_id = schedule.id ORDER BY scheduled_for DESC OFFSET %s LIMIT 1
    ) AS last
    FROM unnest(%s::bigint[]) AS schedule (id)
) AS old
WHERE run.schedule_id = old.id AND run.scheduled_for <= old.last AND run.outcome <> 'waiting'
AND run.backfill_id IS NULL AND NOT EXISTS (
    SELECT FROM {_TASKS} AS task WHERE task.task_id = run.record_id AND task.state = ANY(%s)
)
"""


def said(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}")[:500]
