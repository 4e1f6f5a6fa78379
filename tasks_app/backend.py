"""The result backend: django-celery-results' tables, with the record closed in the statement that stores the result.

Only the run that holds the record's `gen` can close it, so a late result of a run that was lost or revoked is refused,
and so is all that would follow from it: the next steps of a workflow, and the part of a chord, are written in the
transaction that closes the record. The worker's parent process, which reports time limits and killed children, and
whoever ends a run whose worker is gone, come through the same statement.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial

from billiard.exceptions import WorkerLostError
from celery import states as celery_states
from celery.app.task import Context
from celery.exceptions import NotRegistered, TaskRevokedError
from celery.utils.saferepr import saferepr
from django.conf import settings
from django.db import InterfaceError, OperationalError, transaction
from django.db.models import Q
from django_celery_results.models import TaskResult
from kombu.exceptions import EncodeError

from tasks_app import states
from tasks_app.chords import ChordBackend
from tasks_app.execution import foreign_record, gen_of, patiently, request_of
from tasks_app.models import TaskRecord, printable
from tasks_app.notify import DUE_CHANNEL, notify
from tasks_app.outbox import Successors, take_successors
from tasks_app.statements import brief_transaction, execute
from tasks_app.waiting import WaitingBackend

logger = logging.getLogger(__name__)

#: Characters of a result, as JSON, of an exception's message and of a traceback that are kept.
RESULT_MAX: int = getattr(settings, "TASK_RESULT_MAX_BYTES", 1_048_576)
#: Seconds for which a task that no worker knows is tried again: a deploy may bring one that does.
UNREGISTERED_GRACE: float = getattr(settings, "TASK_UNREGISTERED_GRACE", 600)

#: What was asked to stop ends as REVOKED, unless it had succeeded already.
_CLOSE = f"""
UPDATE {TaskRecord._meta.db_table} SET
    state = %s, publish_at = NULL, finished_at = clock_timestamp(), lease_until = NULL,
    result_preview = %s, note = %s, exc_type = %s, exc_message = %s
WHERE task_id = %s AND coalesce(gen = %s, true) AND state IN ('PENDING', 'STARTED', 'RETRY')
    AND (cancel_at IS NULL OR %s)
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


class _Cancelled(Exception):
    """The run that failed, or was to be retried, had been asked to stop."""


class RecordBackend(WaitingBackend, ChordBackend):
    """Keeps results where django-celery-results does, and the console's record in step with them."""

    @cached_property
    def _is_extended(self) -> bool:
        return bool(self.app.conf.result_extended)

    #: The task whose outcome is being stored.
    _closing: str | None = None

    def _conclude(self, task_id, request, outcome: Callable[[], object], alone: bool) -> None:
        """Store a run's outcome and what follows from it, in one transaction; where it comes late, none of it.

        `alone`: nothing follows from it, so that its one statement needs no transaction. Where the database is away
        it is done again, as a whole.
        """
        take_successors()
        outer = self._closing, self._root
        self._closing, self._root = task_id, getattr(request, "root_id", None) or self._root
        try:
            outcome() if alone else patiently(partial(_in_transaction, outcome), task_id)
        except _Fenced:
            pass
        except _Cancelled:
            self.mark_as_revoked(task_id, "asked to stop", request)
        finally:
            self._closing, self._root = outer

    def mark_as_done(self, task_id, result, request=None, store_result=True, state=celery_states.SUCCESS):
        successors = take_successors() or Successors()
        follows = successors.records or successors.chords or (request and request.chord)

        def outcome():
            if store_result:
                self.store_result(task_id, result, state, request=request)
            else:
                self._close(task_id, state, request)
            if successors.records or successors.chords:
                stopped = TaskRecord.objects.filter(task_id=task_id, cancel_at__isnull=False).exists()
                self.app.submit_successors(successors, revoked=stopped)
            if request and request.chord:
                with _contained(task_id):
                    self.on_chord_part_return(request, state, result)

        self._conclude(task_id, request, outcome, alone=not follows)

    def mark_as_failure(
        self, task_id, exc, traceback=None, request=None, store_result=True, call_errbacks=True,
        state=celery_states.FAILURE,
    ):  # fmt: skip
        if isinstance(exc, WorkerLostError) and hasattr(request, "id"):
            return self.mark_as_lost(task_id, gen_of(request), str(exc))
        if isinstance(exc, NotRegistered) and self._wait_for_another_worker(task_id, exc):
            return None
        follows = request and (request.chord or getattr(request, "chain", None) or request.errbacks)

        def outcome():
            if store_result:
                self.store_result(task_id, exc, state, traceback=traceback, request=request)
            self._follow(request, state, exc, traceback, call_errbacks)

        return self._conclude(task_id, request, outcome, alone=not follows)

    def mark_as_revoked(self, task_id, reason="", request=None, store_result=True, state=celery_states.REVOKED):
        def outcome():
            exc = TaskRevokedError(reason)
            self.store_result(task_id, exc, state, request=request)
            self._follow(request, state, exc)

        self._conclude(task_id, request, outcome, alone=False)

    def mark_as_retry(self, task_id, exc, traceback=None, request=None, store_result=True, state=celery_states.RETRY):
        """Record the run and what it raised, and let the task wait for its next one, as `Task.retry` has asked."""
        next_run = getattr(request, "next_run", None)
        if next_run is None:  # by Celery itself, whose worker lets go of what it runs
            return self.mark_as_released(task_id, gen_of(request), str(exc))

        def outcome():
            run = TaskRecord.objects.run_of(task_id, gen_of(request))
            if run is None:
                _log_fenced(task_id, state)
                raise _Fenced
            if run.cancel_at:
                raise _Cancelled
            run.keep_attempt(type(exc).__name__ if exc else "", _cut(str(exc or "")), _cut(traceback or ""))
            moved = run.wait_again(next_run)
            super(RecordBackend, self).mark_as_retry(task_id, exc, _cut(traceback or ""), request)
            self._wake_or_publish(moved, next_run.publish_at)

        return self._conclude(task_id, request, outcome, alone=False)

    def mark_as_lost(self, task_id: str, gen: int, reason: str) -> None:
        """End a run whose process is gone: its task is repeated if it says so (`acks_late`), or it has failed."""

        def outcome():
            run = TaskRecord.objects.run_of(task_id, gen)
            if run is None:
                raise _Fenced
            if TaskRecord.objects.mark_lost(run, reason):
                logger.warning("Run %d of task %s is lost, it is repeated: %s", run.attempt, task_id, reason)
                notify(DUE_CHANNEL)
            else:
                TaskRecord.objects.filter(pk=run.pk).update(lost_count=run.lost_count)
                self._give_up(run, reason)

        self._conclude(task_id, None, outcome, alone=False)

    def mark_as_released(self, task_id: str, gen: int, reason: str) -> None:
        """End a run that its worker can go on with no longer: its task is repeated, or has failed, as for a lost one,
        but it does not count as lost."""

        def outcome():
            run = TaskRecord.objects.run_of(task_id, gen)
            if run is None:
                raise _Fenced
            if run.cancel_at or run.max_lost <= 1:
                self._give_up(run, reason)
            else:
                run.keep_attempt(exc_message=reason)
                run.wait_again(publish_in=0)
                notify(DUE_CHANNEL)

        self._conclude(task_id, None, outcome, alone=False)

    def mark_as_dropped(self, request, state: str, exc: Exception) -> None:
        """End a run whose body raised Ignore or Reject."""
        if getattr(exc, "requeue", False):
            if not TaskRecord.objects.mark_requeued(request.id, gen_of(request)):
                self.mark_as_revoked(request.id, "asked to stop", request)
            return
        with transaction.atomic():
            if not TaskRecord.objects.mark_dropped(request.id, gen_of(request), state):
                own = TaskRecord.objects.filter(task_id=request.id, gen=gen_of(request)).first()
                state = own.state if own else ""  # given by the body itself, with `update_state`
            part = Context(id=request.id, group=request.group, chord=request.chord, root_id=request.root_id)
            if state == celery_states.SUCCESS and part.chord:
                self.on_chord_part_return(part, state, None)
            elif state in states.READY_STATES:
                self._follow(part, celery_states.FAILURE, exc)  # a chain that is left by Ignore just ends

    def follow_revoked(self, task_ids: Iterable[str]) -> None:
        """Let what waits for tasks that were revoked, or expired, while they waited end too."""
        in_workflow = Q(group_id__isnull=False) | Q(options__contains='"chain"')
        for record in TaskRecord.objects.filter(in_workflow, task_id__in=task_ids):
            self._follow(request_of(record), record.state, TaskRevokedError(record.exc_message))

    def follow_end_of(self, record: TaskRecord, reason: str) -> None:
        """The same for one that is not in the table as what it is."""
        self._follow(request_of(record), celery_states.REVOKED, TaskRevokedError(reason))

    def fail_unpublishable(self, record: TaskRecord, error: Exception) -> None:
        """End a task of which no message can be made."""
        exc_type, reason = type(error).__name__, _cut(f"No message can be made of it: {error}")
        with transaction.atomic():
            if TaskRecord.objects.mark_unpublishable(record, reason, exc_type):
                self._follow(request_of(record), celery_states.FAILURE, error)

    def _follow(self, request, state: str, exc: Exception, traceback=None, call_errbacks: bool = True) -> None:
        """What a task that did not succeed means for those that wait for it."""
        if request is None or not (request.chord or getattr(request, "chain", None) or request.errbacks):
            return
        outer = self._closing, self._root
        self._closing, self._root = self._closing or request.id, getattr(request, "root_id", None) or self._root
        with _contained(request.id):
            if request.chord:
                self.on_chord_part_return(request, state, exc)
            self._fail_chain(getattr(request, "chain", None), exc, traceback, state=state)
        with _contained(request.id):  # by itself: an errback that is called here and now may break anything
            if call_errbacks and state == celery_states.FAILURE and request.errbacks:
                self._call_task_errbacks(request, exc, traceback)
        self._closing, self._root = outer

    def _give_up(self, run: TaskRecord, reason: str) -> None:
        request = request_of(run)
        if run.cancel_at:
            exc, state = TaskRevokedError(f"asked to stop; {reason}"), celery_states.REVOKED
        else:
            exc, state = WorkerLostError(reason), celery_states.FAILURE
        self.store_result(run.task_id, exc, state, request=request)
        self._follow(request, state, exc)

    def _wait_for_another_worker(self, task_id: str, exc: NotRegistered) -> bool:
        moved = TaskRecord.objects.mark_unregistered(task_id, f"not registered in a worker: {exc}", UNREGISTERED_GRACE)
        if moved:
            logger.warning("Task %s waits for a worker that knows it: %s", task_id, exc)
        return moved or TaskRecord.objects.is_to_come(task_id)

    def _wake_or_publish(self, record: TaskRecord, publish_at) -> None:
        if publish_at:
            notify(DUE_CHANNEL)
        else:
            transaction.on_commit(lambda: self.app.publisher.publish_committed([record]))

    def _store_result(self, task_id, result, status, traceback=None, request=None, using=None):
        if status == celery_states.RETRY:
            return super()._store_result(task_id, result, status, traceback, request, using)
        if status not in states.READY_STATES:  # a state of the task's own, by `update_state`
            with transaction.atomic():
                if task_id != getattr(request, "id", None) or TaskRecord.objects.run_of(task_id, gen_of(request)):
                    return super()._store_result(task_id, result, status, traceback, request, using)
            _log_fenced(task_id, status)
            return None
        exception = _exception_words(result) if status in states.EXCEPTION_STATES else ("", "")
        (content_type, content_encoding, encoded), note = self._kept(result, exception)
        meta = {**self._get_meta_from_request(request), "children": self.current_task_children(request)}
        extended = self._get_extended_properties(request, traceback) if self._is_extended else {}
        traceback = _cut(traceback) if traceback else None
        self._close(task_id, status, request, encoded, note, exception, [
            task_id, status, content_type, content_encoding, encoded, traceback, self.encode_content(meta)[2],
            extended.get("task_args"), extended.get("task_kwargs"), extended.get("periodic_task_name"),
        ])  # fmt: skip
        return encoded

    def _kept(self, result, exception: tuple[str, str]) -> tuple[tuple[str, str, str], str]:
        """A result as it is stored, and what had to be done to it for that."""
        note = ""
        try:
            kept = self.encode_content(result)
        except (EncodeError, TypeError, ValueError, RecursionError) as error:
            note = f"Not JSON, kept as its repr: {error}"[:200]
            kept = self.encode_content(_repr(result))
        if (length := len(kept[2])) <= RESULT_MAX:
            return kept, note
        note = f"Cut: {length:,} characters as JSON, {RESULT_MAX:,} are kept"
        if exception[0]:
            return self.encode_content(
                {"exc_type": exception[0], "exc_message": [exception[1]], "exc_module": result.get("exc_module")}
            ), note
        return self.encode_content(f"{kept[2][:RESULT_MAX]} … ({note})"), note

    def _close(self, task_id, state, request, encoded="", note="", exception=("", ""), result_row=()):
        """Close the record and store the result row, if any, in one statement. A task without a record gets one."""
        # A step that never came has no gen that anybody knows: what would have sent it closes it.
        has_gen = request is not None and hasattr(request, "id") and self._closing in (None, task_id)
        gen = gen_of(request) if has_gen else None
        preview = "" if exception[0] else encoded[:200]
        may_be_cancelled = state in (celery_states.SUCCESS, celery_states.REVOKED)
        values = [state, preview, note, *exception, task_id, gen, may_be_cancelled, *result_row]
        sql = _CLOSE_WITH_RESULT if result_row else _CLOSE
        if patiently(lambda: execute(sql, values).rowcount, task_id):
            return
        if record := TaskRecord.objects.filter(task_id=task_id).only("state", "gen", "cancel_at").first():
            if task_id != self._closing:
                return
            if record.cancel_at and record.state not in states.READY_STATES and gen in (None, record.gen):
                raise _Cancelled
            _log_fenced(task_id, state)
            raise _Fenced
        is_task = not getattr(request, "subtask_type", None)  # but a chord, say, in a chain that failed
        if not is_task or (request is None and state == celery_states.REVOKED):  # a worker hears of revokes of any id
            return
        TaskRecord.objects.adopt(foreign_record(request, task_id, root_id=self._root))
        execute(sql, values)


def _exception_words(result) -> tuple[str, str]:
    """Type and message of an exception as Celery's backends prepare it for JSON."""
    if not isinstance(result, dict) or not {"exc_type", "exc_message"} <= result.keys():
        return "", _cut(str(result or ""))  # `update_state(state="FAILURE", meta=…)`
    message = result["exc_message"]
    if isinstance(message, list | tuple):
        message = ", ".join(map(str, message))
    return result["exc_type"], _cut(str(message))


def _cut(text: str) -> str:
    """`text` as Postgres can hold it, without its middle where it is too long."""
    text = printable(text)
    if len(text) <= RESULT_MAX:
        return text
    return f"{text[: RESULT_MAX // 2]}\n… ({len(text):,} characters) …\n{text[-RESULT_MAX // 2 :]}"


def _repr(value) -> str:
    try:
        return saferepr(value, maxlen=10_000)
    except Exception as error:
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"


@contextmanager
def _contained(task_id: str) -> Iterator[None]:
    """A task's own end does not depend on what follows: what cannot be done, for a broken signature say, is logged."""
    try:
        with transaction.atomic():
            yield
    except (OperationalError, InterfaceError):
        raise
    except Exception:
        logger.exception("What follows from the end of task %s could not be done", task_id)


def _in_transaction(outcome: Callable[[], object]) -> None:
    with brief_transaction(idle=60):  # an errback may be called in it
        outcome()


def _log_fenced(task_id, state) -> None:
    logger.warning("Late %s of task %s refused: it was closed, or runs elsewhere.", state, task_id)
