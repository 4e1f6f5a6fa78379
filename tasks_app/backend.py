"""The result backend: django-celery-results' tables, with the record closed in the statement that stores the result.

Only the run that holds the record's `gen` can close it, so a late result of a run that was lost or revoked is refused,
and so is all that would follow from it: the next steps of a workflow, and the part of a chord, are written in the
transaction that closes the record. The worker's parent process, which reports time limits and killed children, and
whoever ends a run whose worker is gone, come through the same statement.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

from billiard.exceptions import WorkerLostError
from celery import states as celery_states
from celery.app.task import Context
from celery.exceptions import NotRegistered, Reject, TaskRevokedError
from django.db import DataError, connection, transaction
from django_celery_results.models import TaskResult

from tasks_app import states
from tasks_app.conf import conf
from tasks_app.consequences import ConsequenceBackend, call_each, contained
from tasks_app.execution import aside, foreign_record, gen_of, patiently, request_of
from tasks_app.gathering import Successors, take_successors
from tasks_app.messages import may_adopt
from tasks_app.models import FORGOTTEN, TaskRecord
from tasks_app.moves import INSERT_IF
from tasks_app.notify import DUE_CHANNEL, notify
from tasks_app.outbox import may_have_steps
from tasks_app.outcomes import OutcomeBackend, cut, words_of
from tasks_app.statements import brief_transaction, execute
from tasks_app.waiting import IGNORED, WaitingBackend

logger = logging.getLogger(__name__)


#: What was asked to stop ends as REVOKED, unless it had succeeded already.
_CLOSE = f"""
UPDATE {TaskRecord._meta.db_table} SET
    state = %s, publish_at = NULL, finished_at = clock_timestamp(), lease_until = NULL,
    result_preview = %s, note = %s, exc_type = %s, exc_message = %s
WHERE task_id = %s AND coalesce(gen = %s, true) AND state IN ('PENDING', 'STARTED', 'RETRY')
    AND (cancel_at IS NULL OR %s)
RETURNING cancel_at IS NOT NULL AS was_stopped, started_at, worker, name
"""
_WITH_RESULT = f"""
WITH closed AS ({_CLOSE}),
stored AS (
    INSERT INTO {TaskResult._meta.db_table} (
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
)
"""
_CLOSE_WITH_RESULT = f"{_WITH_RESULT} SELECT was_stopped FROM closed"
#: With the one step that follows, as most steps of chains are: a round trip instead of a transaction's five. Where that
#: step is not to start, or not new, it is an error, and nothing is written.
_CLOSE_AND_GO_ON = f"""
{_WITH_RESULT}, next AS ({INSERT_IF.format(condition="EXISTS (SELECT FROM closed WHERE NOT was_stopped)")})
SELECT was_stopped, (SELECT 1 / count(*) FROM next) FROM closed
"""


class _Fenced(Exception):
    """The run whose outcome was to be stored had been closed, or had gone elsewhere."""


class _Cancelled(Exception):
    """The run that failed, or was to be retried, had been asked to stop."""


class RecordBackend(WaitingBackend, OutcomeBackend, ConsequenceBackend):
    """Keeps results where django-celery-results does, and the console's record in step with them.

    An outcome is stored in three steps. What calls a project's code (encoders, signal handlers) is prepared; one
    transaction writes the outcome and what follows; and what a project wants to be called then (errbacks, the bodies
    of chords) is called. So none of it runs in a transaction, or under a timeout, that is ours.
    """

    @cached_property
    def _is_extended(self) -> bool:
        return bool(self.app.conf.result_extended)

    #: The outcome that is being stored, as Celery encodes it, and as it is kept.
    _outcome: tuple[Any, Any, tuple] | None = None
    #: The step that follows, where it is written by the statement that closes the run.
    _next: TaskRecord | None = None
    #: Whether the run that was closed last had been asked to stop.
    _was_stopped = False

    def _conclude(self, task_id, request, outcome: Callable[[], object], alone: bool) -> bool:
        """Store a run's outcome and what follows from it, in one transaction; False where it comes late: none of it.

        `alone`: nothing follows from it, so that its one statement needs no transaction. Where the database is away
        it is done again, as a whole.
        """
        take_successors()
        outer = self._closing, self._root, self._decided
        self._closing, self._root = task_id, getattr(request, "root_id", None) or self._root
        decided = self._decided = []
        try:
            outcome() if alone else patiently(partial(self._in_transaction, outcome), task_id)
        except _Fenced:
            return False
        except _Cancelled:
            self.mark_as_revoked(task_id, "asked to stop", request)
            return False
        finally:
            self._closing, self._root, self._decided = outer
        for member in decided:
            aside(partial(patiently, partial(self._end_contained, member), task_id))
        return True

    def _in_transaction(self, outcome: Callable[[], object]) -> None:
        if self._decided:  # in a try before
            self._decided.clear()
        with brief_transaction():
            outcome()

    def _end_contained(self, member) -> None:
        with contained(member.id):
            self.end_chord(member)

    @contextmanager
    def _prepared(self, result, state, request=None) -> Iterator[None]:
        """Have an outcome encoded now, before the transaction that stores it."""
        outer, self._outcome = self._outcome, None
        raised = getattr(request, "raised", None) if state in states.EXCEPTION_STATES else None
        try:
            encoded = raised or self.encode_result(result, state)
            self._outcome = result, encoded, self.as_kept(encoded, words_of(encoded, state))
            yield
        finally:
            self._outcome = outer

    def _get_meta_from_request(self, request=None):
        """With a mark where plain Celery would store nothing: results here are for the pages then."""
        meta = super()._get_meta_from_request(request)
        task = self.app._tasks.get(getattr(request, "task", None))
        if getattr(request, "ignore_result", False) and not getattr(task, "keeps_errors", False):
            return {**meta, IGNORED: True}
        return meta

    def process_cleanup(self):
        """Let go of what a failed body held: its frames would live on, in a cycle through Celery's own."""
        if (raised := self._raised) is not None:
            raised.__traceback__ = self._raised = None
        super().process_cleanup()

    def encode_result(self, result, state):
        if self._outcome and result is self._outcome[0]:
            return self._outcome[1]
        return super().encode_result(result, state)

    def mark_as_done(self, task_id, result, request=None, store_result=True, state=celery_states.SUCCESS):
        if getattr(request, "is_eager", False):
            return super().mark_as_done(task_id, result, request, store_result, state)
        successors = take_successors() or Successors()
        if store_result and self._go_on(task_id, result, request, state, successors):
            return
        follows = successors.records or successors.chords or (request and request.chord)

        def outcome():
            if store_result:
                self.store_result(task_id, result, state, request=request)
            else:
                self._close(task_id, state, request)
            if successors.records or successors.chords:
                self.app.submit_successors(successors, revoked=self._was_stopped)
            if request and request.chord:
                self.on_chord_part_return(request, state, result)

        with self._prepared(result, state, request) if follows and store_result else nullcontext():
            self._conclude(task_id, request, outcome, alone=not follows)

    def _go_on(self, task_id, result, request, state, successors: Successors) -> bool:
        """Store a success with its one plain successor, in one statement; False where that is not how it is."""
        is_plain = len(successors.records) == 1 and not (successors.chords or successors.steps or request.chord)
        if not is_plain or connection.in_atomic_block:
            return False
        (record,) = successors.records
        if may_have_steps(record) or not record.is_due:
            return False
        self._next = record
        try:
            if self._conclude(
                task_id, request, lambda: self.store_result(task_id, result, state, request=request), True
            ):
                self.app.publisher.publish_committed([record])
        except DataError:
            return False
        finally:
            self._next = None
        return True

    def mark_as_failure(
        self, task_id, exc, traceback=None, request=None, store_result=True, call_errbacks=True,
        state=celery_states.FAILURE,
    ):  # fmt: skip
        if getattr(request, "is_eager", False):
            return super().mark_as_failure(task_id, exc, traceback, request, store_result, call_errbacks, state)
        is_own = getattr(request, "claimed", False)
        if isinstance(exc, Reject) and request and not is_own:
            return None  # its run has said so already: see execution.close_dropped_run
        if isinstance(exc, WorkerLostError) and hasattr(request, "id"):
            return self.mark_as_lost(task_id, gen_of(request), str(exc))
        if isinstance(exc, NotRegistered) and self._wait_for_another_worker(task_id, exc):
            return None
        if request and not is_own:  # the worker's parent, which knows what the message says
            request = _as_recorded(task_id, request)
        self._fail(task_id, exc, request, state, traceback, store_result, call_errbacks)

    def mark_as_revoked(self, task_id, reason="", request=None, store_result=True, state=celery_states.REVOKED):
        self._fail(task_id, TaskRevokedError(reason), request, state)

    def _fail(
        self, task_id, exc, request, state, traceback=None, store_result=True, call_errbacks=True, before=None
    ) -> None:
        """Store what is no success, with what that means for those that wait for it.

        `before`: what else belongs into the transaction, and may refuse it.
        """
        is_failure = call_errbacks and state == celery_states.FAILURE
        here, sent = self._errbacks_of(request) if is_failure else ([], Successors())
        follows = before or (request and (request.chord or getattr(request, "chain", None) or sent.records))

        def outcome():
            if before:
                before()
            if store_result:
                self.store_result(task_id, exc, state, traceback=traceback, request=request)
            self._follow(request, state, exc, traceback)
            self.app.submit_successors(sent, revoked=False)

        with self._prepared(exc, state, request):
            stored = self._conclude(task_id, request, outcome, alone=not follows)
        if stored and here:
            aside(partial(call_each, here, request, exc, traceback))

    def mark_as_retry(self, task_id, exc, traceback=None, request=None, store_result=True, state=celery_states.RETRY):
        """Record the run and what it raised, and let the task wait for its next one, as `Task.retry` has asked."""
        next_run = getattr(request, "next_run", None)
        if next_run is None:  # by Celery itself, whose worker lets go of what it runs
            return self.mark_as_released(task_id, gen_of(request), str(exc))
        words = words_of(getattr(request, "raised", None) or self.encode_result(exc, state), state)

        def outcome():
            run = TaskRecord.objects.run_of(task_id, gen_of(request))
            if run is None:
                _log_fenced(task_id, state)
                raise _Fenced
            if run.cancel_at:
                raise _Cancelled
            run.keep_attempt(*words, cut(traceback or ""))
            moved = run.wait_again(next_run)
            super(RecordBackend, self).mark_as_retry(task_id, exc, cut(traceback or ""), request)
            self.app.publish_or_wake(moved, next_run)

        with self._prepared(exc, state, request):
            return self._conclude(task_id, request, outcome, alone=False)

    def mark_as_lost(self, task_id: str, gen: int, reason: str) -> None:
        """End a run whose process is gone: its task is repeated if it says so (`acks_late`), or it has failed."""
        if _repeat(task_id, gen, lambda run: TaskRecord.objects.mark_lost(run, reason)):
            logger.warning("A run of task %s is lost, it is repeated: %s", task_id, reason)
        else:
            self._give_up(task_id, gen, reason, lost=1)

    def mark_as_released(self, task_id: str, gen: int, reason: str) -> None:
        """End a run that its worker can go on with no longer: its task is repeated, or has failed, as for a lost one,
        but it does not count as lost."""
        if not _repeat(task_id, gen, lambda run: TaskRecord.objects.mark_released(run, reason)):
            self._give_up(task_id, gen, reason)

    def _give_up(self, task_id: str, gen: int, reason: str, lost: int = 0) -> None:
        """End a run for good that nobody goes on with."""
        run = TaskRecord.objects.filter(task_id=task_id, gen=gen, state=states.STARTED).first()
        if run is None:
            return

        def still_runs():
            row = TaskRecord.objects.run_of(task_id, gen)
            if row is None or row.cancel_at != run.cancel_at:
                raise _Fenced
            if lost:
                TaskRecord.objects.filter(pk=run.pk).update(lost_count=row.lost_count + lost)

        if run.cancel_at:
            exc, state = TaskRevokedError(f"asked to stop; {reason}"), celery_states.REVOKED
        else:
            exc, state = WorkerLostError(reason), celery_states.FAILURE
        self._fail(task_id, exc, request_of(run), state, before=still_runs)

    def mark_as_dropped(self, request, state: str, exc: Exception) -> None:
        """End a run whose body raised Ignore or Reject."""
        if getattr(exc, "requeue", False):
            if not TaskRecord.objects.mark_requeued(request.id, gen_of(request)):
                self.mark_as_revoked(request.id, "asked to stop", request)
            return
        if state == states.REJECTED:  # which Celery counts as a failure
            self.mark_as_failure(request.id, exc, request=request)
            return
        self._conclude(request.id, request, partial(self._end_ignored, request, state, exc), alone=False)

    def _end_ignored(self, request, state: str, exc: Exception) -> None:
        if not TaskRecord.objects.mark_dropped(request.id, gen_of(request), state):
            own = TaskRecord.objects.filter(task_id=request.id, gen=gen_of(request)).first()
            state = own.state if own else ""  # given by the body itself, with `update_state`
        part = Context(id=request.id, group=request.group, chord=request.chord, root_id=request.root_id)
        if state == celery_states.SUCCESS and part.chord:
            self.on_chord_part_return(part, state, None)
        elif state in states.READY_STATES:
            self._follow(part, celery_states.FAILURE, exc)  # a chain that is left by Ignore just ends

    def fail_unpublishable(self, record: TaskRecord, error: Exception) -> None:
        """End a task of which no message can be made."""
        self.fail_waiting(record, error, f"No message can be made of it: {error}")

    def fail_waiting(self, record: TaskRecord, error: Exception, reason: str = "") -> None:
        """End a task that no worker can take, and what waits for it."""
        exc_type, reason = type(error).__name__, cut(reason or str(error))
        with transaction.atomic():
            if TaskRecord.objects.mark_unpublishable(record, reason, exc_type):
                self.follow_end_of(record, error)

    def _wait_for_another_worker(self, task_id: str, exc: NotRegistered) -> bool:
        moved = TaskRecord.objects.mark_unregistered(
            task_id, f"not registered in a worker: {exc}", conf.TASK_UNREGISTERED_GRACE
        )
        if moved:
            logger.warning("Task %s waits for a worker that knows it: %s", task_id, exc)
        return moved or TaskRecord.objects.is_to_come(task_id)

    def _store_result(self, task_id, result, status, traceback=None, request=None, using=None):
        if status == celery_states.RETRY or getattr(request, "is_eager", False):
            return super()._store_result(task_id, result, status, traceback, request, using)
        if status not in states.READY_STATES:  # a state of the task's own, by `update_state`
            with transaction.atomic():
                if task_id != getattr(request, "id", None) or TaskRecord.objects.run_of(task_id, gen_of(request)):
                    return super()._store_result(task_id, result, status, traceback, request, using)
            _log_fenced(task_id, status)
            return None
        exception = words_of(result, status)
        is_prepared = self._outcome and result is self._outcome[1]
        (content_type, content_encoding, encoded), note = (
            self._outcome[2] if self._outcome and is_prepared else self.as_kept(result, exception)
        )
        meta = {**self._get_meta_from_request(request), "children": self.current_task_children(request)}
        extended = self._get_extended_properties(request, traceback) if self._is_extended else {}
        traceback = cut(traceback) if traceback else None
        self._close(task_id, status, request, encoded, note, exception, [
            task_id, status, content_type, content_encoding, encoded, traceback, self.encode_content(meta)[2],
            extended.get("task_args"), extended.get("task_kwargs"), extended.get("periodic_task_name"),
        ])  # fmt: skip
        return encoded

    def _close(self, task_id, state, request, encoded="", note="", exception=("", ""), result_row=()):
        """Close the record and store the result row, if any, in one statement. A task without a record gets one."""
        # A step that never came has no gen that anybody knows: what would have sent it closes it.
        has_gen = request is not None and hasattr(request, "id") and self._closing in (None, task_id)
        gen = gen_of(request) if has_gen else None
        preview = "" if exception[0] else encoded[:200]
        may_be_cancelled = state in (celery_states.SUCCESS, celery_states.REVOKED)
        values = [state, preview, note, *exception, task_id, gen, may_be_cancelled, *result_row]
        sql = _CLOSE_WITH_RESULT if result_row else _CLOSE
        if self._next is not None:
            sql, values = _CLOSE_AND_GO_ON, [*values, self.app.publisher.grace, *self._next.inserted_values()]
        self._was_stopped = False
        if row := patiently(lambda: execute(sql, values).fetchone(), task_id):
            self._was_stopped = row[0]
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
        if task_id == self._closing and request is not None and may_adopt(request):
            return
        TaskRecord.objects.adopt(foreign_record(request, task_id, root_id=self._root))
        execute(sql, values)

    def keep_revoked(self, task_id: str) -> None:
        """Let an id that has no record, and perhaps never will, be told as revoked, as Celery does."""
        if self.get_state(task_id) == celery_states.PENDING and not TaskRecord.objects.filter(task_id=task_id).exists():
            revoked = self.encode_result(TaskRevokedError("revoked"), celery_states.REVOKED)
            super()._store_result(task_id, revoked, celery_states.REVOKED)

    def _forget(self, task_id):
        super()._forget(task_id)
        TaskRecord.objects.filter(task_id=task_id, state__in=states.READY_STATES).update(
            note=FORGOTTEN, result_preview=""
        )


def _as_recorded(task_id: str, request):
    """A run's request as its record tells, where it is in force and has one."""
    record = TaskRecord.objects.filter(task_id=task_id).first()
    if record is None or (hasattr(request, "id") and record.gen != gen_of(request)):
        return request
    return request_of(record)


def _repeat(task_id: str, gen: int, move: Callable[[TaskRecord], bool]) -> bool:
    """Let a run be repeated by `move`; False where it is not to be."""

    def moved() -> bool:
        with brief_transaction():
            run = TaskRecord.objects.run_of(task_id, gen)
            if run is None or not move(run):
                return False
            notify(DUE_CHANNEL)
            return True

    return patiently(moved, task_id)


def _log_fenced(task_id, state) -> None:
    logger.warning("Late %s of task %s refused: it was closed, or runs elsewhere.", state, task_id)
