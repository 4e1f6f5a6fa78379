"""The result backend: what Celery, its workers and the relay report of a run's end, and what becomes of it.

All of it closes the record by the one statement of closing.py, or lets the task wait again (retries.py): what a run
itself reports, what the worker's parent process does, of time limits and killed children, and what whoever ends a run
does whose worker is gone.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from billiard.exceptions import WorkerLostError
from celery import states as celery_states
from celery.app.task import Context
from celery.exceptions import NotRegistered, Reject, TaskRevokedError
from django.db import DataError, connection, transaction

from tasks_app import states
from tasks_app.ambient import ambient, forget
from tasks_app.closing import Cancelled, ClosingBackend, Fenced, log_fenced
from tasks_app.conf import conf
from tasks_app.consequences import call_each
from tasks_app.execution import aside, gen_of, patiently, request_of
from tasks_app.gathering import Successors, take_successors
from tasks_app.models import FORGOTTEN, TaskRecord
from tasks_app.notify import DUE_CHANNEL, notify
from tasks_app.outbox import may_have_steps
from tasks_app.outcomes import cut, words_of
from tasks_app.retries import keep_attempt, wait_again
from tasks_app.statements import brief_transaction
from tasks_app.waiting import IGNORED, WaitingBackend

logger = logging.getLogger(__name__)


class RecordBackend(WaitingBackend, ClosingBackend):
    """Keeps results where django-celery-results does, and the console's record in step with them."""

    def meta_from(self, request: Context | None) -> Any:
        """With a mark where plain Celery would store nothing: results here are for the pages then."""
        meta = super().meta_from(request)
        task = self.app.tasks.get(getattr(request, "task", None))
        if getattr(request, "ignore_result", False) and not getattr(task, "keeps_errors", False):
            return {**meta, IGNORED: True}
        return meta

    def process_cleanup(self) -> None:
        """End a run. What a failed body held is let go: its frames would live on, in a cycle through Celery's own."""
        if (raised := ambient().raised) is not None:
            raised.__traceback__ = None
        forget()
        super().process_cleanup()

    def mark_as_done(
        self, task_id: str, result: Any, request: Context | None = None, store_result: bool = True,
        state: str = celery_states.SUCCESS,
    ) -> None:  # fmt: skip
        if getattr(request, "is_eager", False):
            return super().mark_as_done(task_id, result, request, store_result, state)
        successors = take_successors() or Successors()
        if store_result and self._go_on(task_id, result, request, state, successors):
            return
        follows = successors.records or successors.chords or (request and request.chord)

        def outcome() -> None:
            if store_result:
                self.store_result(task_id, result, state, request=request)
            else:
                self.close_record(task_id, state, request)
            if successors.records or successors.chords:
                self.app.submit_successors(successors, revoked=self.was_stopped)
            if request and request.chord:
                self.on_chord_part_return(request, state, result)

        prepared = self.prepare(result, state, request) if follows and store_result else None
        self.conclude(task_id, request, outcome, prepared, alone=not follows)

    def _go_on(self, task_id: str, result: Any, request: Context, state: str, successors: Successors) -> bool:
        """Store a success with its one plain successor, in one statement; False where that is not how it is."""
        is_plain = len(successors.records) == 1 and not (successors.chords or successors.steps or request.chord)
        if not is_plain or connection.in_atomic_block:
            return False
        (record,) = successors.records
        if may_have_steps(record) or not record.is_due:
            return False
        store = partial(self.store_result, task_id, result, state, request=request)
        try:
            if self.conclude(task_id, request, store, alone=True, successor=record):
                self.app.publisher.publish_committed([record])
        except DataError:
            return False
        return True

    def mark_as_failure(
        self, task_id: str, exc: Any, traceback: Any = None, request: Context | None = None, store_result: bool = True,
        call_errbacks: bool = True, state: str = celery_states.FAILURE,
    ) -> None:  # fmt: skip
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

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Context | None = None, store_result: bool = True,
        state: str = celery_states.REVOKED,
    ) -> None:  # fmt: skip
        self._fail(task_id, TaskRevokedError(reason), request, state)

    def _fail(
        self, task_id: str, exc: Any, request: Context | None, state: str, traceback: Any = None,
        store_result: bool = True, call_errbacks: bool = True, before: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Store what is no success, with what that means for those that wait for it.

        `before`: what else belongs into the transaction, and may refuse it.
        """
        is_failure = call_errbacks and state == celery_states.FAILURE
        here, sent = self._errbacks_of(request) if is_failure else ([], Successors())
        follows = before or (request and (request.chord or getattr(request, "chain", None) or sent.records))

        def outcome() -> None:
            if before:
                before()
            if store_result:
                self.store_result(task_id, exc, state, traceback=traceback, request=request)
            self._follow(request, state, exc, traceback)
            self.app.submit_successors(sent, revoked=False)

        stored = self.conclude(task_id, request, outcome, self.prepare(exc, state, request), alone=not follows)
        if stored and here:
            aside(partial(call_each, here, request, exc, traceback))

    def mark_as_retry(
        self, task_id: str, exc: Any, traceback: Any = None, request: Context | None = None, store_result: bool = True,
        state: str = celery_states.RETRY,
    ) -> None:  # fmt: skip
        """Record the run and what it raised, and let the task wait for its next one, as `Task.retry` has asked."""
        next_run = getattr(request, "next_run", None)
        if next_run is None:  # by Celery itself, whose worker lets go of what it runs
            return self.mark_as_released(task_id, gen_of(request), str(exc))
        words = words_of(getattr(request, "raised", None) or self.encode_result(exc, state), state)

        def outcome() -> None:
            run = TaskRecord.objects.run_of(task_id, gen_of(request))
            if run is None:
                log_fenced(task_id, state)
                raise Fenced
            if run.cancel_at:
                raise Cancelled
            keep_attempt(run, *words, cut(traceback or ""))
            moved = wait_again(run, next_run)
            super(RecordBackend, self).mark_as_retry(task_id, exc, cut(traceback or ""), request)
            self.app.publish_or_wake(moved, next_run)

        self.conclude(task_id, request, outcome, self.prepare(exc, state, request))

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

        def still_runs() -> None:
            row = TaskRecord.objects.run_of(task_id, gen)
            if row is None or row.cancel_at != run.cancel_at:
                raise Fenced
            if lost:
                TaskRecord.objects.filter(pk=run.pk).update(lost_count=row.lost_count + lost)

        if run.cancel_at:
            exc, state = TaskRevokedError(f"asked to stop; {reason}"), celery_states.REVOKED
        else:
            exc, state = WorkerLostError(reason), celery_states.FAILURE
        self._fail(task_id, exc, request_of(run), state, before=still_runs)

    def mark_as_dropped(self, request: Context, state: str, exc: Exception) -> None:
        """End a run whose body raised Ignore or Reject."""
        if getattr(exc, "requeue", False):
            if not TaskRecord.objects.mark_requeued(request.id, gen_of(request)):
                self.mark_as_revoked(request.id, "asked to stop", request)
            return
        if state == states.REJECTED:  # which Celery counts as a failure
            self.mark_as_failure(request.id, exc, request=request)
            return
        self.conclude(request.id, request, partial(self._end_ignored, request, state, exc))

    def _end_ignored(self, request: Context, state: str, exc: Exception) -> None:
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

    def keep_revoked(self, task_id: str) -> None:
        """Let an id that has no record, and perhaps never will, be told as revoked, as Celery does."""
        if self.get_state(task_id) == celery_states.PENDING and not TaskRecord.objects.filter(task_id=task_id).exists():
            revoked = self.encode_result(TaskRevokedError("revoked"), celery_states.REVOKED)
            self.keep_apart(task_id, revoked, celery_states.REVOKED)

    def drop(self, task_id: str) -> None:
        super().drop(task_id)
        TaskRecord.objects.filter(task_id=task_id, state__in=states.READY_STATES).update(
            note=FORGOTTEN, result_preview=""
        )


def _as_recorded(task_id: str, request: Context) -> Any:
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
