"""ApsSchedulerManager: schedules from code, and the scheduler that fires them."""

import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from copy import copy
from datetime import UTC, datetime
from typing import Any

from apscheduler.executors.debug import DebugExecutor
from apscheduler.job import Job
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from celery import Task
from django.conf import settings
from django.db import Error

from scheduling_app.jobstore import POLL, ScheduleJobStore, timing_fields
from scheduling_app.models import CHANGED_CHANNEL, Schedule, ScheduleQuerySet
from scheduling_app.sources.fields import FIELDS, Part, all_but, names
from scheduling_app.sources.rules import ScheduleRefused, check
from scheduling_app.timing.kinds import Cron, Date, Interval, Timing, parse_every
from tasks_app import moments
from tasks_app.notify import Listener
from tasks_app.relay.loop import Relay

#: What may be said of a schedule besides its name, its task and when it fires; catching up is APScheduler's `coalesce`.
_OPTIONS = all_but(("name", "task", "catch_up", "blackout", "blackout_action", *names(Part.TIMING)))


class ApsSchedulerManager:
    """Registers schedules, and runs APScheduler over the schedule table.

    The arguments are defaults for what is registered: `jitter` and `misfire_grace_time` in seconds, `max_instances` of
    unfinished tasks (None: any number), `coalesce` missed times into the latest. What is registered before `start()` is
    written when it starts; a schedule is known by its `id`, its name in the admin, and registering it again updates it.

        manager = ApsSchedulerManager()
        manager.register_cron(number_sum, "*/5 * * * *", id="sum", args=[1, 2])
        manager.start()
    """

    def __init__(
        self,
        *,
        jitter: int = 0,
        max_instances: int | None = None,
        coalesce: bool = True,
        misfire_grace_time: int | None = 3600,
    ):
        self.defaults: dict[str, Any] = {
            "jitter": jitter,
            "max_instances": max_instances,
            "coalesce": coalesce,
            "misfire_grace_time": misfire_grace_time,
        }
        self.scheduler = BackgroundScheduler(
            jobstores={"default": ScheduleJobStore()}, executors={"default": DebugExecutor()}, timezone=UTC
        )
        self._waiting: dict[str, dict[str, Any]] = {}
        self._stopping = threading.Event()
        self._listener = Listener(CHANGED_CHANNEL)
        self._watcher = threading.Thread(target=self._watch, name="schedule-changes", daemon=True)
        self._relay = Relay()

    def start(self) -> None:
        """Write what was registered, and start firing, in threads of this process."""
        self.scheduler.start()
        for name, fields in self._waiting.items():
            _write(name, fields)
        self._waiting.clear()
        self._watcher.start()
        self._relay.start()

    def shutdown(self, wait: bool = True) -> None:
        """Stop firing. What was fired is committed; what is due later is another scheduler's, or the next start's."""
        if not self.scheduler.running:
            return
        self._stopping.set()
        self._listener.wake()
        self.scheduler.shutdown(wait=wait)
        self._relay.stop()
        self._watcher.join(5)

    def register_cron(self, task: Task | str, expression: str, *, id: str, timezone: str = "", **options: Any) -> None:
        """Run `task` by a crontab expression (five fields, or six with seconds first). Raises ScheduleError."""
        bounds = {key: options.pop(key, None) for key in ("start_at", "end_at")}
        self._register(id, task, Cron(expression, timezone or settings.TIME_ZONE, **bounds), options)

    def register_interval(self, task: Task | str, every: str, *, id: str, timezone: str = "", **options: Any) -> None:
        """Run `task` every so often: `every` is `30s`, `90m`, `2h`, `1d` or `1w`. Raises ScheduleError."""
        bounds = {key: options.pop(key, None) for key in ("start_at", "end_at")}
        anchor = bounds["start_at"] or moments.now()
        timing = Interval(*parse_every(every), anchor=anchor, timezone=timezone or settings.TIME_ZONE, **bounds)
        self._register(id, task, timing, options)

    def register_date(self, task: Task | str, run_at: datetime, *, id: str, **options: Any) -> None:
        """Run `task` once, at `run_at` (aware, and to come). Raises ScheduleError."""
        self._register(id, task, Date(run_at, settings.TIME_ZONE), options)

    def get_job(self, job_id: str) -> Job | None:
        return self.scheduler.get_job(job_id)

    def get_jobs(self) -> list[Job]:
        return self.scheduler.get_jobs()

    def pause_job(self, job_id: str) -> None:
        self._existing(job_id).set_enabled(False)

    def resume_job(self, job_id: str) -> None:
        """Fire it again, from its next time on: what passed meanwhile is not made up for."""
        self._existing(job_id).set_enabled(True)

    def modify_job(self, job_id: str, **changes: Any) -> None:
        """Change fields of a schedule (`cron`, `args`, `queue` …); a running scheduler sees it at once.

        Raises ScheduleError, JobLookupError.
        """
        stored = self._existing(job_id).get()
        _check_names(changes, FIELDS)
        changed = copy(stored)
        for name, value in changes.items():
            setattr(changed, name, value)
        check(changed, stored, moments.now())
        self._existing(job_id).update(**changes)

    def remove_job(self, job_id: str) -> None:
        if self._waiting.pop(job_id, None) is None:
            self._existing(job_id).delete()

    def _register(self, name: str, task: Task | str, timing: Timing, options: dict[str, Any]) -> None:
        fields = timing_fields(timing) | _fields(task, self.defaults | options)
        now = moments.now()
        check(Schedule(name=name, created_at=now, **fields), _stored(name), now)
        if self.scheduler.running:
            _write(name, fields)
        else:
            self._waiting[name] = fields

    def _existing(self, name: str) -> ScheduleQuerySet:
        schedules = Schedule.objects.filter(name=name)
        if not schedules.exists():
            raise JobLookupError(name)
        return schedules

    def _watch(self) -> None:
        while not self._stopping.is_set():
            if self._listener.wait(POLL.total_seconds()) and not self._stopping.is_set():
                self.scheduler.wakeup()
        self._listener.close()


def _fields(task: Task | str, options: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(options)
    coalesce = options.pop("coalesce")
    _check_names(options, _OPTIONS)
    unlimited = options["max_instances"] is None
    return (
        {"overlap": Schedule.Overlap.ALLOW if unlimited else Schedule.Overlap.SKIP}
        | options
        | {
            "max_instances": 1 if unlimited else options["max_instances"],
            "task": task if isinstance(task, str) else task.name,
            "catch_up": Schedule.CatchUp.LATEST if coalesce else Schedule.CatchUp.ALL,
        }
    )


def _check_names(given: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := given.keys() - known:
        raise TypeError(f"No such option of a schedule: {', '.join(sorted(unknown))}.")


def _stored(name: Any) -> Schedule | None:
    """The schedule of this name as it is now, where the database answers: what is registered may wait for that."""
    with suppress(Error, ValueError):  # a name that no text in Postgres can be is refused by the rules
        return Schedule.objects.filter(name=name).first()
    return None


def _write(name: str, fields: Mapping[str, Any]) -> None:
    if owner := Schedule.objects.filter(name=name).exclude(owner="").values_list("owner", flat=True).first():
        raise ScheduleRefused(name, "name", f"it is declared in the schedules.py of app {owner}: change it there.")
    Schedule.objects.update_or_create(name=name, defaults=fields)
