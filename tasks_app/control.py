"""Celery's remote control, where a revoke is a row's: it reaches tasks that no worker has heard of."""

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from signal import Signals
from typing import TYPE_CHECKING, Any

from celery.app.control import TERM_SIGNAME, Control
from celery.platforms import signals
from django.db import connection, transaction
from django.db.models import Q
from kombu.exceptions import OperationalError
from kombu.utils.functional import maybe_list

from tasks_app import moments, states
from tasks_app.messages import is_id

if TYPE_CHECKING:
    from tasks_app.models import TaskStep
    from tasks_app.moves import TaskQuerySet

logger = logging.getLogger(__name__)
#: How often what has followed meanwhile is looked for, while a workflow is revoked.
ROUNDS = 100


class RecordingControl(Control):
    """Celery's remote control, where a revoke reaches tasks that no worker has heard of, workers up or down."""

    def revoke(
        self, task_id: str | Iterable[str], destination: Any = None, terminate: bool = False, signal: Any = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Revoke what waits, in Postgres; what runs is asked to stop, with `terminate` by a signal to its process.

        A worker hears of that by the broker, or with the next renewal of its leases. Takes one id or several; that of
        a group stands for those of its members, that of a step to come for what it will be.
        """
        from tasks_app.models import TaskRecord, TaskStep

        given = [each for each in maybe_list(task_id) or () if is_id(each)]
        if not given:
            return None
        signal = Signals(signals.signum(signal or TERM_SIGNAME)).name
        members = TaskRecord.objects.unfinished().filter(group_id__in=given)
        task_ids = [*given, *members.values_list("task_id", flat=True)]
        self._revoke_to_come(TaskStep.objects.filter(task_id__in=task_ids))
        stopped = self._stop(TaskRecord.objects.filter(task_id__in=task_ids), signal if terminate else "")
        recorded = TaskRecord.objects.filter(Q(task_id__in=given) | Q(group_id__in=given))
        known = {*stopped, *(each for ids in recorded.values_list("task_id", "group_id") for each in ids if each)}
        unknown = [task_id for task_id in given if task_id not in known]
        told = {"destination": destination, **kwargs}
        tell = partial(self._tell_workers, [*known.intersection(task_ids)], unknown, terminate, signal, **told)
        if connection.in_atomic_block:  # a worker that hears of it would wait for this transaction
            transaction.on_commit(tell)
            return None
        return tell()

    def revoke_by_stamped_headers(
        self, headers: Mapping[str, Any] | Iterable[str], destination: Any = None, terminate: bool = False,
        signal: Any = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """The same for what carries one of these stamps; workers keep them in mind for what is sent later."""
        from tasks_app.models import TaskStamp

        stamps = headers if isinstance(headers, Mapping) else dict(each.split("=", 1) for each in headers)
        carried = Q(pk__in=[])
        for header, values in stamps.items():
            carried |= Q(header=header, value__in=[str(value) for value in maybe_list(values) or ()])
        task_ids = list(TaskStamp.objects.filter(carried).values_list("task_id", flat=True).distinct())
        self.revoke(task_ids, destination, terminate, signal)
        if self.app.publisher.is_reached():
            return super().revoke_by_stamped_headers(headers, destination, terminate, signal or TERM_SIGNAME, **kwargs)
        return None

    def _revoke_to_come(self, steps: Iterable["TaskStep"]) -> None:
        """Revoke steps of unfinished workflows, by rows that they will meet when they come."""
        from tasks_app.models import FORGOTTEN, TaskRecord
        from tasks_app.steps import open_roots

        steps = list(steps)
        is_open = open_roots({step.root_id for step in steps})
        revoked = [
            TaskRecord(
                task_id=step.task_id, name=step.name, root_id=step.root_id, parent_id=step.after_id,
                state=states.REVOKED, exc_type="TaskRevokedError", exc_message="revoked", finished_at=moments.now(),
            )
            for step in steps if step.root_id in is_open
        ]  # fmt: skip
        TaskRecord.objects.bulk_create(revoked, batch_size=1000, ignore_conflicts=True)
        forgotten = TaskRecord.objects.filter(task_id__in=[each.task_id for each in revoked], note=FORGOTTEN)
        forgotten.update(state=states.REVOKED, exc_type="TaskRevokedError", exc_message="revoked", note="")

    def _tell_workers(self, known: list[str], unknown: list[str], terminate: bool, signal: str, **kwargs: Any) -> Any:
        """Have workers keep in mind what is revoked, and end what runs. What they reply, where that is asked for."""
        if not self.app.publisher.is_reached():
            return None
        replies: list[Any] = []
        try:
            if unknown:  # of a producer past the console, perhaps
                replies += self.broadcast("revoke_unrecorded", arguments={"task_id": unknown}, **kwargs) or []
            if known:
                replies += super().revoke(known, terminate=terminate, signal=signal, **kwargs) or []
        except OperationalError as error:
            logger.warning("Workers hear of a revoke by their leases only: %s", error)
        return replies or None

    def revoke_workflow(self, root_id: str, terminate: bool = False, signal: str = "SIGTERM") -> dict[str, str]:
        """Revoke all of a workflow that has not ended, and what would follow from it; the ids, with their states."""
        from tasks_app.models import TaskRecord
        from tasks_app.steps import still_to_come

        stopped: dict[str, str] = {}
        workflow = TaskRecord.objects.in_workflow(root_id).unfinished()
        workflow = (
            workflow.filter(Q(cancel_at=None) | Q(cancel_signal="")) if terminate else workflow.filter(cancel_at=None)
        )
        for _ in range(ROUNDS):  # a step may have followed, in a transaction that a statement did not see yet
            self._revoke_to_come(still_to_come(root_id))
            if not workflow.exists():
                break
            stopped |= self._stop(workflow, signal if terminate else "")
        running = [task_id for task_id, state in stopped.items() if state == states.STARTED]
        if running:
            self.revoke(running, terminate=terminate, signal=signal)
        return stopped

    def _stop(self, tasks: "TaskQuerySet", signal: str) -> dict[str, str]:
        with transaction.atomic():
            stopped = tasks.stop("revoked", signal)
            self.app.backend.follow_revoked([id_ for id_, state in stopped.items() if state == states.REVOKED])
        return stopped
