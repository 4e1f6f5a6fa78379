"""How a run is closed: its outcome, and what follows from it, or neither.

Only the run that holds the record's `gen` can close it, so a late result of a run that was lost or revoked is refused,
and so is all that would follow from it: the next steps of a workflow, and the part of a chord, are written in the
transaction that closes the record. The result goes to django-celery-results' table in the same statement.

An outcome is stored in three steps. What calls a project's code (encoders, signal handlers) is prepared; one
transaction writes the outcome and what follows; and what a project wants to be called then (errbacks, the bodies of
chords) is called. So none of it runs in a transaction, or under a timeout, that is ours.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NoReturn

from celery import states as celery_states
from celery.app.task import Context
from django.db import transaction
from django_celery_results.models import TaskResult

from tasks_app import states
from tasks_app.ambient import Closing, Prepared, ambient, having
from tasks_app.chords import root_of
from tasks_app.consequences import ConsequenceBackend, contained
from tasks_app.execution import aside, foreign_record, gen_of, patiently
from tasks_app.gathering import take_successors
from tasks_app.messages import may_adopt
from tasks_app.models import TaskRecord
from tasks_app.moves import INSERT_IF
from tasks_app.outcomes import OutcomeBackend, cut, words_of
from tasks_app.statements import brief_transaction, execute

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


class Fenced(Exception):
    """The run whose outcome was to be stored had been closed, or had gone elsewhere."""


class Cancelled(Exception):
    """The run that failed, or was to be retried, had been asked to stop."""


class ClosingBackend(OutcomeBackend, ConsequenceBackend):
    """The part of the result backend that stores outcomes."""

    @cached_property
    def _is_extended(self) -> bool:
        return bool(self.app.conf.result_extended)

    def prepare(self, result: Any, state: str, request: Context | None = None) -> Prepared:
        """Have an outcome encoded now, before the transaction that stores it."""
        raised = getattr(request, "raised", None) if state in states.EXCEPTION_STATES else None
        encoded = raised or self.encode_result(result, state)
        return Prepared(result, encoded, self.as_kept(encoded, words_of(encoded, state)))

    def conclude(
        self, task_id: str, request: Context | None, outcome: Callable[[], object],
        prepared: Prepared | None = None, *, alone: bool = False, successor: TaskRecord | None = None,
    ) -> bool:  # fmt: skip
        """Store a run's outcome and what follows from it, in one transaction; False where it comes late: none of it.

        `alone`: nothing follows from it but `successor`, so that its one statement needs no transaction. Where the
        database is away it is done again, as a whole.
        """
        take_successors()
        closing = Closing(task_id, prepared, successor, decided=[])
        try:
            with having(closing=closing, root_id=root_of(request)):
                outcome() if alone else patiently(partial(_in_transaction, outcome, closing), task_id)
        except Fenced:
            return False
        except Cancelled:
            self.mark_as_revoked(task_id, "asked to stop", request)
            return False
        for member in closing.decided or ():
            aside(partial(patiently, partial(self._end_contained, member), task_id))
        return True

    @property
    def was_stopped(self) -> bool:
        """Whether the run that is closed in the transaction at hand had been asked to stop."""
        closing = ambient().closing
        return closing is not None and closing.was_stopped

    def _end_contained(self, member: Context) -> None:
        with contained(member.id):
            self.end_chord(member)

    def encode_result(self, result: Any, state: str) -> Any:
        prepared = _prepared()
        if prepared and result is prepared.result:
            return prepared.encoded
        return super().encode_result(result, state)

    def keep(
        self, task_id: str, result: Any, status: str, traceback: Any = None, request: Context | None = None,
        using: Any = None,
    ) -> Any:  # fmt: skip
        if status == celery_states.RETRY or getattr(request, "is_eager", False):
            return super().keep(task_id, result, status, traceback, request, using)
        if status not in states.READY_STATES:  # a state of the task's own, by `update_state`
            with transaction.atomic():
                if task_id != getattr(request, "id", None) or TaskRecord.objects.run_of(task_id, gen_of(request)):
                    return super().keep(task_id, result, status, traceback, request, using)
            log_fenced(task_id, status)
            return None
        exception = words_of(result, status)
        prepared = _prepared()
        kept = prepared.kept if prepared and result is prepared.encoded else self.as_kept(result, exception)
        (content_type, content_encoding, encoded), note = kept
        meta = {**self.meta_from(request), "children": self.current_task_children(request)}
        extended = self.extended_properties(request, traceback) if self._is_extended else {}
        traceback = cut(traceback) if traceback else None
        self.close_record(task_id, status, request, encoded, note, exception, [
            task_id, status, content_type, content_encoding, encoded, traceback, self.encode_content(meta)[2],
            extended.get("task_args"), extended.get("task_kwargs"), extended.get("periodic_task_name"),
        ])  # fmt: skip
        return encoded

    def keep_apart(self, task_id: str, encoded: Any, state: str) -> None:
        """Store a state of an id that has no record, and gets none."""
        super().keep(task_id, encoded, state)

    def close_record(
        self, task_id: str, state: str, request: Context | None, encoded: str = "", note: str = "",
        exception: tuple[str, str] = ("", ""), result_row: Sequence[Any] = (),
    ) -> None:  # fmt: skip
        """Close the record and store the result row, if any, in one statement. A task without a record gets one."""
        closing = ambient().closing
        own = closing if closing and closing.task_id == task_id else None
        # A step that never came has no gen that anybody knows: what would have sent it closes it.
        gen = gen_of(request) if hasattr(request, "id") and (own or closing is None) else None
        preview = "" if exception[0] else encoded[:200]
        may_be_cancelled = state in (celery_states.SUCCESS, celery_states.REVOKED)
        values = [state, preview, note, *exception, task_id, gen, may_be_cancelled, *result_row]
        sql = _CLOSE_WITH_RESULT if result_row else _CLOSE
        if closing and closing.successor:
            sql, values = _CLOSE_AND_GO_ON, [*values, self.app.publisher.grace, *closing.successor.inserted_values()]
        if row := patiently(lambda: execute(sql, values).fetchone(), task_id):
            if own:
                own.was_stopped = row[0]
        elif record := TaskRecord.objects.filter(task_id=task_id).only("state", "gen", "cancel_at").first():
            if own:
                _refuse(record, state, gen)
        elif _is_to_be_told(state, request, own is not None):
            TaskRecord.objects.adopt(foreign_record(request, task_id, root_id=ambient().root_id))
            execute(sql, values)


def _refuse(record: TaskRecord, state: str, gen: int | None) -> NoReturn:
    """Say why a run does not close its record."""
    if record.cancel_at and record.state not in states.READY_STATES and gen in (None, record.gen):
        raise Cancelled
    log_fenced(record.task_id, state)
    raise Fenced


def _is_to_be_told(state: str, request: Context, is_own: bool) -> bool:
    """Whether a task that has no record gets one with its outcome: no chord, say, in a chain that failed, nor any id
    of whose revocation a worker hears, nor what must not be adopted."""
    if getattr(request, "subtask_type", None) or (request is None and state == celery_states.REVOKED):
        return False
    return not (is_own and request is not None and may_adopt(request))


def _in_transaction(outcome: Callable[[], object], closing: Closing) -> None:
    closing.decided = []  # also after a try before
    with brief_transaction():
        outcome()


def _prepared() -> Prepared | None:
    closing = ambient().closing
    return closing.outcome if closing else None


def log_fenced(task_id: str, state: str) -> None:
    logger.warning("Late %s of task %s refused: it was closed, or runs elsewhere.", state, task_id)
