"""Chords, counted in Postgres in the transactions that close their members; `celery.chord_unlock` is not used.

A member is closed once (see backend.py), so it is counted once, whatever became of its worker or its message. An open
chord is a row of django-celery-results' ChordCounter: written with the records of the members, gone with the last one.
"""

import json
import logging

from celery import states
from celery.app.task import Context
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult, ResultBase
from django.db import InterfaceError, OperationalError, transaction
from django_celery_results.backends.database import DatabaseBackend
from django_celery_results.models import ChordCounter, TaskResult

from tasks_app.execution import foreign_record
from tasks_app.models import TaskRecord
from tasks_app.outbox import ending, gathered

logger = logging.getLogger(__name__)


class ChordBackend(DatabaseBackend):
    #: The workflow of the task whose outcome is being stored.
    _root: str | None = None

    def on_chord_part_return(self, request, state, result, **kwargs):
        """Count a member of a chord's header, in the transaction that closes it; the last one sends the body.

        A member that fails decides at once: the body fails. Members that end after that find nothing to count.
        """
        with transaction.atomic():
            chord = ChordCounter.objects.select_for_update().filter(group_id=request.group).first()
            if chord is None:
                return
            if state in states.PROPAGATE_STATES:
                chord.delete()
                self._fail_body(request, ChordError(f"Dependency {request.id} raised {result!r:.1000}"))
            elif chord.count > 1:
                chord.count -= 1
                chord.save(update_fields=["count"])
            else:
                chord.delete()
                self._send_body(request, chord)

    def apply_chord(self, header_result_args, body, **kwargs):
        header = header_result_args
        if not isinstance(header, GroupResult):
            header = self.app.GroupResult(*header)
        members = [result.as_tuple() for result in header]
        chord = ChordCounter(
            group_id=header.id, sub_tasks=json.dumps(members), count=body.get("chord_size") or len(members)
        )
        successors = ending()
        successors.chords.append(chord) if successors else chord.save(force_insert=True)

    def _send_body(self, request, chord: ChordCounter) -> None:
        try:
            with transaction.atomic():
                results = self._results(chord.group_result(app=self.app))
                with gathered() as successors:
                    maybe_signature(request.chord, app=self.app).delay(results)
                self.app.submit_successors(successors, revoked=False)
        except (OperationalError, InterfaceError):
            raise
        except ChordError as error:
            self._fail_body(request, error)
        except Exception as error:
            logger.exception("The body of chord %s cannot be sent", chord.group_id)
            self._fail_body(request, ChordError(f"Callback error: {error!r:.1000}"))

    def _results(self, header: GroupResult) -> list:
        """The results of a header's members, in their order, those of nested groups as lists."""
        ids = [result.id for result in _leaves(header)]
        cut = TaskRecord.objects.filter(task_id__in=ids, note__startswith="Cut").values_list("task_id", flat=True)
        if cut:
            raise ChordError(f"Dependency {cut[0]} has a result that was too long to be kept (TASK_RESULT_MAX_BYTES).")
        stored = TaskResult.objects.filter(task_id__in=ids)
        values = {result.task_id: self.decode_content(result, result.result) for result in stored}

        def value_of(result: ResultBase):
            return [value_of(part) for part in result] if isinstance(result, GroupResult) else values.get(result.id)

        return value_of(header)

    def _fail_body(self, request, exc: ChordError) -> None:
        body = maybe_signature(request.chord, app=self.app)
        outer, self._root = self._root, request.root_id or self._root
        try:
            raise exc  # Celery reads it from the stack
        except ChordError:
            self.chord_error_from_stack(body, exc)
        finally:
            self._root = outer
        if body.options.get("chord"):  # a chord within another's header
            part = Context(id=body.id, group=body.options.get("group_id"), chord=body.options["chord"])
            self.on_chord_part_return(part, states.FAILURE, exc)

    def chord_error_from_stack(self, callback, exc=None):
        """Celery marks a chord's body as failed without ever sending it: it gets a record, so that it can be seen."""
        if callback.id and "tasks" not in callback.get("kwargs", {}):
            TaskRecord.objects.adopt(foreign_record(None, callback.id, callback.task, root_id=self._root))
        return super().chord_error_from_stack(callback, exc)


def _leaves(result: ResultBase) -> list:
    return [leaf for part in result for leaf in _leaves(part)] if isinstance(result, GroupResult) else [result]
