"""The moves of a record's state: each one guarded statement that tells whether it won.

The guard is `gen`, the number of the message now in force. Each way back to waiting (retries.py) raises it, so that a
message can be claimed once, and a run can only be closed by whoever holds its claim: a late, repeated or revoked
message, and a worker that woke up after its task went elsewhere, change nothing.

The statements that every task pays for (insert, claim) are written by hand; the ORM would double their cost.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from django.db import connection, models
from django.db.models.functions import Now

from tasks_app import states
from tasks_app.conf import conf
from tasks_app.statements import execute, execute_many, rowset

if TYPE_CHECKING:
    from tasks_app.models import TaskRecord

TABLE = "tasks_app_taskrecord"
#: Seconds that the submitting process has to publish a row itself before the relay does; and where it holds messages
#: back for others to be committed first (Publisher.held_back).
PUBLISH_GRACE, HELD_GRACE = 2, 5


class Run(NamedTuple):
    """A claimed run: its number, and what its record says of it. JSON is text here, as it is kept."""

    attempt: int
    args: str
    kwargs: str
    options: str
    eta: datetime | None
    expires: datetime | None
    root_id: str
    parent_id: str | None
    group_id: str | None
    redelivered: bool


class TaskQuerySet(models.QuerySet["TaskRecord"]):
    def unfinished(self) -> Self:
        return self.filter(state__in=states.UNREADY_STATES)

    def waiting(self) -> Self:
        return self.filter(state__in=states.WAITING_STATES)

    def in_workflow(self, root_id: str) -> Self:
        """A workflow's tasks, its first one included, in the order in which they were recorded."""
        steps = ~models.Q(root_id=models.F("task_id")) & models.Q(root_id=root_id)
        return self.filter(steps | models.Q(task_id=root_id)).order_by("pk")

    def due_for_publishing(self, limit: int) -> Self:
        """Rows to publish, locked for the caller's transaction; rows that another relay holds are left to it."""
        due = self.filter(publish_at__lte=Now()).order_by("publish_at")
        return due.select_for_update(skip_locked=True)[:limit]

    def lost(self) -> Self:
        """Runs whose lease has run out. (Those of a worker of before there were leases have none: after a day.)"""
        old = models.Q(lease_until=None, started_at__lt=Now() - timedelta(days=1))
        return self.filter(old | models.Q(lease_until__lt=Now()), state=states.STARTED).order_by("pk")

    def taken_away(self, runs: Mapping[tuple[str, int], int]) -> set[tuple[str, int]]:
        """Of the runs of these messages, with the processes that claimed them, those that somebody else has ended.

        A message that a process was refused the claim of is none: it was revoked, or out of force, before it ran.
        """
        rows = self.filter(task_id__in={task_id for task_id, _ in runs})
        lost = models.Q(state=states.FAILURE, exc_type="WorkerLostError")  # not a repeat, which still tells of the last
        closed = rows.filter(models.Q(state=states.REVOKED) | lost)
        ended = set(closed.values_list("task_id", "gen", "worker_pid"))
        attempts = rows.values_list("task_id", "attempts__worker_pid", "gen")
        repeated = {(task_id, pid): gen for task_id, pid, gen in attempts}
        return {
            (task_id, gen)
            for (task_id, gen), pid in runs.items()
            if (task_id, gen, pid) in ended or repeated.get((task_id, pid), 0) > gen
        }

    def unclaimed(self, grace: float) -> Self:
        """What was published longer than `grace` seconds ago, and that no worker has claimed, or says that it holds."""
        free = models.Q(lease_until=None) | models.Q(lease_until__lt=Now())
        published = self.waiting().filter(free, publish_at=None, published_at__lt=Now() - timedelta(seconds=grace))
        return published.order_by("published_at", "pk")

    def insert(self, records: Sequence["TaskRecord"], grace: float = PUBLISH_GRACE) -> list["TaskRecord"]:
        """Insert new, waiting records in one statement, in the current transaction.

        Returns those that are not new: their id, idempotency key or unique key is there already. A record that is
        due is for this process to publish, and for the relay `grace` seconds later.
        """
        if len(records) == 1:
            return [] if execute(_INSERT_ONE, [grace, *records[0].inserted_values()]).rowcount else list(records)
        rows = [record.inserted_values() for record in records]
        inserted = execute_many(_INSERT_MANY, GIVEN, rows, before=[grace])
        if inserted.rowcount == len(records):
            return []
        ids = {row[0] for row in inserted.fetchall()}
        return [record for record in records if record.task_id not in ids]

    def holder_of(self, record: "TaskRecord") -> "TaskRecord | None":
        """The record because of which this one could not be inserted; None where it let go meanwhile."""
        by_time = models.Q(unique_key=record.unique_key, unique_until__isnull=False)
        self.filter(by_time, unique_until__lte=Now()).update(unique_key=None, unique_until=None)
        unfinished = models.Q(unique_key=record.unique_key, unique_until=None, state__in=states.UNREADY_STATES)
        same = models.Q(task_id=record.task_id)
        if record.idempotency_key is not None:
            same |= models.Q(idempotency_key=record.idempotency_key)
        if record.unique_key is not None:
            same |= by_time | unfinished
        return self.filter(same).first()

    def adopt(self, record: "TaskRecord") -> None:
        """Record a task that was sent past the console (by another producer), where its id is not known yet."""
        self.bulk_create([record], ignore_conflicts=True)

    def mark_published(self, messages: Iterable[tuple[str, int]]) -> int:
        """Take (task_id, gen) pairs off the relay's queue; what was claimed or moved on meanwhile stays as it is."""
        return execute(_MARK_PUBLISHED, arrays(messages)).rowcount

    def claim(
        self, task_id: str, gen: int, worker: str, pid: int, max_lost: int = 1, name: str | None = None
    ) -> Run | None:
        """Take the run, before its body starts; None where this message has lost.

        `max_lost`: the number of lost runs at which it has failed. `name`: of the task that the message is for, which
        must be the record's.
        """
        row = execute(_CLAIM, [worker, pid, max_lost, conf.TASK_LEASE, task_id, gen, name]).fetchone()
        return Run(*row) if row else None

    def claimed(self, task_id: str, gen: int, worker: str, pid: int) -> Run | None:
        """The run where this process holds the claim already, for one that did not hear the answer."""
        row = execute(_CLAIMED, [task_id, gen, worker, pid]).fetchone()
        return Run(*row) if row else None

    def renew(self, messages: Iterable[tuple[str, int]]) -> dict[str, tuple[bool, str]]:
        """Renew the leases of runs, and of messages that a worker holds: (task_id, gen) pairs.

        Returns, for those that are still this worker's: whether it runs, and the signal to stop it with, if any.
        """
        return {row[0]: row[1:] for row in execute(_RENEW, [*arrays(messages), conf.TASK_LEASE]).fetchall()}

    def run_of(self, task_id: str, gen: int) -> "TaskRecord | None":
        """The row of a run, locked for the caller's transaction; None where it was closed or went elsewhere."""
        return self.select_for_update().filter(task_id=task_id, gen=gen, state=states.STARTED).first()

    def mark_revoked(self, reason: str) -> list[str]:
        """Revoke those of these rows that wait; what a worker has claimed is left alone. Returns the revoked ids."""
        sql, params = self.waiting().values("pk").query.sql_with_params()
        with connection.cursor() as cursor:
            cursor.execute(_REVOKE.format(rows=sql), [reason, *params])
            return [row[0] for row in cursor.fetchall()]

    def mark_expired(self, limit: int) -> list[str]:
        """Revoke what expired; rows that somebody holds just now are left for the next time."""
        expired = self.waiting().filter(expires__lte=Now()).order_by("pk").select_for_update(skip_locked=True)
        ids = list(expired.values_list("pk", flat=True)[:limit])
        return self.filter(pk__in=ids).mark_revoked("expired") if ids else []

    def stop(self, reason: str, signal: str = "") -> dict[str, str]:
        """Revoke those of these rows that wait, and ask those that run to stop: by themselves, or by their workers
        with `signal`. Returns the ids of both, with their states.

        One statement, so that none slips from one side to the other between two.
        """
        sql, params = self.unfinished().values("pk").query.sql_with_params()
        with connection.cursor() as cursor:
            cursor.execute(_STOP.format(rows=sql), [signal, reason, *params])
            return dict(cursor.fetchall())

    def mark_unpublishable(self, record: "TaskRecord", reason: str, exc_type: str) -> int:
        """End a task of which no message can be made."""
        row = self.waiting().filter(pk=record.pk, gen=record.gen)
        return row.update(
            state=states.FAILURE, publish_at=None, finished_at=Now(), exc_type=exc_type, exc_message=reason
        )

    def mark_dropped(self, task_id: str, gen: int, state: str) -> int:
        """End a run whose body raised Celery's Ignore or Reject: there is no result."""
        run = self.filter(task_id=task_id, gen=gen, state=states.STARTED)
        return run.update(state=state, finished_at=Now(), lease_until=None)


def arrays(messages: Iterable[tuple[str, int]]) -> list[list[Any]]:
    return [list(column) for column in zip(*messages, strict=True)] or [[], []]


#: The columns of a new record, and their types.
INSERTED = {
    "args": "text", "kwargs": "text", "options": "text", "task_id": "varchar", "name": "varchar", "queue": "varchar",
    "priority": "smallint", "root_id": "varchar", "parent_id": "varchar", "group_id": "varchar",
    "replay_of_id": "bigint", "retries": "int", "max_retries": "int", "eta": "timestamptz", "expires": "timestamptz",
    "idempotency_key": "varchar", "unique_key": "varchar", "unique_until": "timestamptz", "limit_key": "varchar",
    "publish_at": "timestamptz",
}  # fmt: skip
#: With spans in seconds, which begin when the database has the record: a submitter's own clock may be wrong.
GIVEN = INSERTED | {"countdown": "float8", "publish_in": "float8", "expires_in": "float8", "unique_for": "float8"}


def _in_seconds(span: str) -> str:
    # Not clock_timestamp(), which goes on within a statement: `eta` and `publish_at` of one countdown are the same.
    return f"statement_timestamp() + {span} * interval '1 s'"


_VALUES = {name: name for name in INSERTED} | {
    "eta": f"coalesce(eta, {_in_seconds('countdown')})",
    "expires": f"coalesce(expires, {_in_seconds('expires_in')})",
    "unique_until": f"coalesce(unique_until, {_in_seconds('unique_for')})",
    "publish_at": f"coalesce(publish_at, {_in_seconds('coalesce(publish_in, %s)')})",
}
_INSERT = f"""
INSERT INTO {TABLE} ({", ".join(INSERTED)})
SELECT {", ".join(_VALUES.values())}
FROM {{rows}}
ON CONFLICT DO NOTHING
"""
_ONE = f"(VALUES ({', '.join(f'%s::{kind}' for kind in GIVEN.values())})) AS new ({', '.join(GIVEN)})"
_INSERT_ONE = _INSERT.format(rows=_ONE)
_INSERT_MANY = _INSERT.format(rows=rowset(GIVEN)) + "RETURNING task_id"
#: With the grace and a new record's values as parameters, under a condition.
INSERT_IF = _INSERT.format(rows=f"{_ONE} WHERE {{condition}}") + "RETURNING task_id"
MESSAGES = "FROM unnest(%s::varchar[], %s::int[]) AS message (task_id, gen)"
_MARK_PUBLISHED = f"""
UPDATE {TABLE} AS task SET published_at = clock_timestamp(), publish_at = NULL
{MESSAGES}
WHERE task.task_id = message.task_id AND task.gen = message.gen AND task.publish_at IS NOT NULL
"""
#: A task that is unique while it waits is no longer so: another may wait for it to end.
_CLAIM = f"""
UPDATE {TABLE} SET
    state = 'STARTED', attempt = attempt + 1, worker = %s, worker_pid = %s, max_lost = %s,
    started_at = clock_timestamp(), lease_until = clock_timestamp() + make_interval(secs => %s),
    publish_at = NULL, published_at = coalesce(published_at, clock_timestamp()), parked_at = NULL,
    slot_at = CASE WHEN limit_key IS NOT NULL THEN coalesce(slot_at, clock_timestamp()) END,
    unique_key = CASE WHEN unique_key LIKE 'waiting %%' THEN NULL ELSE unique_key END
WHERE task_id = %s AND gen = %s AND name = coalesce(%s, name)
    AND state IN ('PENDING', 'RETRY') AND (expires IS NULL OR expires > clock_timestamp())
RETURNING {", ".join(Run._fields)}
"""
_CLAIMED = f"""
SELECT {", ".join(Run._fields)} FROM {TABLE}
WHERE task_id = %s AND gen = %s AND worker = %s AND worker_pid = %s AND state = 'STARTED'
"""
#: Past rows that somebody holds just now: one that is held for long must not cost the others their leases.
_RENEW = f"""
WITH held AS (
    SELECT task.id {MESSAGES}
    JOIN {TABLE} AS task ON task.task_id = message.task_id AND task.gen = message.gen
    WHERE task.state IN ('PENDING', 'RETRY', 'STARTED')
    FOR UPDATE OF task SKIP LOCKED
)
UPDATE {TABLE} AS task SET lease_until = clock_timestamp() + make_interval(secs => %s)
FROM held WHERE task.id = held.id
RETURNING task.task_id, task.state = 'STARTED', task.cancel_signal
"""
_REVOKE = f"""
UPDATE {TABLE} SET
    state = 'REVOKED', publish_at = NULL, parked_at = NULL, finished_at = clock_timestamp(),
    exc_type = 'TaskRevokedError', exc_message = %s
WHERE state IN ('PENDING', 'RETRY') AND id IN ({{rows}})
RETURNING task_id
"""
_STOP = f"""
WITH asked (signal, reason) AS (SELECT %s::varchar, %s::text)
UPDATE {TABLE} SET
    cancel_at = coalesce(cancel_at, clock_timestamp()),
    cancel_signal = coalesce(nullif(signal, ''), cancel_signal),
    state = CASE WHEN state = 'STARTED' THEN state ELSE 'REVOKED' END,
    publish_at = NULL, parked_at = NULL,
    finished_at = CASE WHEN state = 'STARTED' THEN NULL ELSE clock_timestamp() END,
    exc_type = CASE WHEN state = 'STARTED' THEN exc_type ELSE 'TaskRevokedError' END,
    exc_message = CASE WHEN state = 'STARTED' THEN exc_message ELSE reason END
FROM asked
WHERE state IN ('PENDING', 'STARTED', 'RETRY') AND id IN ({{rows}})
RETURNING task_id, state
"""
