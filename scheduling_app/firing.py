"""Firing what is due: pure decisions in `firings`, one transaction for a whole batch in `fire_due`.

Rows are locked while they are fired or planned, so an edit that committed before decides, and one that comes later
waits and decides about the next time: no old definition fires once a save has returned.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid5

from celery import current_app
from django.conf import settings
from django.db import DatabaseError, transaction
from django.db.models import Count, DateTimeField, Func

from scheduling_app.models import Schedule, ScheduleRun
from scheduling_app.triggers import Timing, TimingError, jittered
from tasks_app.exceptions import NotUnique, TaskConsoleError
from tasks_app.models import TaskRecord

logger = logging.getLogger(__name__)

#: Seconds after its time from which a run counts as caught up, not as on time.
PUNCTUAL = timedelta(seconds=5)
_NAMESPACE = UUID("6f0e2c53-6d3a-4c3c-9a4f-2f6f2d6a6e51")

#: The time itself, not that of the transaction's start: two runs by hand in one have times of their own.
_CLOCK = Func(function="clock_timestamp", output_field=DateTimeField())

Outcome, Reason = ScheduleRun.Outcome, ScheduleRun.Reason


def fire_due(limit: int = 500) -> int:
    """Fire a batch of due schedules: runs, tasks and next times in one transaction, messages after it. A count."""
    try:
        return _fire(limit, _step_all)
    except DatabaseError:
        raise
    except Exception:
        logger.exception("A batch of schedules could not be fired together; each is fired by itself.")
        return _fire(limit, _step_each)


def _fire(limit: int, step: Callable[[list[Schedule], Counter[int]], None]) -> int:
    with transaction.atomic():
        schedules = list(Schedule.objects.due(limit))
        if schedules:
            step(schedules, _unfinished(schedules))
            Schedule.objects.advance(schedules)
    return len(schedules)


def _step_all(schedules: list[Schedule], unfinished: Counter[int]) -> None:
    _submit([run for schedule in schedules for run in _step(schedule, unfinished[schedule.pk])])


def _step_each(schedules: list[Schedule], unfinished: Counter[int]) -> None:
    """The same, one by one: a schedule that cannot be fired at all stops, and says why; the others go on."""
    for schedule in schedules:
        try:
            with transaction.atomic():
                _submit(_step(schedule, unfinished[schedule.pk]))
        except DatabaseError:
            raise
        except Exception as error:
            logger.exception("Schedule %r cannot be fired.", schedule.name)
            schedule.next_fire_at, schedule.problem = None, f"{type(error).__name__}: {error}"[:500]


def plan_changed(limit: int = 500) -> int:
    """Compute the next time of a batch of schedules whose timing changed. A count."""
    with transaction.atomic():
        schedules = list(Schedule.objects.changed(limit))
        for schedule in schedules:
            _plan(schedule)
        Schedule.objects.advance(schedules)
    return len(schedules)


def next_wake_up() -> datetime | None:
    """When there is next something to fire, or to plan."""
    due = Schedule.objects.filter(enabled=True, next_fire_at__isnull=False).order_by("next_fire_at")
    changed = Schedule.objects.filter(changed_at__isnull=False).order_by("changed_at")
    times = [*due.values_list("next_fire_at", flat=True)[:1], *changed.values_list("changed_at", flat=True)[:1]]
    return min(times, default=None)


def run_now(schedule: Schedule, by: str = "") -> ScheduleRun:
    """Run a schedule's task once, at once, with its own settings; its times stay as they are."""
    with transaction.atomic():
        at = Schedule.objects.values_list(_CLOCK, flat=True).get(pk=schedule.pk)
        run = _fired(schedule, at, Reason.MANUAL, f"by {by}" if by else "")
        _submit([run])
    return run


def _plan(schedule: Schedule) -> None:
    schedule.next_fire_at, schedule.problem = None, ""
    try:
        schedule.next_fire_at = schedule.timing().next_after(schedule.changed_at)
    except TimingError as error:
        schedule.problem = f"{error.field}: {error}"[:500]
        logger.error("Schedule %r cannot fire: %s", schedule.name, schedule.problem)


def _step(schedule: Schedule, running: int) -> list[ScheduleRun]:
    """The runs of a due schedule, which moves on to its next time."""
    try:
        timing = schedule.timing()
    except TimingError as error:  # changed by SQL past the trigger, or by an update of the zones
        schedule.next_fire_at, schedule.problem = None, f"{error.field}: {error}"[:500]
        return []
    first, now = schedule.next_fire_at, schedule.database_now
    times, following = _due_times(schedule, timing, now)
    schedule.last_fire_at, schedule.next_fire_at = now, following
    runs = []
    for at in times:
        run = _judged(schedule, at, now, running)
        running += run.outcome == Outcome.FIRED
        runs.append(run)
    if times[0] != first:
        runs[0].detail = f"{runs[0].detail} Stands for the times missed since {first:%Y-%m-%d %H:%M:%S} UTC.".strip()
    return runs


def _due_times(schedule: Schedule, timing: Timing, now: datetime) -> tuple[list[datetime], datetime | None]:
    """The times up to `now` to act on, each or the latest alone, and the time that follows them."""
    first = schedule.next_fire_at
    if schedule.catch_up == Schedule.CatchUp.ALL:
        return _walk(timing, first, now, Schedule.MAX_CATCH_UP)
    window = timedelta(minutes=1)
    while window < now - first:  # looks back further and further, so that a long downtime is not walked through
        if (start := timing.next_after(now - window)) and start <= now:
            first = start
            break
        window *= 8
    times, following = _walk(timing, first, now)
    return times[-1:], following


def _walk(timing: Timing, first: datetime, now: datetime, limit: int | None = None):
    """`first` and the times that follow it up to `now`, at most `limit`, and the one after these."""
    times = [first]
    for at in timing.times_after(first):
        if at > now or len(times) == limit:
            return times, at
        times.append(at)
    return times, None


def _judged(schedule: Schedule, at: datetime, now: datetime, running: int) -> ScheduleRun:
    late, grace = now - at, schedule.misfire_grace_time
    if grace is not None and late > timedelta(seconds=grace):
        return _skipped(schedule, at, Reason.MISFIRE, f"{late.total_seconds():.0f} s late, {grace} s are allowed.")
    if schedule.max_instances and running >= schedule.max_instances:
        return _skipped(schedule, at, Reason.OVERLAP, f"{running} unfinished, {schedule.max_instances} allowed.")
    return _fired(schedule, at, Reason.DUE if late <= PUNCTUAL else Reason.CAUGHT_UP)


def _fired(schedule: Schedule, at: datetime, reason: str, detail: str = "") -> ScheduleRun:
    task_id = str(uuid5(_NAMESPACE, f"{schedule.pk} {at.timestamp()}"))
    return ScheduleRun(
        schedule=schedule, scheduled_for=at, outcome=Outcome.FIRED, reason=reason, detail=detail, record_id=task_id
    )


def _skipped(schedule: Schedule, at: datetime, reason: str, detail: str) -> ScheduleRun:
    return ScheduleRun(schedule=schedule, scheduled_for=at, outcome=Outcome.SKIPPED, reason=reason, detail=detail[:500])


def _submit(runs: Sequence[ScheduleRun]) -> None:
    """Insert the runs, and the tasks of those that are new; a run whose task cannot be made is recorded as skipped."""
    records = {}
    for run in runs:
        if run.outcome == Outcome.FIRED:
            try:
                records[run.schedule_id, run.scheduled_for] = _record(run)
            except (TaskConsoleError, TypeError, ValueError) as error:
                run.outcome, run.reason, run.record_id = Outcome.SKIPPED, Reason.INVALID, None
                run.detail = str(error)[:500]
    inserted = ScheduleRun.objects.insert(runs)
    new = [record for key, record in records.items() if key in inserted]
    for record in current_app.submit_new(new) if new else []:
        try:
            current_app.submit_one(record)  # the other may have ended just now
        except NotUnique as error:
            _skip_not_unique(next(run for run in runs if run.record_id == record.task_id), error)


def _skip_not_unique(run: ScheduleRun, error: NotUnique) -> None:
    changes = {"outcome": Outcome.SKIPPED, "reason": Reason.OVERLAP, "detail": str(error)[:500]}
    key = {"schedule": run.schedule, "scheduled_for": run.scheduled_for}
    ScheduleRun.objects.filter(**key).update(**changes, record=None)
    run.outcome, run.reason, run.detail, run.record_id = *changes.values(), None


def _record(run: ScheduleRun) -> TaskRecord:
    schedule = run.schedule
    eta = None
    if schedule.jitter and run.reason == Reason.DUE:
        eta = jittered(schedule.pk, run.scheduled_for, schedule.jitter, schedule.next_fire_at)
    return current_app.build_record(
        schedule.task,
        schedule.args,
        schedule.kwargs,
        task_id=run.record_id,
        queue=schedule.queue or settings.CRON_QUEUE,
        priority=schedule.priority,
        expires=schedule.expires_after,
        eta=eta,
        headers={"periodic_task_name": schedule.name},
    )


def _unfinished(schedules: Sequence[Schedule]) -> Counter[int]:
    """How many tasks of each schedule are unfinished, for those that limit it."""
    limited = [schedule.pk for schedule in schedules if schedule.max_instances]
    if not limited:
        return Counter()
    unfinished = TaskRecord.objects.unfinished().filter(schedule_run__schedule__in=limited)
    counts = unfinished.values_list("schedule_run__schedule").annotate(count=Count("pk"))
    return Counter(dict(counts.order_by()))
