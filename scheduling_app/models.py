"""Schedules, and a row for each due time of each: what became of it.

The unique key (schedule, scheduled_for) is what makes a second firing impossible, with any number of schedulers, paused
or stale ones included; their row locks only share the work out.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import connection, models
from django.db.models.functions import Now

from scheduling_app import triggers
from tasks_app.models import JSONText, TaskRecord

#: Channel on which a database trigger tells of each change of a schedule.
CHANGED_CHANNEL = "schedules_changed"


def default_timezone() -> str:
    return settings.TIME_ZONE


class ScheduleQuerySet(models.QuerySet["Schedule"]):
    def changed(self, limit: int):
        """Schedules whose next time is to be computed anew; locked, those of other schedulers left to them."""
        return self._locked(self.filter(changed_at__isnull=False).order_by("changed_at"), limit)

    def due(self, limit: int):
        """Schedules to fire, judged by the database's clock, which each row brings along as `database_now`."""
        return self._locked(self.filter(enabled=True, next_fire_at__lte=Now()).order_by("next_fire_at"), limit)

    def set_enabled(self, enabled: bool) -> int:
        """Pause or resume; returns how many were not so already."""
        return self.exclude(enabled=enabled).update(enabled=enabled)

    def advance(self, schedules: Sequence["Schedule"]) -> None:
        """Write `next_fire_at`, `last_fire_at` and `problem` of these rows, which the caller has locked."""
        if schedules:
            rows = [(s.pk, s.next_fire_at, s.last_fire_at, s.problem) for s in schedules]
            with connection.cursor() as cursor:
                cursor.execute(_ADVANCE, [list(column) for column in zip(*rows, strict=True)])

    @staticmethod
    def _locked(schedules, limit):
        return schedules.annotate(database_now=Now()).select_for_update(skip_locked=True, of=("self",))[:limit]


class Schedule(models.Model):
    """When a task is run: the one thing that a scheduler reads. Any change of it, by any road, is seen at once."""

    class Kind(models.TextChoices):
        CRON = "cron", "Cron"
        INTERVAL = "interval", "Interval"
        DATE = "date", "Once"

    class Unit(models.TextChoices):
        SECONDS = "seconds"
        MINUTES = "minutes"
        HOURS = "hours"
        DAYS = "days"
        WEEKS = "weeks"

    class CatchUp(models.TextChoices):
        LATEST = "latest", "Run once, for the latest of them"
        ALL = "all", "Run each of them, oldest first"

    #: With CatchUp.ALL, how many missed times a schedule fires in one pass.
    MAX_CATCH_UP = 100

    name = models.CharField(max_length=200, unique=True)
    description = models.TextField(blank=True)
    task = models.CharField(max_length=255)
    args = JSONText(default=list, blank=True)
    kwargs = JSONText(default=dict, blank=True)
    queue = models.CharField(max_length=255, blank=True)
    priority = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(0), MaxValueValidator(9)]
    )
    expires_after = models.PositiveIntegerField(null=True, blank=True)
    enabled = models.BooleanField(default=True)

    kind = models.CharField(max_length=10, choices=Kind, default=Kind.CRON)
    cron = models.CharField(max_length=200, blank=True)
    every = models.PositiveIntegerField(null=True, blank=True)
    unit = models.CharField(max_length=10, choices=Unit, default=Unit.MINUTES, blank=True)
    run_at = models.DateTimeField(null=True, blank=True)
    timezone = models.CharField(max_length=64, default=default_timezone)
    start_at = models.DateTimeField(null=True, blank=True)
    end_at = models.DateTimeField(null=True, blank=True)
    jitter = models.PositiveIntegerField(default=0)

    catch_up = models.CharField(max_length=10, choices=CatchUp, default=CatchUp.LATEST)
    misfire_grace_time = models.PositiveIntegerField(
        null=True, blank=True, default=3600, validators=[MinValueValidator(1)]
    )
    max_instances = models.PositiveSmallIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])

    created_at = models.DateTimeField(db_default=Now(), editable=False)
    #: The queue of firing.fire_due.
    next_fire_at = models.DateTimeField(null=True, editable=False)
    #: The queue of firing.plan_changed: set by the database's trigger when the timing changes. Times after it count.
    changed_at = models.DateTimeField(null=True, editable=False)
    last_fire_at = models.DateTimeField(null=True, editable=False)
    #: Why it will not fire, where its definition is at fault.
    problem = models.CharField(max_length=500, blank=True, default="", db_default="", editable=False)

    #: The database's time, on rows that came of `changed()` and `due()`.
    database_now: datetime

    objects = ScheduleQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        indexes = [
            models.Index(
                fields=["next_fire_at"],
                name="schedule_due",
                condition=models.Q(enabled=True, next_fire_at__isnull=False),
            ),
            models.Index(fields=["changed_at"], name="schedule_changed", condition=models.Q(changed_at__isnull=False)),
        ]
        constraints = [
            models.CheckConstraint(
                name="schedule_kind_complete",
                condition=(models.Q(kind="cron") & ~models.Q(cron=""))
                | (models.Q(kind="interval", every__gt=0) & ~models.Q(unit=""))
                | models.Q(kind="date", run_at__isnull=False),
            ),
        ]

    def __str__(self):
        return self.name

    def save(self, *args, update_fields=None, **kwargs):
        """A save of an existing row leaves alone what schedulers write: a form may hold values from before they did."""
        if update_fields is None and not self._state.adding:
            own = {"next_fire_at", "changed_at", "last_fire_at", "problem", "created_at", "id"}
            update_fields = [field.name for field in self._meta.concrete_fields if field.name not in own]
        super().save(*args, update_fields=update_fields, **kwargs)

    def timing(self) -> triggers.Cron | triggers.Interval | triggers.Date:
        """What says when it is due. Raises triggers.TimingError."""
        bounds: dict[str, Any] = {"timezone": self.timezone, "start_at": self.start_at, "end_at": self.end_at}
        if self.kind == self.Kind.CRON:
            return triggers.Cron(self.cron, **bounds)
        if self.kind == self.Kind.INTERVAL:
            anchor = self.start_at or self.created_at
            return triggers.Interval(self.every or 0, self.unit, anchor=anchor, **bounds)
        return triggers.Date(self.run_at, timezone=self.timezone)  # type: ignore[arg-type]


class ScheduleRunQuerySet(models.QuerySet["ScheduleRun"]):
    def insert(self, runs: Iterable["ScheduleRun"]) -> set[tuple[int, datetime]]:
        """Insert those whose (schedule, due time) has no row yet; returns the keys of these, the ones to act on."""
        rows = [(r.schedule_id, r.scheduled_for, r.outcome, r.reason, r.detail, r.record_id) for r in runs]
        if not rows:
            return set()
        with connection.cursor() as cursor:
            cursor.execute(_INSERT_RUNS, [list(column) for column in zip(*rows, strict=True)])
            return set(cursor.fetchall())


class ScheduleRun(models.Model):
    """What became of one due time of a schedule."""

    class Outcome(models.TextChoices):
        FIRED = "fired"
        SKIPPED = "skipped"

    class Reason(models.TextChoices):
        DUE = "due", "on time"
        CAUGHT_UP = "caught up", "caught up"
        MANUAL = "manual", "run by hand"
        MISFIRE = "misfire", "too late"
        OVERLAP = "overlap", "an earlier run was unfinished"
        INVALID = "invalid", "its definition is at fault"

    schedule = models.ForeignKey(Schedule, models.CASCADE, related_name="runs")
    scheduled_for = models.DateTimeField()
    fired_at = models.DateTimeField(db_default=Now())
    outcome = models.CharField(max_length=10, choices=Outcome)
    reason = models.CharField(max_length=20, choices=Reason)
    detail = models.CharField(max_length=500, blank=True)
    record = models.OneToOneField(
        TaskRecord, models.SET_NULL, to_field="task_id", null=True, related_name="schedule_run"
    )

    objects = ScheduleRunQuerySet.as_manager()

    class Meta:
        ordering = ["-scheduled_for"]
        constraints = [models.UniqueConstraint(fields=["schedule", "scheduled_for"], name="run_once")]

    def __str__(self):
        return f"{self.schedule_id} at {self.scheduled_for:%Y-%m-%d %H:%M:%S}"


_ADVANCE = f"""
UPDATE {Schedule._meta.db_table} AS schedule SET
    next_fire_at = new.next_fire_at, last_fire_at = new.last_fire_at, problem = new.problem, changed_at = NULL
FROM unnest(%s::bigint[], %s::timestamptz[], %s::timestamptz[], %s::varchar[])
    AS new (id, next_fire_at, last_fire_at, problem)
WHERE schedule.id = new.id
"""
_INSERT_RUNS = f"""
INSERT INTO {ScheduleRun._meta.db_table} (schedule_id, scheduled_for, outcome, reason, detail, record_id, fired_at)
SELECT *, clock_timestamp() FROM unnest(
    %s::bigint[], %s::timestamptz[], %s::varchar[], %s::varchar[], %s::varchar[], %s::varchar[])
ON CONFLICT (schedule_id, scheduled_for) DO NOTHING
RETURNING schedule_id, scheduled_for
"""
