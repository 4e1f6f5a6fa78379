"""The record of each task: one row, committed before its message is published, kept with its outcome."""

from datetime import timedelta
from operator import attrgetter
from typing import Any

from django.db import DEFAULT_DB_ALIAS, models
from django.db.models.base import ModelState
from django.db.models.functions import Greatest, Least, Now
from django.db.models.lookups import GreaterThanOrEqual, LessThanOrEqual

from tasks_app import moments, states, storable
from tasks_app.conf import conf
from tasks_app.exceptions import InvalidSubmission
from tasks_app.json_field import Encoded, JSONText
from tasks_app.moments import MomentField
from tasks_app.moves import GIVEN
from tasks_app.retries import RetryQuerySet
from tasks_app.storable import dump_json

#: Note on a record whose result somebody has deleted, by Celery's `result.forget()`.
FORGOTTEN = "Its result was forgotten"

#: What people call the state that a task is in, and the rows that are in it. Views of `state`, not states.
_FREE = models.Q(parked_at__isnull=True)
PHASES = {
    "scheduled": models.Q(state=states.PENDING, eta__gt=Now()),
    "queued": models.Q(state=states.PENDING) & (models.Q(eta__isnull=True) | models.Q(eta__lte=Now())) & _FREE,
    "limited": models.Q(state__in=states.WAITING_STATES, parked_at__isnull=False),
    "running": models.Q(state=states.STARTED),
    "retrying": models.Q(state=states.RETRY) & _FREE,
    "succeeded": models.Q(state=states.SUCCESS),
    "failed": models.Q(state=states.FAILURE),
    "revoked": models.Q(state=states.REVOKED),
    "ignored": models.Q(state=states.IGNORED),
    "rejected": models.Q(state=states.REJECTED),
}
_TIMES = (
    "eta", "expires", "created_at", "publish_at", "published_at", "started_at", "finished_at", "lease_until",
    "cancel_at", "unique_until", "parked_at", "slot_at",
)  # fmt: skip
_READABLE = models.Q(
    GreaterThanOrEqual(Least(*_TIMES), storable.TIMES[0]), LessThanOrEqual(Greatest(*_TIMES), storable.TIMES[1])
)
_NOT_ROOT = ~models.Q(root_id=models.F("task_id"))
_PHASE_OF_STATE = dict(zip(states.ALL_STATES, ("queued", "running", "retrying", *list(PHASES)[5:]), strict=True))


class WhereWritten(models.Manager[Any]):
    """Reads rows where the console writes them, whatever a project's router says: a replica may not have them yet."""

    def get_queryset(self) -> models.QuerySet[Any]:
        return super().get_queryset().using(DEFAULT_DB_ALIAS)


class TaskRecord(models.Model):
    """One row a task, committed before its message is published, kept with its outcome."""

    task_id = models.CharField(max_length=255, unique=True)
    name = models.CharField(max_length=255)
    args = JSONText(default=list)
    kwargs = JSONText(default=dict)
    #: What else the message is built from: link, chain, chord, time limits, headers … as `send_task` takes them.
    options = JSONText(default=dict)
    queue = models.CharField(max_length=255)
    priority = models.PositiveSmallIntegerField(null=True)
    root_id = models.CharField(max_length=255)
    parent_id = models.CharField(max_length=255, null=True)  # noqa: DJ001 Celery's None
    group_id = models.CharField(max_length=255, null=True)  # noqa: DJ001
    replay_of = models.ForeignKey("self", models.SET_NULL, null=True, related_name="replays", db_index=False)

    state = models.CharField(max_length=16, default=states.PENDING, db_default=states.PENDING)
    #: Number of the run: 0 until the first claim.
    attempt = models.PositiveIntegerField(default=0, db_default=0)
    #: Number of the message in force; the guard of every move.
    gen = models.PositiveIntegerField(default=1, db_default=1)
    retries = models.PositiveIntegerField(default=0, db_default=0)
    max_retries = models.PositiveIntegerField(null=True)

    eta = MomentField(null=True)
    expires = MomentField(null=True)
    created_at = MomentField(db_default=Now())
    #: The queue of due.publish_due: when it is to publish this row. NULL: published, or finished.
    publish_at = MomentField(null=True)
    published_at = MomentField(null=True)
    started_at = MomentField(null=True)
    finished_at = MomentField(null=True)

    worker = models.CharField(max_length=255, default="", db_default="", blank=True)
    worker_pid = models.PositiveIntegerField(null=True)
    #: Until when its run is known to be alive, or its message to be held by a worker; renewed by leases.Leases.
    lease_until = MomentField(null=True)
    #: Runs that were lost with their worker, and the number of them at which it has failed (1: it is not repeated).
    lost_count = models.PositiveSmallIntegerField(default=0, db_default=0)
    max_lost = models.PositiveSmallIntegerField(default=1, db_default=1)
    #: Whether its run repeats one that was lost, handed back or rejected: Celery's word for it in `delivery_info`.
    redelivered = models.BooleanField(default=False, db_default=False)
    #: Messages since its last run that a worker could not take, and that were lost on their way (see relay).
    refused = models.PositiveSmallIntegerField(default=0, db_default=0)
    missed = models.PositiveSmallIntegerField(default=0, db_default=0)
    #: When its run was asked to stop, and the signal by which its worker shall see to it, if any.
    cancel_at = MomentField(null=True)
    cancel_signal = models.CharField(max_length=16, default="", db_default="", blank=True)

    #: Given by the submitter: a second submission with the same one is the first one.
    idempotency_key = models.CharField(max_length=255, null=True)  # noqa: DJ001
    #: Of a task that is to be there once: "<while> <name> <digest of the arguments>" (see uniqueness.py).
    unique_key = models.CharField(max_length=255, null=True)  # noqa: DJ001
    #: Until when, where that is for a time; otherwise while it waits, or is unfinished.
    unique_until = MomentField(null=True)
    #: Whose limits it shares (see limits.py); since when it waits for a slot: the queue of limits.admit_parked; since
    #: when it holds one.
    limit_key = models.CharField(max_length=255, null=True)  # noqa: DJ001
    parked_at = MomentField(null=True)
    slot_at = MomentField(null=True)

    #: What had to be done to its result to keep it: cut, or not JSON.
    note = models.CharField(max_length=200, default="", db_default="", blank=True)
    result_preview = models.CharField(max_length=200, default="", db_default="", blank=True)
    exc_type = models.CharField(max_length=255, default="", db_default="", blank=True)
    exc_message = models.TextField(default="", db_default="", blank=True)

    #: Of a new one: seconds from when the database has it, until it may start, until the relay publishes it, until it
    #: expires, and for which it is the only one of its kind.
    countdown: float | None = None
    publish_in: float | None = None
    expires_in: float | None = None
    unique_for: float | None = None
    #: Of a new one: args, kwargs and options as JSON.
    texts: tuple[Encoded, Encoded, Encoded] | None = None
    #: Whether it is made by the end of another task's run, which hands its result on.
    is_successor = False
    #: Whether what is to come after it has its rows since an earlier record of the workflow.
    steps_are_known = False
    #: Whether Celery's signals of publishing were sent.
    is_announced = True
    #: The beginnings of the arguments' texts, on rows of a list.
    args_start: str
    kwargs_start: str

    objects = WhereWritten.from_queryset(RetryQuerySet)()

    class Meta:
        verbose_name = "task"
        ordering = ["-pk"]
        indexes = [
            models.Index(fields=["publish_at"], name="task_publish_due", condition=models.Q(publish_at__isnull=False)),
            models.Index(
                fields=["published_at"],
                name="task_published",
                condition=models.Q(published_at__isnull=False, state__in=states.WAITING_STATES),
            ),
            models.Index(
                fields=["limit_key", "priority", "id"],
                name="task_parked",
                condition=models.Q(parked_at__isnull=False),
            ),
            # Runs, by the end of their lease, and what shares a limit: few rows, found among the unfinished.
            models.Index(fields=["lease_until"], name="task_lease", condition=models.Q(state=states.STARTED)),
            models.Index(
                fields=["limit_key"],
                name="task_limit",
                condition=models.Q(slot_at__isnull=False, state__in=states.UNREADY_STATES),
            ),
            models.Index(
                fields=["expires"],
                name="task_expires",
                condition=models.Q(expires__isnull=False, state__in=states.WAITING_STATES),
            ),
            # The list filtered by state; successes are so many that the primary key finds them as fast.
            models.Index(fields=["state", "-id"], name="task_state", condition=~models.Q(state=states.SUCCESS)),
            models.Index(fields=["name", "-id"], name="task_name"),
            # Workflows and replays; most tasks are none, and cost it nothing.
            models.Index(fields=["root_id"], name="task_root", condition=_NOT_ROOT),
            models.Index(fields=["group_id"], name="task_group", condition=models.Q(group_id__isnull=False)),
            models.Index(fields=["replay_of"], name="task_replay", condition=models.Q(replay_of__isnull=False)),
            models.Index(fields=["finished_at"], name="task_finished", condition=models.Q(finished_at__isnull=False)),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["idempotency_key"],
                name="task_idempotent",
                condition=models.Q(idempotency_key__isnull=False),
            ),
            models.UniqueConstraint(
                fields=["unique_key"],
                name="task_unique_unfinished",
                condition=models.Q(
                    unique_key__isnull=False, unique_until__isnull=True, state__in=states.UNREADY_STATES
                ),
            ),
            models.UniqueConstraint(
                fields=["unique_key"], name="task_unique_for_a_time", condition=models.Q(unique_until__isnull=False)
            ),
            # Postgres has times that Python has not, 'infinity' the first: a row with one could not be read any more.
            models.CheckConstraint(name="task_times_readable", condition=_READABLE),
            models.CheckConstraint(name="task_state_known", condition=models.Q(state__in=states.ALL_STATES)),
            models.CheckConstraint(
                name="task_finished_when_ready",
                condition=models.Q(finished_at__isnull=True, state__in=states.UNREADY_STATES)
                | models.Q(finished_at__isnull=False, state__in=states.READY_STATES),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} {self.task_id}"

    def sibling(self, task_id: str) -> "TaskRecord":
        """An unsaved copy under another id. (`copy.copy` of a model pickles it, four times as slow.)"""
        other = TaskRecord.__new__(TaskRecord)
        other.__dict__.update(self.__dict__, _state=ModelState(), task_id=task_id, texts=None)
        return other

    @property
    def is_due(self) -> bool:
        """Of a new one: whether its submitter publishes it."""
        return self.publish_at is None and self.publish_in is None

    @property
    def phase(self) -> str:
        """The state in people's words, one of PHASES."""
        if self.state == states.PENDING and self.eta and self.eta > moments.now():
            return "scheduled"
        if self.parked_at and self.is_waiting:
            return "limited"
        return _PHASE_OF_STATE[self.state]

    @property
    def is_waiting(self) -> bool:
        return self.state in states.WAITING_STATES

    @property
    def is_unfinished(self) -> bool:
        return self.state in states.UNREADY_STATES

    @property
    def waited(self) -> timedelta | None:
        """From when it could have run, to its start or to now."""
        if self.phase == "scheduled" or not (self.started_at or self.is_waiting):
            return None
        since = max(filter(None, (self.created_at, self.eta)))
        return max((self.started_at or moments.now()) - since, timedelta(0))

    @property
    def ran(self) -> timedelta | None:
        """How long its last run took, or takes so far."""
        if not self.started_at or self.is_waiting:
            return None
        return (self.finished_at or moments.now()) - self.started_at

    def encoded(self) -> tuple[Encoded, Encoded, Encoded]:
        """Args, kwargs and options as JSON. Raises InvalidSubmission."""
        if self.texts is None:
            args, kwargs, options = (Encoded(dump_json(each)) for each in (self.args, self.kwargs, self.options))
            self.texts = args, kwargs, options
        return self.texts

    def inserted_values(self) -> tuple[Any, ...]:
        """The values of the columns that moves.GIVEN names. Raises InvalidSubmission."""
        args, kwargs, options = self.encoded()
        length, most = len(args) + len(kwargs), conf.TASK_ARGS_MAX_BYTES
        if length > most and not self.is_successor:
            raise InvalidSubmission(
                f"{self.name}: arguments of {length:,} bytes as JSON, {most:,} are allowed (TASK_ARGS_MAX_BYTES). "
                "Pass a reference to the data: a key, a path, an address."
            )
        storable.check_texts(args, kwargs, options, compressed="compression" in self.options)
        return (args, kwargs, options, *_PLAIN(self))


_PLAIN = attrgetter(*list(GIVEN)[3:])


class TaskStep(models.Model):
    """A task that is still to come in a workflow, known by its id from the submit on: see steps.py.

    Once it has a record, that is the truth.
    """

    task_id = models.CharField(max_length=255, primary_key=True)
    name = models.CharField(max_length=255)
    root_id = models.CharField(max_length=255)
    #: The task or group that it comes after.
    after_id = models.CharField(max_length=255)
    #: How: as the next of a chain, as a chord's body or member, as a callback, or as an errback.
    place = models.CharField(max_length=8)

    objects = WhereWritten()

    class Meta:
        indexes = [models.Index(fields=["root_id"], name="step_root")]

    def __str__(self) -> str:
        return f"{self.name} {self.task_id}"


class TaskStamp(models.Model):
    """A stamp that a task, or a step to come, carries (Celery's stamped headers): tasks are revoked by it."""

    task_id = models.CharField(max_length=255)
    header = models.CharField(max_length=255)
    value = models.CharField(max_length=255)

    objects = WhereWritten()

    class Meta:
        indexes = [models.Index(fields=["header", "value"], name="stamp")]

    def __str__(self) -> str:
        return f"{self.header}={self.value} {self.task_id}"


class TaskAttempt(models.Model):
    """A run that did not finish its task: it was retried. (The last run stands on the record.)"""

    record = models.ForeignKey(TaskRecord, models.CASCADE, related_name="attempts")
    attempt = models.PositiveIntegerField()
    #: The state that the run left the task in.
    state = models.CharField(max_length=16)
    worker = models.CharField(max_length=255)
    worker_pid = models.PositiveIntegerField(null=True)
    started_at = MomentField(null=True)
    finished_at = MomentField()
    exc_type = models.CharField(max_length=255, blank=True)
    exc_message = models.TextField(blank=True)
    traceback = models.TextField(blank=True)

    objects = WhereWritten()

    class Meta:
        ordering = ["attempt"]
        constraints = [models.UniqueConstraint(fields=["record", "attempt"], name="attempt_once")]

    def __str__(self) -> str:
        return f"{self.record_id} #{self.attempt}"


class Duty(models.Model):
    """Who does what one process alone shall do at a time; another takes over when it was silent for long enough."""

    name = models.CharField(max_length=50, primary_key=True)
    holder = models.CharField(max_length=255)
    done_at = MomentField()

    objects = WhereWritten()

    def __str__(self) -> str:
        return self.name


class QueueReader(models.Model):
    """A queue, and when a worker last said that it reads it (see queues.py)."""

    queue = models.CharField(max_length=255, primary_key=True)
    read_at = MomentField()

    objects = WhereWritten()

    def __str__(self) -> str:
        return self.queue


class Limit(models.Model):
    """What is shared by the tasks of one `limit_key`: its row is locked while a slot of theirs is given away."""

    key = models.CharField(max_length=255, primary_key=True)
    #: When the rate limit lets the next one start.
    next_at = MomentField(db_default=Now())

    objects = WhereWritten()

    def __str__(self) -> str:
        return self.key
