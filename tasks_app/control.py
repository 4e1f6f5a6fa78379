"""Celery's remote control, where a revoke is a row's: it reaches tasks that no worker has heard of."""

import logging
from collections.abc import Mapping
from functools import partial
from signal import Signals
from typing import Any

from celery.app.control import Control
from celery.platforms import signals
from django.db import connection, transaction
from django.db.models import Q
from django.utils import timezone
from kombu.exceptions import OperationalError

from tasks_app import states

logger = logging.getLogger(__name__)


class RecordingControl(Control):
    """Celery's remote control, where a revoke reaches tasks that no worker has heard of, workers up or down."""

    def revoke(self, task_id, destination=None, terminate=False, signal="SIGTERM", **kwargs):
        """Revoke what waits, in Postgres; what runs is asked to stop, with `terminate` by a signal to its process.

        A worker hears of that by the broker, or with the next renewal of its leases. Takes one id or several.
        """
        from tasks_app.models import TaskRecord

        task_ids = [task_id] if isinstance(task_id, str) else list(task_id)
        signal = Signals(signals.signum(signal)).name
        self._revoke_to_come(task_ids)
        stopped = self._stop(TaskRecord.objects.filter(task_id__in=task_ids), signal if terminate else "")
        others = [task_id for task_id in task_ids if stopped.get(task_id) != states.REVOKED]
        tell = partial(self._tell_workers, others, destination, terminate=terminate, signal=signal, **kwargs)
        if connection.in_atomic_block:  # a worker that hears of it would wait for this transaction
            transaction.on_commit(tell)
            return None
        return tell()

    def _revoke_to_come(self, task_ids: list[str]) -> None:
        """Revoke what is a step to come of an unfinished workflow, by a row that it will meet when it comes."""
        from tasks_app.models import TaskRecord

        known = set(TaskRecord.objects.filter(task_id__in=task_ids).values_list("task_id", flat=True))
        for task_id in set(task_ids) - known:
            before = TaskRecord.objects.unfinished().filter(options__contains=task_id).first()
            if before is not None:
                name = _task_of(before.options, task_id) or "unknown"
                step = TaskRecord(task_id=task_id, name=name, queue=before.queue, root_id=before.root_id)
                step.state, step.exc_type, step.exc_message = states.REVOKED, "TaskRevokedError", "revoked"
                step.finished_at = timezone.now()
                TaskRecord.objects.adopt(step)

    def _tell_workers(self, task_ids: list[str], destination, **kwargs):
        if task_ids and self.app.publisher.is_reached():
            try:
                return super().revoke(task_ids, destination, **kwargs)
            except OperationalError as error:
                logger.warning("Workers hear of a revoke by their leases only: %s", error)
        return None

    def revoke_workflow(self, root_id: str, terminate: bool = False, signal: str = "SIGTERM") -> dict[str, str]:
        """Revoke all of a workflow that has not ended, and what would follow from it; the ids, with their states."""
        from tasks_app.models import TaskRecord

        stopped: dict[str, str] = {}
        workflow = TaskRecord.objects.in_workflow(root_id).unfinished()
        workflow = (
            workflow.filter(Q(cancel_at=None) | Q(cancel_signal="")) if terminate else workflow.filter(cancel_at=None)
        )
        while workflow.exists():  # a step may have followed, in a transaction that a statement did not see yet
            stopped |= self._stop(workflow, signal if terminate else "")
        running = [task_id for task_id, state in stopped.items() if state == states.STARTED]
        if running:
            self.revoke(running, terminate=terminate, signal=signal)
        return stopped

    def _stop(self, tasks, signal: str) -> dict[str, str]:
        with transaction.atomic():
            stopped = tasks.stop("revoked", signal)
            self.app.backend.follow_revoked([id_ for id_, state in stopped.items() if state == states.REVOKED])
        return stopped


def _task_of(signatures: Any, task_id: str) -> str | None:
    """The name of the task whose signature, somewhere among these, has the id."""
    if isinstance(signatures, Mapping):
        if (signatures.get("options") or {}).get("task_id") == task_id:
            return signatures.get("task")
        signatures = list(signatures.values())
    if not isinstance(signatures, list | tuple):
        return None
    return next(filter(None, (_task_of(each, task_id) for each in signatures)), None)
