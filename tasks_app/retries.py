"""The ways back to waiting: a retry, a run that was lost, let go or replaced, a message that came to nothing.

Each raises the record's `gen`, so that what carries the old one, a message or a run, changes nothing any more; and says
when the relay is to publish the record again. What was to be kept of the run is kept as an attempt.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from django.db import models, transaction
from django.db.models.functions import Now

from tasks_app import moments, states
from tasks_app.moves import HELD_GRACE, MESSAGES, PUBLISH_GRACE, TABLE, TaskQuerySet, arrays
from tasks_app.statements import execute

if TYPE_CHECKING:
    from tasks_app.models import TaskRecord


def wait_again(
    record: "TaskRecord", next_run: "TaskRecord | None" = None, publish_in: float = PUBLISH_GRACE
) -> "TaskRecord":
    """Save it as waiting, under the next gen: as `next_run` says, or as before, in `publish_in` seconds."""
    record.gen += 1
    record.redelivered = next_run is None
    record.publish_at = Now() + timedelta(seconds=publish_in)
    if next_run is not None:
        _take_from(record, next_run)
    if "scheduled_for" in (record.options.get("headers") or {}):  # of a schedule's run it is the time to start by
        record.expires = None
    record.refused = record.missed = 0
    record.published_at = record.lease_until = record.slot_at = None
    given = record.args, record.kwargs, record.options
    if next_run is not None:
        record.args, record.kwargs, record.options = next_run.encoded()
    record.save()
    record.args, record.kwargs, record.options = given
    return record


def _take_from(record: "TaskRecord", next_run: "TaskRecord") -> None:
    """What the next run of a task brings; its spans begin now, by the database's clock."""
    for name in ("args", "kwargs", "options", "queue", "priority", "limit_key", "retries", "eta"):
        setattr(record, name, getattr(next_run, name))
    for name, span in (("eta", "countdown"), ("publish_at", "publish_in"), ("expires", "expires_in")):
        if (seconds := getattr(next_run, span)) is not None:
            setattr(record, name, Now() + timedelta(seconds=seconds))
    for name in ("publish_at", "expires"):
        if (given := getattr(next_run, name)) is not None:
            setattr(record, name, given)


def keep_attempt(
    record: "TaskRecord", exc_type: str = "", exc_message: str = "", traceback: str = "", state: str = states.RETRY
) -> None:
    """Keep the run that ends here, or has ended, as history."""
    record.attempts.create(
        attempt=record.attempt,
        state=state,
        worker=record.worker,
        worker_pid=record.worker_pid,
        started_at=record.started_at,
        finished_at=record.finished_at or moments.now(),
        exc_type=exc_type,
        exc_message=exc_message,
        traceback=traceback,
    )
    record.state, record.exc_type, record.exc_message = states.RETRY, exc_type, exc_message


class RetryQuerySet(TaskQuerySet):
    """The moves of a record's state, with those back to waiting."""

    def mark_lost(self, run: "TaskRecord", reason: str) -> bool:
        """Let a locked run that was lost be repeated; False where it is not to be."""
        if run.cancel_at or run.lost_count + 1 >= run.max_lost:
            return False
        run.lost_count += 1
        keep_attempt(run, "WorkerLostError", reason)
        wait_again(run, publish_in=min(run.lost_count, 10))
        return True

    def mark_released(self, run: "TaskRecord", reason: str) -> bool:
        """Let a locked run that its worker lets go of be repeated; False where it is not to be."""
        if run.cancel_at or run.max_lost <= 1:
            return False
        keep_attempt(run, exc_message=reason)
        wait_again(run, publish_in=0)
        return True

    def mark_handed_back(self, messages: Iterable[tuple[str, int]]) -> int:
        """Let what a worker holds without having started it go to another, at once."""
        return execute(_REPUBLISH, arrays(messages)).rowcount

    def mark_missed(self, messages: Iterable[tuple[str, int]], most: int) -> int:
        """Let messages that were lost be published again; not those of which this would be the `most`th."""
        return execute(_MARK_MISSED, [*arrays(messages), most]).rowcount

    def mark_refused(self, task_id: str, gen: int, reason: str, most: int) -> int:
        """Let a message that a worker could not take be published again, later each time; not for the `most`th time."""
        return execute(_MARK_REFUSED, [reason, task_id, gen, most]).rowcount

    def mark_all_forgotten(self) -> int:
        """Let all that was published and not claimed be published again."""
        published = self.waiting().filter(publish_at=None, published_at__isnull=False)
        return published.update(gen=models.F("gen") + 1, publish_at=Now(), published_at=None, lease_until=None)

    def mark_replaced(self, task_id: str, gen: int) -> bool:
        """End a run whose task goes on as another, or as the last step of a workflow, under its id (Task.replace).

        False where it was asked to stop, or is not in force.
        """
        return bool(self._repeatable(task_id, gen).update(publish_at=None, **_waiting_again(gen)))

    def take_over(self, successor: "TaskRecord") -> "TaskRecord | None":
        """Let a replaced task's record wait as its successor. None where there is no such record."""
        with transaction.atomic():
            replaced = self.filter(state=states.PENDING, publish_at=None, published_at=None, attempt__gt=0)
            record = replaced.select_for_update().filter(task_id=successor.task_id).first()
            if record is None:
                return None
            record.name = successor.name
            return wait_again(record, successor)

    def start_anew(self, successor: "TaskRecord") -> "TaskRecord | None":
        """Let a task that has ended start anew as `successor`, which was sent under its id; its last run is kept as an
        attempt. None where there is no such task. (Celery runs what is sent twice under one id twice.)"""
        with transaction.atomic():
            ended = self.filter(task_id=successor.task_id, state__in=states.READY_STATES)
            record = ended.select_for_update().first()
            if record is None:
                return None
            if record.attempt and not record.attempts.filter(attempt=record.attempt).exists():
                keep_attempt(record, record.exc_type, record.exc_message, state=record.state)
            for name in _RENEWED:
                setattr(record, name, getattr(successor, name))
            record.state, record.finished_at, record.cancel_at, record.cancel_signal = states.PENDING, None, None, ""
            record.exc_type = record.exc_message = record.note = record.result_preview = ""
            record.lost_count, record.parked_at, record.expires = 0, None, None
            return wait_again(record, successor)

    def mark_postponed(self, record: "TaskRecord", reason: str, seconds: float) -> int:
        """Let a message be published later, since the broker did not take it."""
        row = self.waiting().filter(pk=record.pk, gen=record.gen)
        return row.update(publish_at=Now() + timedelta(seconds=seconds), exc_message=reason[:500])

    def mark_unregistered(self, task_id: str, reason: str, grace: float) -> bool:
        """Let a task that its worker does not know (an old one, during a deploy) wait for one that does.

        For as long as it has waited already, at most a minute; False where that was `grace` seconds or more.
        """
        return bool(execute(_MARK_UNREGISTERED, [reason, task_id, grace]).rowcount)

    def is_to_come(self, task_id: str) -> bool:
        """Whether it waits, and has no message in force: what came for it was an old one."""
        soon = Now() + timedelta(seconds=HELD_GRACE)
        sent = models.Q(publish_at__lte=soon) | models.Q(publish_at=None, published_at__isnull=False)
        return self.waiting().filter(task_id=task_id).exclude(sent).exists()

    def mark_requeued(self, task_id: str, gen: int) -> bool:
        """Let a run whose body raised Reject(requeue=True) wait again, to be published by the relay in a second.

        False where it was asked to stop, or is not in force.
        """
        in_a_second = Now() + timedelta(seconds=1)
        waiting = _waiting_again(gen) | {"redelivered": True}
        return bool(self._repeatable(task_id, gen).update(publish_at=in_a_second, **waiting))

    def _repeatable(self, task_id: str, gen: int) -> Self:
        return self.filter(task_id=task_id, gen=gen, state=states.STARTED, cancel_at=None)


#: Fields of a record that starts anew, besides those that each new run brings (wait_again).
_RENEWED = (
    "name", "root_id", "parent_id", "group_id", "max_retries", "replay_of_id", "idempotency_key", "unique_key",
    "unique_until",
)  # fmt: skip


def _waiting_again(gen: int) -> dict[str, Any]:
    return {"state": states.PENDING, "gen": gen + 1, "published_at": None, "lease_until": None, "slot_at": None}


_REPUBLISH = f"""
UPDATE {TABLE} AS task SET gen = task.gen + 1, publish_at = clock_timestamp(), published_at = NULL, lease_until = NULL
{MESSAGES}
WHERE task.task_id = message.task_id AND task.gen = message.gen AND task.state IN ('PENDING', 'RETRY')
"""
_MARK_MISSED = f"""
UPDATE {TABLE} AS task SET
    missed = missed + 1, gen = task.gen + 1, publish_at = clock_timestamp(), published_at = NULL, lease_until = NULL
{MESSAGES}
WHERE task.task_id = message.task_id AND task.gen = message.gen AND task.state IN ('PENDING', 'RETRY')
    AND missed + 1 < %s
"""
_MARK_REFUSED = f"""
UPDATE {TABLE} SET
    refused = refused + 1, gen = gen + 1, published_at = NULL, lease_until = NULL,
    publish_at = clock_timestamp() + (refused + 1) * interval '1 s', exc_type = 'MessageRefused', exc_message = %s
WHERE task_id = %s AND gen = %s AND state IN ('PENDING', 'RETRY') AND refused + 1 < %s
"""
_MARK_UNREGISTERED = f"""
UPDATE {TABLE} SET
    gen = gen + 1, published_at = NULL, exc_type = 'NotRegistered', exc_message = %s,
    publish_at = clock_timestamp()
        + least(greatest(clock_timestamp() - coalesce(eta, created_at), interval '1 s'), interval '60 s')
WHERE task_id = %s AND state IN ('PENDING', 'RETRY') AND coalesce(publish_at, published_at) < clock_timestamp()
        + interval '{HELD_GRACE} s'
    AND coalesce(eta, created_at) > clock_timestamp() - %s * interval '1 s'
"""
