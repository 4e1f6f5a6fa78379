"""Schedules, a row for each due time of each that says what became of it, the calendars of when nothing is to run,
and backfills.

The unique key (schedule, scheduled_for) is what makes a second firing impossible, with any number of schedulers, paused
or stale ones included; their row locks only share the work out.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now

from scheduling_app.timing import blackout, kinds
from tasks_app import moments, states
from tasks_app.json_field import JSONText
from tasks_app.models import TaskRecord, WhereWritten
from tasks_app.moments import MomentField
from tasks_app.statements import execute_many, rowset

if TYPE_CHECKING:
    from scheduling_app.ledger.policies import Run

Row = TypeVar("Row", bound=models.Model)

#: Channel on which a database trigger tells of each change of a schedule.
CHANGED_CHANNEL = "schedules_changed"


def default_timezone() -> str:
    return settings.TIME_ZONE


def locked(rows: models.QuerySet[Row]) -> models.QuerySet[Row]:
    """These rows, locked for the caller's transaction, with the database's time as `database_now`.

    Those that another scheduler holds are left to it.
    """
    annotated: Any = rows.annotate(database_now=moments.Now())
    return annotated.select_for_update(skip_locked=True, of=("self",))


class ScheduleQuerySet(models.QuerySet["Schedule"]):
    def changed(self, limit: int) -> "models.QuerySet[Schedule]":
        """Schedules whose next time is to be computed anew; locked, those of other schedulers left to them."""
        return locked(self.filter(changed_at__isnull=False).order_by("changed_at"))[:limit]

    def due(self, limit: int, newest_first: bool = False) -> "models.QuerySet[Schedule]":
        """Schedules to fire, judged by the database's clock, which each row brings along as `database_now`."""
        order = "-next_fire_at" if newest_first else "next_fire_at"
        return locked(self.filter(enabled=True, next_fire_at__lte=Now()).order_by(order))[:limit]

    def set_enabled(self, enabled: bool, note: str = "") -> int:
        """Pause, with a note of why, or resume; returns how many were not so already."""
        return self.exclude(enabled=enabled).update(enabled=enabled, note=note[:500])

    def advance(self, schedules: Sequence["Schedule"]) -> None:
        """Write what firing and planning change of these rows, which the caller has locked."""
        if schedules:
            execute_many(_ADVANCE, _ADVANCED, map(_ADVANCED_OF, schedules))


class Calendar(models.Model):
    """A named set of windows in which the schedules that name it do not run."""

    name = models.CharField(max_length=200, unique=True)
    description = models.TextField(blank=True)
    timezone = models.CharField(max_length=64, default=default_timezone)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def blackout(self) -> blackout.Blackout:
        """Raises kinds.TimingError."""
        fields = ("cron", "minutes", "start_at", "end_at")
        windows = tuple(tuple(getattr(window, name) for name in fields) for window in self.windows.all())
        return blackout.blackout(self.name, self.timezone, windows)


class Window(models.Model):
    """A part of a calendar: from each time of a cron expression for some minutes, or from one time to another.

    The end is not part of it.
    """

    calendar = models.ForeignKey(Calendar, models.CASCADE, related_name="windows")
    cron = models.CharField(max_length=200, blank=True)
    minutes = models.PositiveIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    start_at = MomentField(null=True, blank=True)
    end_at = MomentField(null=True, blank=True)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.CheckConstraint(
                name="window_complete",
                condition=(~models.Q(cron="") & models.Q(minutes__gt=0, start_at=None, end_at=None))
                | models.Q(cron="", minutes=None, start_at__lt=models.F("end_at")),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.cron} for {self.minutes} minutes" if self.cron else f"{self.start_at} to {self.end_at}"


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
        NONE = "none", "Run none of them"

    class Overlap(models.TextChoices):
        ALLOW = "allow", "Run beside it"
        SKIP = "skip", "Skip"
        QUEUE_ONE = "queue_one", "Wait; one at most"
        QUEUE_ALL = "queue_all", "Wait, each in its turn"
        CANCEL = "cancel", "Cancel it, and run"

    class BlackoutAction(models.TextChoices):
        SKIP = "skip", "Skip"
        DEFER = "defer", "Run at the window's end"

    #: What the columns of its counts hold.
    MOST_FIRED = 2**31 - 1
    #: How many missed times run at once with CatchUp.ALL, and how many runs wait with Overlap.QUEUE_ALL.
    MAX_CATCH_UP = MAX_QUEUED = 100

    name = models.CharField(max_length=200, unique=True)
    description = models.TextField(blank=True)
    task = models.CharField(max_length=255)
    args = JSONText(default=list, blank=True)
    kwargs = JSONText(default=dict, blank=True)
    queue = models.CharField(max_length=255, blank=True)
    priority = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(0), MaxValueValidator(9)]
    )
    headers = JSONText(default=dict, blank=True)
    #: Name of the keyword argument by which the task is given the due time, in ISO 8601.
    due_kwarg = models.CharField(max_length=100, blank=True)
    #: Seconds from its start after which a run is revoked. None: it expires at the next due time or with the grace.
    expires_after = models.PositiveIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    #: Seconds.
    soft_time_limit = models.PositiveIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    time_limit = models.PositiveIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    #: How often a run that failed is repeated, and after how many seconds; each wait is twice as long as the last.
    max_retries = models.PositiveSmallIntegerField(null=True, blank=True)
    retry_backoff = models.PositiveIntegerField(null=True, blank=True)
    #: The app whose `schedules.py` defines it; blank where people do.
    owner = models.CharField(max_length=255, blank=True, default="", db_default="", editable=False)
    enabled = models.BooleanField(default=True)

    kind = models.CharField(max_length=10, choices=Kind, default=Kind.CRON)
    cron = models.CharField(max_length=200, blank=True)
    every = models.PositiveIntegerField(null=True, blank=True)
    unit = models.CharField(max_length=10, choices=Unit, default=Unit.MINUTES, blank=True)
    run_at = MomentField(null=True, blank=True)
    timezone = models.CharField(max_length=64, default=default_timezone)
    start_at = MomentField(null=True, blank=True)
    end_at = MomentField(null=True, blank=True)
    jitter = models.PositiveIntegerField(default=0)
    #: How often it fires at its times before it is finished.
    max_runs = models.PositiveIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])

    catch_up = models.CharField(max_length=10, choices=CatchUp, default=CatchUp.LATEST)
    misfire_grace_time = models.PositiveIntegerField(
        null=True, blank=True, default=3600, validators=[MinValueValidator(1)]
    )
    overlap = models.CharField(max_length=10, choices=Overlap, default=Overlap.ALLOW)
    #: How many unfinished runs count as an overlap.
    max_instances = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1)])
    pause_after_failures = models.PositiveSmallIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    blackout = models.ForeignKey(Calendar, models.PROTECT, null=True, blank=True, related_name="schedules")
    blackout_action = models.CharField(max_length=10, choices=BlackoutAction, default=BlackoutAction.SKIP)

    created_at = MomentField(db_default=Now(), editable=False)
    #: The queue of firing.fire_due.
    next_fire_at = MomentField(null=True, editable=False)
    #: The queue of planning.plan_changed: set by the database's trigger when the timing changes. Times after it count.
    changed_at = MomentField(null=True, editable=False)
    last_fire_at = MomentField(null=True, editable=False)
    fired_count = models.PositiveIntegerField(default=0, db_default=0, editable=False)
    #: Since when it is on, or paused: set by the trigger. And why it was paused, where that was not by hand.
    switched_at = MomentField(db_default=Now(), editable=False)
    note = models.CharField(max_length=500, blank=True, default="", db_default="", editable=False)
    #: What was planned when it was edited or paused too late to fire: kept by the trigger, for planning.plan_changed.
    missed = models.JSONField(null=True, editable=False)
    #: Why it will not fire, where its definition is at fault.
    problem = models.CharField(max_length=500, blank=True, default="", db_default="", editable=False)

    #: The database's time, on rows that came of `changed()` and `due()`.
    database_now: datetime

    objects = WhereWritten.from_queryset(ScheduleQuerySet)()

    class Meta:
        ordering = ["name"]
        indexes = [
            models.Index(
                fields=["next_fire_at"],
                name="schedule_due",
                condition=models.Q(enabled=True, next_fire_at__isnull=False),
            ),
            models.Index(fields=["changed_at"], name="schedule_changed", condition=models.Q(changed_at__isnull=False)),
            models.Index(fields=["owner"], name="schedule_owned", condition=~models.Q(owner="")),
        ]
        constraints = [
            models.CheckConstraint(
                name="schedule_kind_complete",
                condition=(models.Q(kind="cron") & ~models.Q(cron=""))
                | (models.Q(kind="interval", every__gt=0) & ~models.Q(unit=""))
                | models.Q(kind="date", run_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def save(self, *args: Any, update_fields: Iterable[str] | None = None, **kwargs: Any) -> None:
        """A save of an existing row leaves alone what schedulers write: a form may hold values from before they did."""
        if update_fields is None and not self._state.adding:
            fields = [field for field in self._meta.concrete_fields if not field.primary_key]
            update_fields = [field.name for field in fields if field.editable or field.name == "owner"]
        super().save(*args, update_fields=update_fields, **kwargs)

    @property
    def is_used_up(self) -> bool:
        return self.max_runs is not None and self.fired_count >= self.max_runs

    def timing(self) -> kinds.Cron | kinds.Interval | kinds.Date:
        """What says when it is due. Raises kinds.TimingError."""
        bounds: dict[str, Any] = {"timezone": self.timezone, "start_at": self.start_at, "end_at": self.end_at}
        if self.kind == self.Kind.CRON:
            return kinds.Cron(self.cron, **bounds)
        if self.kind == self.Kind.INTERVAL:
            anchor = self.start_at or self.created_at
            return kinds.Interval(self.every or 0, self.unit, anchor=anchor, **bounds)
        return kinds.Date(self.run_at, timezone=self.timezone)  # type: ignore[arg-type]


class ScheduleRunQuerySet(models.QuerySet["ScheduleRun"]):
    def unfinished(self) -> "ScheduleRunQuerySet":
        """Those whose tasks wait or run."""
        return self.filter(record__state__in=states.UNREADY_STATES)

    def insert(self, runs: Iterable["Run"]) -> set[tuple[int, datetime]]:
        """Insert those whose (schedule, due time) has no row yet; returns the keys of these, the ones to act on."""
        rows = [_INSERTED_OF(run) for run in runs]
        if not rows:
            return set()
        inserted = execute_many(_INSERT_RUNS, _INSERTED, rows)
        if inserted.rowcount == len(rows):
            return {row[:2] for row in rows}
        return set(inserted.fetchall())


class Backfill(models.Model):
    """Due times of a range, run again or for the first time, so many at once as it says."""

    class Which(models.TextChoices):
        MISSING = "missing", "Those that did not run"
        FAILED = "failed", "Those that failed"
        ALL = "all", "All of them"

    class State(models.TextChoices):
        RUNNING = "running"
        PAUSED = "paused"
        CANCELLED = "cancelled"
        FINISHED = "finished"

    #: Due times of one backfill, at most.
    MOST = 10_000

    schedule = models.ForeignKey(Schedule, models.CASCADE, related_name="backfills")
    start_at = MomentField()
    end_at = MomentField()
    which = models.CharField(max_length=10, choices=Which, default=Which.MISSING)
    newest_first = models.BooleanField(default=False)
    #: How many of its runs may be unfinished at once.
    concurrency = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1)])
    state = models.CharField(max_length=10, choices=State, default=State.RUNNING)
    #: How many due times it has.
    total = models.PositiveIntegerField(default=0)
    created_by = models.CharField(max_length=150, blank=True)
    created_at = MomentField(db_default=Now(), editable=False)
    finished_at = MomentField(null=True, editable=False)

    class Meta:
        ordering = ["-pk"]
        indexes = [models.Index(fields=["id"], name="backfill_running", condition=models.Q(state="running"))]

    def __str__(self) -> str:
        return f"Backfill {self.pk} of {self.schedule_id}"


class ScheduleRun(models.Model):
    """What became of one due time of a schedule."""

    class Outcome(models.TextChoices):
        FIRED = "fired"
        SKIPPED = "skipped"
        #: For an earlier run to end, or for its turn in a backfill; see waiting.py.
        WAITING = "waiting"

    class Reason(models.TextChoices):
        DUE = "due", "on time"
        LATE = "late", "late"
        CAUGHT_UP = "caught up", "caught up"
        MANUAL = "manual", "run by hand"
        BACKFILL = "backfill", "backfilled"
        MISFIRE = "misfire", "missed"
        OVERLAP = "overlap", "an earlier run was unfinished"
        BLACKOUT = "blackout", "in a blackout window"
        PAUSED = "paused", "paused by failures"
        LIMIT = "limit", "more than the limit"
        INVALID = "invalid", "its definition is at fault"

    schedule = models.ForeignKey(Schedule, models.CASCADE, related_name="runs", db_index=False)  # `run_once` is one
    scheduled_for = MomentField()
    fired_at = MomentField(db_default=Now())
    outcome = models.CharField(max_length=10, choices=Outcome)
    reason = models.CharField(max_length=20, choices=Reason)
    backfill = models.ForeignKey(Backfill, models.SET_NULL, null=True, related_name="runs", db_index=False)
    detail = models.CharField(max_length=500, blank=True)
    record = models.OneToOneField(
        TaskRecord, models.SET_NULL, to_field="task_id", null=True, related_name="schedule_run"
    )

    objects = WhereWritten.from_queryset(ScheduleRunQuerySet)()

    class Meta:
        ordering = ["-scheduled_for"]
        constraints = [models.UniqueConstraint(fields=["schedule", "scheduled_for"], name="run_once")]
        indexes = [
            models.Index(
                fields=["schedule", "scheduled_for"], name="run_waiting", condition=models.Q(outcome="waiting")
            ),
            models.Index(
                fields=["backfill", "scheduled_for"],
                name="run_of_backfill",
                condition=models.Q(backfill__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.schedule_id} at {self.scheduled_for:%Y-%m-%d %H:%M:%S}"


#: Columns that are written for many rows at once, with their types.
_ADVANCED = {
    "id": "bigint", "next_fire_at": "timestamptz", "last_fire_at": "timestamptz", "problem": "varchar",
    "fired_count": "int",
}  # fmt: skip
_ADVANCED_OF = attrgetter(*_ADVANCED)
_ADVANCE = f"""
UPDATE {Schedule._meta.db_table} AS schedule SET
    next_fire_at = new.next_fire_at, last_fire_at = new.last_fire_at, problem = new.problem,
    fired_count = new.fired_count, changed_at = NULL, missed = NULL
FROM {rowset(_ADVANCED)} WHERE schedule.id = new.id
"""
_INSERTED = {
    "schedule_id": "bigint", "scheduled_for": "timestamptz", "outcome": "varchar", "reason": "varchar",
    "detail": "varchar", "record_id": "varchar", "backfill_id": "bigint",
}  # fmt: skip
_INSERTED_OF = attrgetter("schedule.id", *list(_INSERTED)[1:])
_INSERT_RUNS = f"""
INSERT INTO {ScheduleRun._meta.db_table} ({", ".join(_INSERTED)}, fired_at)
SELECT {", ".join(_INSERTED)}, clock_timestamp() FROM {rowset(_INSERTED)}
ON CONFLICT (schedule_id, scheduled_for) DO NOTHING
RETURNING schedule_id, scheduled_for
"""
