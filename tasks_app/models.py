"""The record of each task, and the moves of its state: each one guarded statement that tells whether it won.

A move's guard is `gen`, the number of the message now in force. Each way back to waiting raises it, so that a message
can be claimed once, and a run can only be closed by whoever holds its claim: a late, repeated or revoked message, and
a worker that woke up after its task went elsewhere, change nothing.

The statements that every task pays for (insert, claim, close) are written by hand; the ORM would double their cost.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Any

import psycopg
from django.db import IntegrityError, connection, models, transaction
from django.db.models.base import ModelState
from django.db.models.functions import Now
from django.utils import timezone
from kombu.utils.json import JSONEncoder

from tasks_app import states
from tasks_app.exceptions import DuplicateTask, InvalidSubmission

#: Seconds that the submitting process has to publish a row itself before the relay does.
PUBLISH_GRACE = 2


#: What people call the state that a task is in, and the rows that are in it. Views of `state`, not states.
PHASES = {
    "scheduled": models.Q(state=states.PENDING, eta__gt=Now()),
    "queued": models.Q(state=states.PENDING) & (models.Q(eta__isnull=True) | models.Q(eta__lte=Now())),
    "running": models.Q(state=states.STARTED),
    "retrying": models.Q(state=states.RETRY),
    "succeeded": models.Q(state=states.SUCCESS),
    "failed": models.Q(state=states.FAILURE),
    "revoked": models.Q(state=states.REVOKED),
    "ignored": models.Q(state=states.IGNORED),
    "rejected": models.Q(state=states.REJECTED),
}
_NOT_ROOT = ~models.Q(root_id=models.F("task_id"))
_PHASE_OF_STATE = dict(zip(states.ALL_STATES, ("queued", "running", "retrying", *list(PHASES)[4:]), strict=True))


class JSONText(models.TextField):
    """JSON kept as the text that was sent: exact, with key order and any number or character that JSON can carry.

    (jsonb would refuse NUL and lone surrogates, and rewrite numbers and objects.) Encoded as kombu does it, so that a
    message built from the row equals the one built from the call: a datetime stays kombu's marker for one.
    """

    _pyi_private_set_type: Any  # for the type checker
    _pyi_private_get_type: Any

    def from_db_value(self, value, expression, connection):
        return None if value is None else json.loads(value)

    def to_python(self, value):
        return value

    def get_prep_value(self, value):
        return None if value is None else dump_json(value)


_encode = JSONEncoder().encode


def dump_json(value: Any) -> str:
    """Raises InvalidSubmission for what JSON cannot carry."""
    try:
        return _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSubmission(f"Arguments and options travel as JSON: {error}.") from error


def printable(text: str) -> str:
    """`text` with what Postgres cannot hold (NUL, lone surrogates) escaped."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def execute(sql: str, params: Sequence[Any]) -> psycopg.Cursor:
    """Run one of the statements that every task pays for: bound and prepared by the server, past Django's layers.

    The cursor is the connection's own, kept: what it fetches is to be read before the next call.
    """
    connection.close_if_health_check_failed()
    connection.ensure_connection()
    raw = connection.connection
    if (cursor := getattr(raw, "console_cursor", None)) is None:
        cursor = raw.console_cursor = psycopg.Cursor(raw)
    with connection.wrap_database_errors:
        return cursor.execute(sql, params)


class TaskQuerySet(models.QuerySet["TaskRecord"]):
    def unfinished(self):
        return self.filter(state__in=states.UNREADY_STATES)

    def waiting(self):
        return self.filter(state__in=states.WAITING_STATES)

    def in_workflow(self, root_id: str):
        """A workflow's tasks, its first one included, in the order in which they were recorded."""
        return self.filter(_NOT_ROOT & models.Q(root_id=root_id) | models.Q(task_id=root_id)).order_by("pk")

    def due_for_publishing(self, limit: int):
        """Rows to publish, locked for the caller's transaction; rows that another relay holds are left to it."""
        due = self.filter(publish_at__lte=Now()).order_by("publish_at")
        return due.select_for_update(skip_locked=True)[:limit]

    def insert(self, records: Sequence["TaskRecord"]) -> None:
        """Insert new, waiting records in one statement, in the current transaction. Raises DuplicateTask.

        With `publish_at` None it is for this process to publish, and for the relay PUBLISH_GRACE seconds later.
        """
        try:
            if len(records) == 1:
                execute(_INSERT_ONE, list(records[0]._inserted_values()))
            else:  # as JSON, since arrays are put together in Python, column by column
                rows = [dict(zip(_INSERTED, record._inserted_values(), strict=True)) for record in records]
                execute(_INSERT_MANY, [json.dumps(rows, default=str)])
        except IntegrityError as error:
            raise DuplicateTask(f"{str(error).strip()}: give each task an id of its own, or none.") from error

    def adopt(self, record: "TaskRecord") -> None:
        """Record a task that was sent past the console (by another producer), where its id is not known yet."""
        self.bulk_create([record], ignore_conflicts=True)  # type: ignore[list-item]

    def mark_published(self, messages: Iterable[tuple[str, int]]) -> int:
        """Take (task_id, gen) pairs off the relay's queue; what was claimed or moved on meanwhile stays as it is."""
        task_ids, gens = zip(*messages, strict=True)
        return execute(_MARK_PUBLISHED, [list(task_ids), list(gens)]).rowcount

    def claim(self, task_id: str, gen: int, worker: str, pid: int) -> int | None:
        """Take the run, before its body starts: the attempt's number, or None where this message has lost."""
        row = execute(_CLAIM, [worker, pid, task_id, gen]).fetchone()
        return row[0] if row else None

    def mark_revoked(self, reason: str) -> list[str]:
        """Revoke those of these rows that wait; what a worker has claimed is left alone. Returns the revoked ids."""
        sql, params = self.waiting().values("pk").query.sql_with_params()
        with connection.cursor() as cursor:
            cursor.execute(_REVOKE.format(rows=sql), [reason, *params])
            return [row[0] for row in cursor.fetchall()]

    def mark_retry(
        self, task_id: str, gen: int, next_run: "TaskRecord | None", exc_type: str, exc_message: str, traceback: str
    ):
        """End a run that is to be repeated: its history is kept, and the task waits again, as `next_run` says.

        Without `next_run` it waits as it did before. Returns the row as it now is; None where the run was closed.
        """
        with transaction.atomic():
            record = self.select_for_update().filter(task_id=task_id, gen=gen, state=states.STARTED).first()
            if record is None:
                return None
            record.attempts.create(
                attempt=record.attempt,
                state=states.RETRY,
                worker=record.worker,
                worker_pid=record.worker_pid,
                started_at=record.started_at,
                finished_at=timezone.now(),
                exc_type=exc_type,
                exc_message=exc_message,
                traceback=traceback,
            )
            record.state, record.exc_type, record.exc_message = states.RETRY, exc_type, exc_message
            return record._wait_again(next_run or record)

    def mark_replaced(self, task_id: str, gen: int) -> bool:
        """End a run whose task goes on as another, or as the last step of a workflow, under its id (Task.replace)."""
        run = self.filter(task_id=task_id, gen=gen, state=states.STARTED)
        return bool(run.update(state=states.PENDING, gen=gen + 1, publish_at=None, published_at=None))

    def take_over(self, successor: "TaskRecord"):
        """Let a replaced task's record wait as its successor. None where there is no such record."""
        with transaction.atomic():
            replaced = self.filter(state=states.PENDING, publish_at=None, published_at=None, attempt__gt=0)
            record = replaced.select_for_update().filter(task_id=successor.task_id).first()
            if record is None:
                return None
            record.name = successor.name
            return record._wait_again(successor)

    def mark_unpublishable(self, record: "TaskRecord", error: Exception) -> int:
        """End a task of which no message can be made."""
        return (
            self.waiting()
            .filter(pk=record.pk, gen=record.gen)
            .update(
                state=states.FAILURE,
                publish_at=None,
                finished_at=Now(),
                exc_type=type(error).__name__,
                exc_message=printable(f"No message can be made of it: {error}"),
            )
        )

    def mark_requeued(self, task_id: str, gen: int) -> int:
        """Let a run whose body raised Reject(requeue=True) wait again, to be published by the relay in a second."""
        run = self.filter(task_id=task_id, gen=gen, state=states.STARTED)
        return run.update(state=states.PENDING, gen=gen + 1, published_at=None, publish_at=Now() + timedelta(seconds=1))

    def mark_dropped(self, task_id: str, gen: int, state: str) -> int:
        """End a run whose body raised Celery's Ignore or Reject: there is no result."""
        run = self.filter(task_id=task_id, gen=gen, state=states.STARTED)
        return run.update(state=state, finished_at=Now())

    def mark_expired(self) -> list[str]:
        return self.filter(expires__lte=Now()).mark_revoked("expired")


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
    replay_of = models.ForeignKey("self", models.SET_NULL, null=True, related_name="replays")

    state = models.CharField(max_length=16, default=states.PENDING, db_default=states.PENDING)
    #: Number of the run: 0 until the first claim.
    attempt = models.PositiveIntegerField(default=0, db_default=0)
    #: Number of the message in force; the guard of every move.
    gen = models.PositiveIntegerField(default=1, db_default=1)
    retries = models.PositiveIntegerField(default=0, db_default=0)
    max_retries = models.PositiveIntegerField(null=True)

    eta = models.DateTimeField(null=True)
    expires = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    #: The queue of maintenance.publish_due: when it is to publish this row. NULL: published, or finished.
    publish_at = models.DateTimeField(null=True)
    published_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    worker = models.CharField(max_length=255, default="", db_default="", blank=True)
    worker_pid = models.PositiveIntegerField(null=True)
    result_preview = models.CharField(max_length=200, default="", db_default="", blank=True)
    exc_type = models.CharField(max_length=255, default="", db_default="", blank=True)
    exc_message = models.TextField(default="", db_default="", blank=True)

    #: The beginnings of the arguments' texts, on rows of a list.
    args_start: str
    kwargs_start: str

    objects = TaskQuerySet.as_manager()

    class Meta:
        verbose_name = "task"
        ordering = ["-pk"]
        indexes = [
            models.Index(fields=["publish_at"], name="task_publish_due", condition=models.Q(publish_at__isnull=False)),
            models.Index(
                fields=["expires"],
                name="task_expires",
                condition=models.Q(expires__isnull=False, state__in=states.WAITING_STATES),
            ),
            # The list filtered by state; successes are so many that the primary key finds them as fast.
            models.Index(fields=["state", "-id"], name="task_state", condition=~models.Q(state=states.SUCCESS)),
            models.Index(fields=["name", "-id"], name="task_name"),
            # Workflows; most tasks are none, and cost it nothing.
            models.Index(fields=["root_id"], name="task_root", condition=_NOT_ROOT),
            models.Index(fields=["finished_at"], name="task_finished", condition=models.Q(finished_at__isnull=False)),
        ]
        constraints = [
            models.CheckConstraint(name="task_state_known", condition=models.Q(state__in=states.ALL_STATES)),
            models.CheckConstraint(
                name="task_finished_when_ready",
                condition=models.Q(finished_at__isnull=True, state__in=states.UNREADY_STATES)
                | models.Q(finished_at__isnull=False, state__in=states.READY_STATES),
            ),
        ]

    def __str__(self):
        return f"{self.name} {self.task_id}"

    def sibling(self, task_id: str) -> "TaskRecord":
        """An unsaved copy under another id. (`copy.copy` of a model pickles it, four times as slow.)"""
        other = TaskRecord.__new__(TaskRecord)
        other.__dict__.update(self.__dict__, _state=ModelState(), task_id=task_id)
        return other

    @property
    def phase(self) -> str:
        """The state in people's words, one of PHASES."""
        if self.state == states.PENDING and self.eta and self.eta > timezone.now():
            return "scheduled"
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
        return max((self.started_at or timezone.now()) - since, timedelta(0))

    @property
    def ran(self) -> timedelta | None:
        """How long its last run took, or takes so far."""
        if not self.started_at or self.is_waiting:
            return None
        return (self.finished_at or timezone.now()) - self.started_at

    def _wait_again(self, next_run: "TaskRecord") -> "TaskRecord":
        self.gen += 1
        for name in ("args", "kwargs", "options", "queue", "priority", "retries", "eta"):
            setattr(self, name, getattr(next_run, name))
        self.expires = next_run.expires or self.expires  # a run does not know it: messages carry none
        self.publish_at = next_run.publish_at or timezone.now() + timedelta(seconds=PUBLISH_GRACE)
        self.published_at = None
        self.save()
        return self

    def _inserted_values(self) -> tuple:
        return (dump_json(self.args), dump_json(self.kwargs), dump_json(self.options), *_PLAIN(self))


class TaskAttempt(models.Model):
    """A run that did not finish its task: it was retried. (The last run stands on the record.)"""

    record = models.ForeignKey(TaskRecord, models.CASCADE, related_name="attempts")
    attempt = models.PositiveIntegerField()
    #: The state that the run left the task in.
    state = models.CharField(max_length=16)
    worker = models.CharField(max_length=255)
    worker_pid = models.PositiveIntegerField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField()
    exc_type = models.CharField(max_length=255, blank=True)
    exc_message = models.TextField(blank=True)
    traceback = models.TextField(blank=True)

    class Meta:
        ordering = ["attempt"]
        constraints = [models.UniqueConstraint(fields=["record", "attempt"], name="attempt_once")]

    def __str__(self):
        return f"{self.record_id} #{self.attempt}"


_TABLE = TaskRecord._meta.db_table
_INSERTED = {
    "args": "text", "kwargs": "text", "options": "text", "task_id": "varchar", "name": "varchar", "queue": "varchar",
    "priority": "smallint", "root_id": "varchar", "parent_id": "varchar", "group_id": "varchar",
    "replay_of_id": "bigint", "retries": "int", "max_retries": "int", "eta": "timestamptz", "expires": "timestamptz",
    "publish_at": "timestamptz",
}  # fmt: skip
_PLAIN = attrgetter(*list(_INSERTED)[3:])
_INSERT = f"""
INSERT INTO {_TABLE} ({", ".join(_INSERTED)})
SELECT {", ".join(list(_INSERTED)[:-1])}, coalesce(publish_at, clock_timestamp() + interval '{PUBLISH_GRACE} s')
FROM {{rows}}
"""
_INSERT_ONE = _INSERT.format(
    rows=f"(VALUES ({', '.join(f'%s::{kind}' for kind in _INSERTED.values())})) AS new ({', '.join(_INSERTED)})"
)
_INSERT_MANY = _INSERT.format(
    rows=f"json_to_recordset(%s) AS new ({', '.join(f'{name} {kind}' for name, kind in _INSERTED.items())})"
)
_MARK_PUBLISHED = f"""
UPDATE {_TABLE} AS task SET published_at = clock_timestamp(), publish_at = NULL
FROM unnest(%s::varchar[], %s::int[]) AS message (task_id, gen)
WHERE task.task_id = message.task_id AND task.gen = message.gen AND task.publish_at IS NOT NULL
"""
_CLAIM = f"""
UPDATE {_TABLE} SET
    state = 'STARTED', attempt = attempt + 1, worker = %s, worker_pid = %s, started_at = clock_timestamp(),
    publish_at = NULL, published_at = coalesce(published_at, clock_timestamp())
WHERE task_id = %s AND gen = %s AND state IN ('PENDING', 'RETRY') AND (expires IS NULL OR expires > clock_timestamp())
RETURNING attempt
"""
_REVOKE = f"""
UPDATE {_TABLE} SET
    state = 'REVOKED', publish_at = NULL, finished_at = clock_timestamp(),
    exc_type = 'TaskRevokedError', exc_message = %s
WHERE state IN ('PENDING', 'RETRY') AND id IN ({{rows}})
RETURNING task_id
"""
