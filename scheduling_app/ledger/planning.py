"""Planning: the next time of each schedule whose timing changed, and a run for what it had missed before."""

import logging
import time
from datetime import datetime

from django.db import transaction

from scheduling_app.ledger.firing import MOST_RUNS, STEPPING, said, trim
from scheduling_app.ledger.policies import Outcome, Reason, Run, due_times, left_out
from scheduling_app.models import Schedule, ScheduleQuerySet, ScheduleRun
from scheduling_app.outages import is_away
from scheduling_app.timing.clocks import TimingError

logger = logging.getLogger(__name__)

_TIMES = ("run_at", "start_at", "end_at", "created_at")


def plan_changed(limit: int = 500) -> int:
    """Compute the next time of a batch of schedules whose timing changed. A count."""
    try:
        return _plan_all(Schedule.objects.all(), limit)
    except Exception as error:
        if is_away(error):
            raise
        logger.exception("A batch of schedules could not be planned together; each is planned by itself.")
    changed = Schedule.objects.filter(changed_at__isnull=False).order_by("changed_at")
    return sum(_plan_one(pk) for pk in list(changed.values_list("pk", flat=True)[:limit]))


def _plan_all(schedules: ScheduleQuerySet, limit: int) -> int:
    planned, missed, give_up_at = list[Schedule](), list[Run](), time.monotonic() + STEPPING
    with transaction.atomic():
        for schedule in schedules.changed(limit):
            if planned and (len(missed) >= MOST_RUNS or time.monotonic() > give_up_at):
                break
            missed += _missed(schedule)
            _plan(schedule)
            planned.append(schedule)
        ScheduleRun.objects.insert(missed)
        trim({run.schedule.pk for run in missed})
        Schedule.objects.advance(planned)
    return len(planned)


def _plan_one(pk: int) -> int:
    try:
        return _plan_all(Schedule.objects.filter(pk=pk), 1)
    except Exception as error:
        if is_away(error):
            raise
        logger.exception("Schedule %s cannot be planned.", pk)
        return 0


def _missed(schedule: Schedule) -> list[Run]:
    """A run for each time that passed before it was paused or edited, and that no scheduler had come to."""
    kept = schedule.missed
    if kept is None:
        return []
    detail = f"{'It was paused' if kept.pop('is_paused') else 'Its timing was changed'} before it fired."
    try:
        times = {name: kept[name] and datetime.fromisoformat(kept[name]) for name in _TIMES}
        first, until = (datetime.fromisoformat(kept.pop(name)) for name in ("first", "until"))
        due = due_times(Schedule(**kept | times).timing(), first, until)
    except Exception:  # the timing was at fault: then nothing came due by it, besides what the trigger has recorded
        logger.exception("What schedule %r missed before it was changed is not known.", schedule.name)
        return []
    runs = [Run(schedule, at, Outcome.SKIPPED, Reason.MISFIRE, detail) for at in due.times]
    if due.left_out_since:
        runs[0].detail = f"{left_out(due)} {detail}"
    return runs


def next_wake_up() -> datetime | None:
    """When there is next something to fire, or to plan."""
    due = Schedule.objects.filter(enabled=True, next_fire_at__isnull=False).order_by("next_fire_at")
    changed = Schedule.objects.filter(changed_at__isnull=False).order_by("changed_at")
    times = [*due.values_list("next_fire_at", flat=True)[:1], *changed.values_list("changed_at", flat=True)[:1]]
    return min(filter(None, times), default=None)


def _plan(schedule: Schedule) -> None:
    schedule.next_fire_at, schedule.problem = None, ""
    try:
        if not schedule.is_used_up and schedule.changed_at is not None:
            schedule.next_fire_at = schedule.timing().next_after(schedule.changed_at)
    except TimingError as error:
        schedule.problem = f"{error.field}: {error}"[:500]
        logger.error("Schedule %r cannot fire: %s", schedule.name, schedule.problem)
    except Exception as error:  # one that cannot be planned at all must not keep the others from it
        schedule.problem = said(error)
        logger.exception("Schedule %r cannot be planned.", schedule.name)
