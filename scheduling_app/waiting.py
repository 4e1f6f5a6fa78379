"""Runs that wait: for an earlier run of their schedule to end, or for their turn in a backfill.

They are rows of the ledger with the outcome "waiting". Every scheduler looks, once a second while there are any, whose
turn has come. Room is counted while the schedule's row, or the backfill's, is locked, so several never give it twice.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from scheduling_app.firing import count_unfinished, make_records, submit_records
from scheduling_app.models import Backfill, Schedule, ScheduleRun
from scheduling_app.policies import Outcome, Overlap, Reason

#: Between two looks while something waits.
PAUSE = timedelta(seconds=1)


def release_waiting(limit: int = 500) -> int:
    """Fire runs whose turn has come. A count."""
    return _release_queued(limit) + _release_backfills(limit)


def next_look() -> datetime | None:
    """When to look again; None where nothing waits."""
    some = _queued().exists() or Backfill.objects.filter(state=Backfill.State.RUNNING).exists()
    return datetime.now(UTC) + PAUSE if some else None


def _queued():
    return ScheduleRun.objects.filter(outcome=Outcome.WAITING, backfill=None, schedule__enabled=True)


def _release_queued(limit: int) -> int:
    with transaction.atomic():
        schedules = list(Schedule.objects.locked(Schedule.objects.filter(pk__in=_queued().values("schedule")), limit))
        if not schedules:
            return 0
        unfinished = dict(count_unfinished("schedule_run__schedule", [schedule.pk for schedule in schedules]))
        runs = []
        for schedule in schedules:
            room = schedule.max_instances - unfinished.get(schedule.pk, 0)
            waiting = _queued().filter(schedule=schedule).order_by("scheduled_for")
            for run in waiting if schedule.overlap == Overlap.ALLOW else waiting[: max(room, 0)]:
                run.schedule, run.following, run.reason = schedule, schedule.next_fire_at, Reason.LATE
                run.detail = "Waited for an earlier run."
                runs.append(run)
        return _fire(runs, schedules[0].database_now)


def _release_backfills(limit: int) -> int:
    running = Backfill.objects.filter(state=Backfill.State.RUNNING).order_by("pk")
    with transaction.atomic():
        locked = running.annotate(database_now=Now()).select_for_update(skip_locked=True, of=("self",))
        backfills = list(locked.select_related("schedule")[:limit])
        if not backfills:
            return 0
        unfinished = dict(count_unfinished("schedule_run__backfill", [backfill.pk for backfill in backfills]))
        runs = []
        for backfill in backfills:
            busy = unfinished.get(backfill.pk, 0)
            waiting = backfill.runs.filter(outcome=Outcome.WAITING)
            turns = waiting.order_by(F("scheduled_for").desc() if backfill.newest_first else "scheduled_for")
            chosen = list(turns[: max(backfill.concurrency - busy, 0)])
            if not busy and not chosen:
                Backfill.objects.filter(pk=backfill.pk).update(state=Backfill.State.FINISHED, finished_at=Now())
            for run in chosen:
                run.schedule, run.reason = backfill.schedule, Reason.BACKFILL
                run.schedule.database_now = backfill.database_now
                run.detail = f"By {backfill.created_by}." if backfill.created_by else ""
                if run.record_id:
                    run.detail = f"{run.detail} Before: task {run.record_id}.".strip()
            runs += chosen
        return _fire(runs, backfills[0].database_now)


def _fire(runs: Iterable[ScheduleRun], now: datetime) -> int:
    runs = list(runs)
    for run in runs:
        run.outcome, run.fired_at = Outcome.FIRED, now
    records = make_records(runs)
    ScheduleRun.objects.bulk_update(runs, ["outcome", "reason", "detail", "record", "fired_at"], batch_size=500)
    submit_records(runs, list(records.values()))
    return len(runs)
