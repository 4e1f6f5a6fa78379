"""Chords, counted in Postgres in the transactions that close their members; `celery.chord_unlock` is not used.

A member is closed once (see closing.py), so it is counted once, whatever became of its worker or its message. An open
chord is a row of django-celery-results' ChordCounter, written with the records of the members. The member that decides
it, the last one or the first that fails, leaves it with a count of 0: from then on it is to be ended, by `end_chord`.
That is done after the member's transaction, since it calls a project's code (signal handlers, encoders, errbacks), and
by a relay where the process that should have done it is gone.
"""

import json
import logging
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from celery import states
from celery.app.task import Context
from celery.canvas import Signature, maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult, ResultBase
from django.db import DEFAULT_DB_ALIAS, InterfaceError, OperationalError, transaction
from django_celery_results.models import ChordCounter, TaskResult
from django_celery_results.models import GroupResult as StoredGroup

from tasks_app import moments
from tasks_app.ambient import ambient, having
from tasks_app.execution import foreign_record, request_of
from tasks_app.gathering import gathered, gathering
from tasks_app.models import TaskRecord, TaskStep
from tasks_app.seams.results import ResultsBackend
from tasks_app.statements import execute
from tasks_app.steps import steps_of_body

logger = logging.getLogger(__name__)
#: Seconds after which a chord that was decided, and has no body, is taken for one whose process is gone.
INTERRUPTED_AFTER = 10
TABLE = ChordCounter._meta.db_table


def where_written(model: Any) -> Any:
    """A model of django-celery-results, for its backend: read where it is written, whatever a project's router says."""
    return SimpleNamespace(
        _default_manager=model._default_manager.db_manager(DEFAULT_DB_ALIAS), DoesNotExist=model.DoesNotExist
    )


class ChordBackend(ResultsBackend):
    TaskModel, GroupModel = where_written(TaskResult), where_written(StoredGroup)

    def on_chord_part_return(self, request: Context, state: str, result: Any, **kwargs: Any) -> None:
        """Count a member of a chord's header, in the transaction that closes it; one that fails decides at once."""
        by = _ALL if state in states.PROPAGATE_STATES else 1
        row = execute(_COUNT, [by, request.group]).fetchone()
        if row and row[0] == 0:
            closing = ambient().closing
            if closing is not None and closing.decided is not None:
                closing.decided.append(request)
            else:
                transaction.on_commit(lambda: self.end_chord(request))

    def apply_chord(self, header_result_args: Any, body: Signature, **kwargs: Any) -> None:
        header = header_result_args
        if not isinstance(header, GroupResult):
            header = self.app.GroupResult(*header)
        members = [result.as_tuple() for result in header]
        chord = ChordCounter(group_id=header.id, sub_tasks=json.dumps(members), count=len(_leaves(header)))
        workflow = gathering()
        if workflow is None:
            chord.save(force_insert=True)
            return
        workflow.chords.append(chord)
        workflow.steps += steps_of_body(body, header.id, body.options.get("root_id"))

    def end_chord(self, request: Context) -> None:
        """Send the body of a chord that is decided, or let it fail; `request`: that of one of its members.

        Called outside of transactions, and again where it was interrupted.
        """
        chord = ChordCounter.objects.using(DEFAULT_DB_ALIAS).filter(group_id=request.group, count=0).first()
        if chord is None or not request.chord:
            return
        body = maybe_signature(request.chord, app=self.app)
        with having(root_id=root_of(request)):
            try:
                self._send_body(body, chord)
            except ChordError as error:
                logger.error("Chord %s has failed: %s", chord.group_id, error)
                self._fail_body(body, error)
                ChordCounter.objects.filter(pk=chord.pk).delete()

    def is_interrupted(self, chord: ChordCounter) -> bool:
        """Whether a decided chord's members have ended for so long that nobody is about to send its body."""
        ids = [result.id for result in _leaves(chord.group_result(app=self.app))]
        lately = moments.now() - timedelta(seconds=INTERRUPTED_AFTER)
        return not TaskRecord.objects.filter(task_id__in=ids, finished_at__gte=lately).exists()

    def end_interrupted(self, chord: ChordCounter) -> None:
        """End a chord that was decided by a process that is gone."""
        ids = [result.id for result in _leaves(chord.group_result(app=self.app))]
        member = TaskRecord.objects.filter(task_id__in=ids, group_id=chord.group_id).first()
        if member is not None:
            self.end_chord(request_of(member))
        elif body := TaskStep.objects.filter(after_id=chord.group_id, place="body").first():  # no member ever came
            signature = self.app.signature(body.name, options={"task_id": body.task_id})
            self.end_chord(Context(group=chord.group_id, chord=signature, root_id=body.root_id))

    def _send_body(self, body: Signature, chord: ChordCounter) -> None:
        """Raises ChordError where it is not to be sent, or cannot be."""
        results = self._results(chord.group_result(app=self.app))
        try:
            with gathered() as successors:
                body.delay(results)
            for record in successors.records:
                record.is_successor = True
            with transaction.atomic():
                if ChordCounter.objects.filter(pk=chord.pk).delete()[0]:
                    self.app.submit_successors(successors, revoked=False)
        except (OperationalError, InterfaceError):
            raise
        except Exception as error:
            logger.exception("The body of chord %s cannot be sent", chord.group_id)
            raise ChordError(f"Callback error: {error!r:.1000}") from error

    def _results(self, header: GroupResult) -> list[Any]:
        """The results of a header's members, in their order, those of a chain that ends in a group as lists.

        Raises ChordError where a member has failed.
        """
        ids = [result.id for result in _leaves(header)]
        stored = TaskResult.objects.using(DEFAULT_DB_ALIAS).filter(task_id__in=ids)
        results = {result.task_id: result for result in stored}
        for task_id in ids:
            if task_id in results and results[task_id].status in states.PROPAGATE_STATES:
                self._raise_member(task_id, results[task_id])
        cut = TaskRecord.objects.filter(task_id__in=ids, note__startswith="Cut").values_list("task_id", flat=True)
        if cut:
            raise ChordError(f"Dependency {cut[0]} has a result that was too long to be kept (TASK_RESULT_MAX_BYTES).")
        ended = dict(TaskRecord.objects.filter(task_id__in=ids).values_list("task_id", "state"))
        for task_id in ids:
            if ended.get(task_id, states.SUCCESS) not in (states.SUCCESS, *states.UNREADY_STATES):
                raise ChordError(f"Dependency {task_id} raised {ended[task_id]}")

        def value_of(result: ResultBase) -> Any:
            is_group = isinstance(result, GroupResult)
            return [value_of(part) for part in result] if is_group else self._value_of(results.get(result.id))

        return value_of(header)

    def _value_of(self, stored: TaskResult | None) -> Any:
        return None if stored is None else self.decode_content(stored, stored.result)

    def _raise_member(self, task_id: str, stored: TaskResult) -> None:
        value = self._value_of(stored)
        exc = self.exception_to_python(value) if isinstance(value, dict) and "exc_type" in value else value
        cause = exc if isinstance(exc, Exception) else None
        raise ChordError(f"Dependency {task_id} raised {exc!r:.1000}") from cause

    def _fail_body(self, body: Signature, exc: ChordError) -> None:
        calling: set[str] = set()
        try:
            raise exc  # Celery reads it from the stack
        except ChordError:
            with having(calling=calling):
                self.chord_error_from_stack(body, exc)
        if body.options.get("chord"):  # a chord within another's header
            part = Context(id=body.id, group=body.options.get("group_id"), chord=body.options["chord"])
            with having(called=ambient().called | calling), transaction.atomic():
                self.on_chord_part_return(part, states.FAILURE, exc)

    def chord_error_from_stack(self, callback: Signature, exc: Any = None) -> Any:
        """Celery marks a chord's body as failed without ever sending it: it gets a record, so that it can be seen."""
        if callback.id and "tasks" not in callback.get("kwargs", {}):
            TaskRecord.objects.adopt(foreign_record(None, callback.id, callback.task, root_id=ambient().root_id))
        return super().chord_error_from_stack(callback, exc)


def root_of(request: Any) -> str | None:
    """The workflow of a request; where it tells none, that of the task that ends."""
    return getattr(request, "root_id", None) or ambient().root_id


def _leaves(result: ResultBase) -> list[Any]:
    return [leaf for part in result for leaf in _leaves(part)] if isinstance(result, GroupResult) else [result]


#: By how much a member that fails lowers the count: to nothing.
_ALL = 2**31 - 1
_COUNT = f"""
UPDATE {TABLE} SET count = greatest(count - %s, 0) WHERE group_id = %s AND count > 0 RETURNING count
"""
