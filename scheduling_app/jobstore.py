"""The schedule table as APScheduler's job store: nothing is loaded, so a million schedules cost what ten do.

APScheduler's loop asks the store for due jobs when it wakes, and then when to wake next. APScheduler only wakes us, it
decides nothing: asked for due jobs, the store fires them itself, a batch in one transaction, and hands none out.
(An executor would be told neither the due time nor whether the transaction stands, and APScheduler moves a job on even
where submitting it failed.) For whoever manages schedules from code, each row is a job under its name.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from apscheduler.job import Job
from apscheduler.jobstores.base import ConflictingIdError, JobLookupError
from apscheduler.triggers.base import BaseTrigger
from celery import Task
from django.db import IntegrityError, connections

from scheduling_app.ledger.firing import fire_due
from scheduling_app.ledger.planning import next_wake_up, plan_changed
from scheduling_app.ledger.waiting import next_look, release_waiting
from scheduling_app.models import Schedule
from scheduling_app.outages import is_away
from scheduling_app.seams.apscheduler import JobStore
from scheduling_app.sources.rules import check
from scheduling_app.timing.clocks import TimingError
from scheduling_app.timing.kinds import MICROSECOND, Cron, Date, Interval, Timing
from tasks_app.recording import current_app
from tasks_app.statements import meanwhile

logger = logging.getLogger(__name__)

#: Seconds: the longest sleep, in case a NOTIFY is lost; and the wait while the database is away.
POLL, BACK_OFF = timedelta(seconds=30), timedelta(seconds=1)
#: Schedules fired in one transaction, whose messages go out during the next one; and seconds of such transactions
#: before all of them are out, within the grace that the relay leaves for that.
BATCH, PASS = 500, 2.5
#: Between looks at what is due, and what another scheduler holds.
HELD = timedelta(seconds=0.1)

#: Where APScheduler must be told a number, and the largest that the column holds.
UNLIMITED, MOST_INSTANCES = 1_000_000, 32_767


class TimingTrigger(BaseTrigger):
    """A timing as APScheduler's trigger."""

    def __init__(self, timing: Timing):
        self.timing = timing

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """The first time later than the previous one and not before `now` (`now` itself counts).

        APScheduler walks from a late run to `now` with this. Times missed in between are left out, so
        that the walk is one step after any downtime: catching up is decided where schedules fire.
        """
        after = now.astimezone(UTC) - MICROSECOND
        return self.timing.next_after(max(previous_fire_time or after, after))

    def __str__(self) -> str:
        return self.timing.describe()


def trigger_for(timing: Timing) -> TimingTrigger:
    """The APScheduler trigger of a timing."""
    return TimingTrigger(timing)


class ScheduleJobStore(JobStore):
    def __init__(self) -> None:
        super().__init__()
        self._was_away = self._away = self._has_failed = self._is_busy = False
        self._released = 0
        self._newest_first = False

    def get_due_jobs(self, now: datetime) -> list[Job]:
        self._was_away, self._away, self._has_failed = self._away, False, False
        done = self._done(plan_changed)
        try:
            with current_app.publisher.held_back() as publish_some, meanwhile(publish_some):
                done += self._done(self._fire)
                self._released = self._done(release_waiting)
        except Exception as error:
            self._lost(error)
        self._is_busy = done + self._released > 0
        return []

    def _done(self, step: Callable[[], int]) -> int:
        """What a step of a pass has done; one that fails keeps the others from their turn only where all would."""
        if self._away:
            return 0
        try:
            return step()
        except Exception as error:
            self._lost(error)
            return 0

    def _fire(self) -> int:
        done, give_up_at = 0, time.monotonic() + PASS
        while (fired := self._fire_some()) == BATCH and time.monotonic() < give_up_at:
            done += fired
        return done + fired

    def _fire_some(self) -> int:
        """By turns those that have just come due and those that are late: neither keeps the other waiting for long."""
        self._newest_first = not self._newest_first
        return fire_due(BATCH, self._newest_first)

    def get_next_run_time(self) -> datetime | None:
        """When to wake next. (APScheduler's loop ends where this raises.)"""
        now = datetime.now(UTC)
        if self._away or self._has_failed:
            return now + BACK_OFF
        try:
            at = min(at for at in (next_wake_up(), next_look(self._released), now + POLL) if at)
        except Exception as error:
            self._lost(error)
            return now + BACK_OFF
        if self._is_busy or at > now:
            return at
        # Another scheduler holds what is due: look again, after as long as it is late by now.
        return now + min(now - at, HELD)

    def lookup_job(self, job_id: str) -> Job | None:
        schedule = Schedule.objects.filter(name=job_id).first()
        return schedule and self._job(schedule)

    def get_all_jobs(self) -> list[Job]:
        jobs = map(self._job, Schedule.objects.order_by("next_fire_at", "name"))
        return [job for job in jobs if job is not None]

    def add_job(self, job: Job) -> None:
        overlap = Schedule.Overlap.SKIP if job.max_instances < UNLIMITED else Schedule.Overlap.ALLOW
        limit = {"overlap": overlap, "max_instances": min(job.max_instances, MOST_INSTANCES)}
        schedule = Schedule(name=job.id, created_at=datetime.now(UTC), **limit, **_definition(job))
        check(schedule)
        try:
            schedule.save(force_insert=True)
        except IntegrityError as error:
            raise ConflictingIdError(job.id) from error

    def update_job(self, job: Job) -> None:
        if not Schedule.objects.filter(name=job.id).update(**_definition(job)):
            raise JobLookupError(job.id)

    def remove_job(self, job_id: str) -> None:
        if not Schedule.objects.filter(name=job_id).delete()[0]:
            raise JobLookupError(job_id)

    def remove_all_jobs(self) -> None:
        Schedule.objects.all().delete()

    def _job(self, schedule: Schedule) -> Job | None:
        """A schedule as a job; None where its timing cannot be, which its `problem` tells."""
        try:
            trigger = trigger_for(schedule.timing())
        except TimingError:
            return None
        task = current_app.tasks.get(schedule.task) or partial(current_app.send_task, schedule.task)
        return self.make_job(
            schedule.args,
            schedule.kwargs,
            id=schedule.name,
            name=schedule.name,
            func=task,
            trigger=trigger,
            executor="default",
            coalesce=schedule.catch_up == Schedule.CatchUp.LATEST,
            misfire_grace_time=schedule.misfire_grace_time or None,
            max_instances=UNLIMITED if schedule.overlap == Schedule.Overlap.ALLOW else schedule.max_instances,
            next_run_time=schedule.next_fire_at if schedule.enabled else None,
        )

    def _lost(self, error: Exception) -> None:
        if is_away(error):
            if not self._was_away and not self._away:
                logger.warning("Scheduler waits for the database: %s", str(error).strip())
            self._away = True
        else:  # a scheduler that is not there is worse than one that repeats itself
            logger.exception("A look at what is due failed; it is repeated.")
            self._has_failed = True
        connections.close_all()


def _definition(job: Job) -> dict[str, Any]:
    """A job's fields as those of a Schedule."""
    if not isinstance(job.func, Task):
        raise ValueError(f"{job.func_ref or job.func!r} is not a Celery task: a schedule runs one, in a worker.")
    return timing_fields(job.trigger) | {
        "task": job.func.name,
        "args": list(job.args),
        "kwargs": dict(job.kwargs),
        "enabled": getattr(job, "next_run_time", True) is not None,
        "catch_up": Schedule.CatchUp.LATEST if job.coalesce else Schedule.CatchUp.ALL,
        "misfire_grace_time": job.misfire_grace_time,
    }


def timing_fields(trigger: BaseTrigger | Timing) -> dict[str, Any]:
    """A trigger's timing as the fields of a Schedule."""
    timing = trigger.timing if isinstance(trigger, TimingTrigger) else trigger
    match timing:
        case Cron():
            fields: dict[str, Any] = {"kind": Schedule.Kind.CRON, "cron": timing.expression}
        case Interval():
            fields = {"kind": Schedule.Kind.INTERVAL, "every": timing.every, "unit": timing.unit}
        case Date():
            return {"kind": Schedule.Kind.DATE, "run_at": timing.run_at, "timezone": timing.timezone}
        case _:
            raise TimingError("kind", f"{trigger!r}: give a Cron, Interval or Date of scheduling_app.timing.kinds.")
    return fields | {"timezone": timing.timezone, "start_at": timing.start_at, "end_at": timing.end_at}
