"""Runs that wait: for an earlier run of their schedule to end, or for their turn in a backfill.

They are rows of the ledger with the outcome "waiting". Every scheduler looks whose turn has come, once a second while
there are any, and sooner after one had its turn. Room is counted while the row of the schedule, or of the backfill, is
locked, so several schedulers never give it twice.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Count, QuerySet
from django.db.models.functions import Now

from scheduling_app.ledger.firing import make_records, submit_records
from scheduling_app.ledger.policies import Outcome, Overlap, Reason, Run
from scheduling_app.models import Backfill, Calendar, Schedule, ScheduleRun, locked
from scheduling_app.outages import is_away

logger = logging.getLogger(__name__)

#: Between two looks while something waits; and after one that let something run, which may be short.
PAUSE, SHORT_PAUSE = timedelta(seconds=1), timedelta(seconds=0.1)


def release_waiting(limit: int = 500) -> int:
    """Fire runs whose turn has come, in transactions of `limit` schedules or backfills. A count."""
    fired = _release("schedule", _queued_schedules(), _turns_of_schedule, limit)
    return fired + _release("backfill", _backfills(), _turns_of_backfill, limit)


def next_look(released: int = 0) -> datetime | None:
    """When to look again, after a look that released so many; None where nothing waits."""
    some = _queued().exists() or Backfill.objects.filter(state=Backfill.State.RUNNING).exists()
    return datetime.now(UTC) + (SHORT_PAUSE if released else PAUSE) if some else None


def _release(kind: str, owners: QuerySet[Any], turns: Callable[[Any, int], Iterator[Run]], limit: int) -> int:
    """Through all of them, so that many which have to wait on keep no others from their turn."""
    count: int = 0
    last: int | None = -(2**63)
    while last is not None:
        with transaction.atomic():
            batch = list(owners.filter(pk__gt=last).order_by("pk")[:limit])
            unfinished = _unfinished(kind, batch)
            runs = [run for owner in batch for run in turns(owner, unfinished.get(owner.pk, 0))]
            count += _fire_all(runs) if runs else 0
        last = batch[-1].pk if len(batch) == limit else None
    return count


def _unfinished(kind: str, owners: Sequence[Schedule] | Sequence[Backfill]) -> dict[int, int]:
    """How many runs of each are unfinished; a backfill has a limit of its own, beside that of its schedule."""
    runs = ScheduleRun.objects.filter(**{f"{kind}__in": owners}).unfinished()
    if kind == "schedule":
        runs = runs.filter(backfill=None)
    return dict(runs.order_by().values_list(kind).annotate(count=Count("pk")))


def _fire_all(runs: Sequence[Run]) -> int:
    try:
        with transaction.atomic():
            return _fire([copy(run) for run in runs])
    except Exception as error:
        if is_away(error):
            raise
        logger.exception("Runs that waited could not be fired together; each is fired by itself.")
    return sum(map(_fire_one, runs))


def _fire_one(run: Run) -> int:
    try:
        with transaction.atomic():
            return _fire([copy(run)])
    except Exception as error:
        if is_away(error):
            raise
        logger.exception("A run of schedule %r that waited cannot be fired.", run.schedule.name)
        run.skip(Reason.INVALID, f"{type(error).__name__}: {error}")
    try:
        with transaction.atomic():
            return _fire([run])
    except Exception as error:
        if is_away(error):
            raise
        logger.exception("Nor can that be recorded.")
        return 0


def _fire(runs: Sequence[Run]) -> int:
    records = make_records(runs)
    for run in runs:
        row = ScheduleRun.objects.filter(schedule=run.schedule, scheduled_for=run.scheduled_for)
        changes = {"outcome": run.outcome, "reason": run.reason, "detail": run.detail, "record": run.record_id}
        row.update(**changes, fired_at=Now())
    submit_records(runs, list(records.values()))
    return len(runs)


def _queued() -> QuerySet[ScheduleRun]:
    waiting = ScheduleRun.objects.filter(outcome=Outcome.WAITING, reason=Reason.OVERLAP)
    return waiting.filter(backfill=None, schedule__enabled=True)


def _queued_schedules() -> QuerySet[Schedule]:
    """Schedules with runs that wait, locked."""
    waiting = Schedule.objects.filter(pk__in=_queued().values("schedule"))
    return locked(waiting.select_related("blackout").prefetch_related("blackout__windows"))


def _turns_of_schedule(schedule: Schedule, unfinished: int) -> Iterator[Run]:
    room = None if schedule.overlap == Overlap.ALLOW else schedule.max_instances - unfinished
    if room is not None and room <= 0:  # mostly, and without a query
        return
    if schedule.blackout is not None and not _is_free(schedule.blackout, schedule.database_now):
        return
    waiting = _queued().filter(schedule=schedule).order_by("scheduled_for")
    for at in waiting.values_list("scheduled_for", flat=True)[:room]:
        detail, following = "Waited for an earlier run.", schedule.next_fire_at
        yield Run(schedule, at, Outcome.FIRED, Reason.LATE, detail, following=following, has_waited=True)


def _is_free(calendar: Calendar, now: datetime) -> bool:
    try:
        return calendar.blackout().free_from(now) == now
    except Exception:  # each of its due times is recorded as invalid, and says so
        return False


def _backfills() -> QuerySet[Backfill]:
    """Running backfills, locked."""
    return locked(Backfill.objects.filter(state=Backfill.State.RUNNING).select_related("schedule"))


def _turns_of_backfill(backfill: Backfill, unfinished: int) -> Iterator[Run]:
    schedule = backfill.schedule
    schedule.database_now = backfill.database_now  # type: ignore[attr-defined]
    waiting = backfill.runs.filter(outcome=Outcome.WAITING)
    waiting = waiting.order_by("-scheduled_for" if backfill.newest_first else "scheduled_for")
    chosen = waiting.values_list("scheduled_for", "record")[: max(backfill.concurrency - unfinished, 0)]
    if not unfinished and not chosen and not waiting.exists():
        Backfill.objects.filter(pk=backfill.pk).update(state=Backfill.State.FINISHED, finished_at=Now())
    for at, before in chosen:
        detail = f"By {backfill.created_by}. " if backfill.created_by else ""
        detail += f"Before: task {before}." if before else ""
        yield Run(schedule, at, Outcome.FIRED, Reason.BACKFILL, detail.strip(), backfill.pk)
