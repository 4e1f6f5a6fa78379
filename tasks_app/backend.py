"""The result backend: django-celery-results' tables, with the record closed in the statement that stores the result.

Only the run that holds the record's `gen` can close it, so a late result of a run that was lost or revoked is refused.
The worker's parent process, which reports time limits and killed children, comes through the same statement.
"""

import logging
from contextlib import contextmanager, suppress
from functools import cached_property

from celery import states as celery_states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from django.db import transaction
from django_celery_results.backends.database import DatabaseBackend
from django_celery_results.models import TaskResult

from tasks_app import states
from tasks_app.execution import foreign_record, gen_of, patiently
from tasks_app.models import TaskRecord, execute, printable
from tasks_app.notify import DUE_CHANNEL, notify

logger = logging.getLogger(__name__)

_CLOSE = f"""
UPDATE {TaskRecord._meta.db_table} SET
    state = %s, publish_at = NULL, finished_at = clock_timestamp(),
    result_preview = %s, exc_type = %s, exc_message = %s
WHERE task_id = %s AND coalesce(gen = %s, true) AND state IN ('PENDING', 'STARTED', 'RETRY')
RETURNING started_at, worker, name
"""
_CLOSE_WITH_RESULT = f"""
WITH closed AS ({_CLOSE})
INSERT INTO {TaskResult._meta.db_table} AS stored (
    task_id, status, content_type, content_encoding, result, traceback, meta, task_args, task_kwargs,
    periodic_task_name, task_name, worker, date_created, date_started, date_done)
SELECT %s, %s, %s, %s, %s, %s, %s, %s, %s, %s,
    name, left(worker, 100), coalesce(started_at, clock_timestamp()), started_at, clock_timestamp()
FROM closed
ON CONFLICT (task_id) DO UPDATE SET
    status = excluded.status, content_type = excluded.content_type, content_encoding = excluded.content_encoding,
    result = excluded.result, traceback = excluded.traceback, meta = excluded.meta,
    task_args = excluded.task_args, task_kwargs = excluded.task_kwargs, task_name = excluded.task_name,
    worker = excluded.worker, date_started = excluded.date_started, date_done = excluded.date_done
"""


class _Fenced(Exception):
    """The run whose outcome was to be stored had been closed, or had gone elsewhere."""


class RecordBackend(DatabaseBackend):
    """Keeps results where django-celery-results does, and the console's record in step with them."""

    @cached_property
    def _is_extended(self) -> bool:
        return bool(self.app.conf.result_extended)

    _closing: str | None = None

    @contextmanager
    def _outcome(self, task_id):
        """Store a run's outcome and what follows from it (chord, chain, errbacks); where it comes late, none of it."""
        self._closing = task_id
        try:
            with suppress(_Fenced):
                yield
        finally:
            self._closing = None

    def mark_as_done(self, task_id, result, request=None, store_result=True, state=celery_states.SUCCESS):
        with self._outcome(task_id):
            if store_result:
                self.store_result(task_id, result, state, request=request)
            else:
                self._close(task_id, state, request)
            if request and request.chord:
                self.on_chord_part_return(request, state, result)

    def mark_as_failure(self, task_id, *args, **kwargs):
        with self._outcome(task_id):
            super().mark_as_failure(task_id, *args, **kwargs)

    def mark_as_revoked(self, task_id, *args, **kwargs):
        with self._outcome(task_id):
            super().mark_as_revoked(task_id, *args, **kwargs)

    def count_revoked(self, task_ids) -> None:
        """Let the chords of tasks that were revoked while they waited go on: their bodies fail, as Celery has it."""
        for record in TaskRecord.objects.filter(task_id__in=task_ids, group_id__isnull=False):
            if chord := record.options.get("chord"):
                request = Context(id=record.task_id, group=record.group_id, chord=chord)
                self.on_chord_part_return(request, record.state, TaskRevokedError(record.exc_message))

    def mark_as_retry(self, task_id, exc, traceback=None, request=None, store_result=True, state=celery_states.RETRY):
        """Record the run and what it raised, and let the task wait for its next one, as `Task.retry` has asked."""
        next_run = getattr(request, "next_run", None)  # None: Celery repeats a run whose process was lost
        return patiently(lambda: self._wait_for_retry(task_id, exc, traceback, request, next_run), task_id)

    def _wait_for_retry(self, task_id, exc, traceback, request, next_run):
        with transaction.atomic():
            moved = TaskRecord.objects.mark_retry(
                task_id,
                gen_of(request),
                next_run,
                type(exc).__name__ if exc else "",
                printable(str(exc or "")),
                printable(traceback or ""),
            )
            if moved is None:
                _log_fenced(task_id, celery_states.RETRY)
                return None
            stored = super().mark_as_retry(task_id, exc, traceback, request)
            if next_run and next_run.publish_at:
                notify(DUE_CHANNEL)
            else:
                transaction.on_commit(lambda: self.app.publish_submitted([moved]))
        return stored

    def chord_error_from_stack(self, callback, exc=None):
        """Celery marks a chord's body as failed without ever sending it: it gets a record, so that it can be seen."""
        if callback.id and "tasks" not in callback.get("kwargs", {}):
            TaskRecord.objects.adopt(foreign_record(None, callback.id, callback.task))
        return super().chord_error_from_stack(callback, exc)

    def _store_result(self, task_id, result, status, traceback=None, request=None, using=None):
        if status not in states.READY_STATES:  # RETRY, and states of a task's own (`update_state`)
            return super()._store_result(task_id, result, status, traceback, request, using)
        content_type, content_encoding, encoded = self.encode_content(result)
        meta = {**self._get_meta_from_request(request), "children": self.current_task_children(request)}
        extended = self._get_extended_properties(request, traceback) if self._is_extended else {}
        traceback = printable(traceback) if traceback else None
        exception = _exception_words(result) if status in states.EXCEPTION_STATES else ("", "")
        self._close(task_id, status, request, encoded, exception, [
            task_id, status, content_type, content_encoding, encoded, traceback, self.encode_content(meta)[2],
            extended.get("task_args"), extended.get("task_kwargs"), extended.get("periodic_task_name"),
        ])  # fmt: skip
        return encoded

    def _close(self, task_id, state, request, encoded="", exception=("", ""), result_row=()):
        """Close the record and store the result row, if any, in one statement. A task without a record gets one."""
        gen = gen_of(request) if request is not None and hasattr(request, "id") else None
        preview = "" if exception[0] else encoded[:200]
        values = [state, preview, *exception, task_id, gen, *result_row]
        sql = _CLOSE_WITH_RESULT if result_row else _CLOSE
        if patiently(lambda: execute(sql, values).rowcount, task_id):
            return
        if TaskRecord.objects.filter(task_id=task_id).exists():
            _log_fenced(task_id, state)
            if task_id == self._closing:
                raise _Fenced
            return
        TaskRecord.objects.adopt(foreign_record(request, task_id))
        execute(sql, values)

    def _get_task_meta_for(self, task_id):
        """As django-celery-results tells it; where that has no result, as the record does."""
        meta = super()._get_task_meta_for(task_id)
        if meta["status"] in states.READY_STATES:
            return meta
        record = TaskRecord.objects.filter(task_id=task_id).first()
        if record is None:
            return meta
        ended = record.state in states.READY_STATES
        if ended:  # with no result, unless both came between the two looks
            meta = super()._get_task_meta_for(task_id)
        if meta["status"] == states.PENDING or (ended and meta["status"] not in states.READY_STATES):
            meta["status"] = record.state
            if record.state in states.EXCEPTION_STATES:
                meta["result"] = self.exception_to_python(
                    {"exc_type": record.exc_type, "exc_message": [record.exc_message], "exc_module": _module(record)}
                )
        return meta


def _module(record) -> str:
    return TaskRevokedError.__module__ if record.exc_type == TaskRevokedError.__name__ else "builtins"


def _exception_words(result) -> tuple[str, str]:
    """Type and message of an exception as Celery's backends prepare it for JSON."""
    if not isinstance(result, dict) or not {"exc_type", "exc_message"} <= result.keys():
        return "", printable(str(result or ""))  # `update_state(state="FAILURE", meta=…)`
    message = result["exc_message"]
    if isinstance(message, list | tuple):
        message = ", ".join(map(str, message))
    return result["exc_type"], printable(str(message))


def _log_fenced(task_id, state) -> None:
    logger.warning("Late %s of task %s refused: it was closed, or runs elsewhere.", state, task_id)
