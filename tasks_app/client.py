"""CeleryClient: submit tasks and ask for them by name and id, without importing their code."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from asgiref.sync import sync_to_async
from celery import Celery, Task, canvas
from celery.result import AsyncResult, GroupResult
from django.db import transaction

from tasks_app import states, workers
from tasks_app.building import is_sent_plainly
from tasks_app.conf import APPS_SETTING
from tasks_app.exceptions import TaskNotFound, UnknownTask
from tasks_app.gathering import gathered
from tasks_app.messages import is_id
from tasks_app.models import FORGOTTEN, TaskRecord, TaskStep
from tasks_app.recording import current_app
from tasks_app.seams.celery import argument_check, itself
from tasks_app.steps import is_to_come
from tasks_app.storable import as_sent

_KEPT_BY_RERUN = {"headers", "ignore_result", "serializer", "time_limit", "soft_time_limit", "exchange", "routing_key"}


class CeleryClient:
    """A way to the project's tasks.

    Options given here are this client's defaults. For each call: explicit arguments win over `**options`, those over
    the client's defaults. (`None` counts as not given.) A task in `chain`, `group` and `chord` is a name, a tuple
    `(name, args)` or `(name, args, kwargs)`, or a Celery signature.

        client = CeleryClient(queue="reports")
        result = client.submit("reports.build", args=[2026], countdown=60)
        client.get_status(result.id)   # "PENDING"
    """

    def __init__(self, app: Celery | None = None, **defaults: Any):
        self.app = app or itself(current_app)
        self.defaults = defaults

    def submit(
        self,
        task_name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> AsyncResult:
        """Record a task in the current transaction, to be published on commit; its `AsyncResult`.

        `priority`: 0 (most urgent) to 9. `countdown`: seconds. `eta`: the earliest start. `idempotency_key`: a second
        call with the same one submits nothing, and returns the first's result. `options`: as for Celery's
        `apply_async`. Raises UnknownTask, InvalidSubmission, DuplicateTask, NotUnique, and TypeError for arguments that
        do not fit the task's signature; nothing is recorded then.
        """
        explicit = {
            "task_id": task_id, "queue": queue, "priority": priority, "countdown": countdown, "eta": eta,
            "idempotency_key": idempotency_key,
        }  # fmt: skip
        return self._task(task_name).apply_async(args, kwargs, **self._options(options, explicit))

    async def asubmit(self, *args: Any, **options: Any) -> AsyncResult:
        """`submit` for a coroutine, such as an async view: in the thread of its request's other synchronous code, and
        so in a transaction that is open there."""
        return await sync_to_async(self.submit)(*args, **options)

    def submit_many(
        self, task_name: str, calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]], **options: Any
    ) -> list[AsyncResult]:
        """Submit one task for many `(args, kwargs)`: for each 500, one INSERT and one round trip to the broker."""
        task = self._task(task_name)
        calls = list(calls)
        if task.typing and (check := argument_check(task)):
            for args, kwargs in calls:
                check(*args, **kwargs)
        if self.app.conf.task_always_eager:
            return [task.apply_async(args, kwargs, **self._options(options, {})) for args, kwargs in calls]
        if is_sent_plainly(task):
            options = self._options(options, {"parent": self.app.current_worker_task, "task_type": task})
            records = self.app.build_records(task_name, calls, **options)
        else:
            with gathered() as sent:
                for args, kwargs in calls:
                    task.apply_async(args, kwargs, **self._options(options, {}))
            records = sent.records
        with transaction.atomic():
            for start in range(0, len(records), 500):
                self.app.submit(records[start : start + 500])
        backend = self.app.backend
        return [self.app.AsyncResult(record.task_id, backend=backend) for record in records]

    def chain(self, *tasks: Any, **options: Any) -> AsyncResult:
        """Run tasks one after the other, each given the result of the one before as its first argument."""
        return self._apply(canvas.chain(*map(self._signature, tasks), app=self.app), options)

    def group(self, *tasks: Any, **options: Any) -> GroupResult:
        """Run tasks side by side; the result is the list of theirs, in this order."""
        return self._apply(canvas.group(*map(self._signature, tasks), app=self.app), options)

    def chord(self, header: Iterable[Any], body: Any, **options: Any) -> AsyncResult:
        """Run `header` as a group, then `body` with the list of its results."""
        header = [self._signature(task) for task in header]
        return self._apply(canvas.chord(header, self._signature(body), app=self.app), options)

    def get_result(self, task_id: str, timeout: float | None = None, propagate: bool = True) -> Any:
        """Wait for a task's result, at most `timeout` seconds.

        A task that failed raises its exception; with `propagate=False` the exception is returned. Raises TaskNotFound,
        and celery.exceptions.TimeoutError.
        """
        if self.get_status(task_id) is None:
            raise _not_found(task_id)
        return self.app.AsyncResult(task_id).get(timeout=timeout, propagate=propagate)

    def get_status(self, task_id: str) -> str | None:
        """A task's state, in Celery's words; None for an unknown id, PENDING for a later step of a workflow."""
        if not is_id(task_id):
            return None
        records = TaskRecord.objects.filter(task_id=task_id)
        if (state := records.exclude(note=FORGOTTEN).values_list("state", flat=True).first()) is not None:
            return state
        step = TaskStep.objects.filter(task_id=task_id).first()
        if step is not None and is_to_come(step):
            return states.PENDING
        return records.values_list("state", flat=True).first()  # it may have come in between

    def revoke(self, task_id: str, terminate: bool = False) -> str | None:
        """Revoke a task that waits: once this has committed, it never starts. The state that it is in then.

        A running one is asked to stop, which its body can see (`self.is_cancelled()`); it is not retried, and with
        `terminate` its process is killed. A finished one stays as it is.
        """
        self.app.control.revoke(task_id, terminate=terminate)
        return self.get_status(task_id)

    def revoke_workflow(self, task_id: str, terminate: bool = False) -> int:
        """Revoke what has not ended of the workflow that a task belongs to, and what would follow. How many that were.

        What runs is asked to stop, by a signal with `terminate`. Raises TaskNotFound.
        """
        root_id = self._root_of(task_id)
        return len(self.app.control.revoke_workflow(root_id, terminate=terminate))

    def rerun(self, task_id: str) -> AsyncResult:
        """Run a task again, as a new one that points at the old: same arguments, queue and options, on its own.

        (What would hand its result on, a chain, a chord or links, is left out.) Raises TaskNotFound.
        """
        old = TaskRecord.objects.filter(task_id=task_id).first() if is_id(task_id) else None
        if old is None:
            raise _not_found(task_id)
        options = old.options if isinstance(old.options, dict) else {}
        kept = {key: value for key, value in options.items() if key in _KEPT_BY_RERUN}
        args, kwargs, kept = as_sent(old.args), as_sent(old.kwargs), as_sent(kept)
        new = self.app.build_record(old.name, args, kwargs, queue=old.queue, priority=old.priority, **kept)
        new.replay_of_id = old.pk
        self.app.submit([new])
        return self.app.AsyncResult(new.task_id)

    register_worker_hooks = staticmethod(workers.register_worker_hooks)

    def _root_of(self, task_id: str) -> str:
        """The workflow of a task, a group, or a step to come. Raises TaskNotFound."""
        if is_id(task_id):
            for rows in (
                TaskRecord.objects.filter(task_id=task_id),
                TaskRecord.objects.filter(group_id=task_id),
                TaskStep.objects.filter(task_id=task_id),
            ):
                if (root_id := rows.values_list("root_id", flat=True).first()) is not None:
                    return root_id
        raise _not_found(task_id)

    def _task(self, name: str) -> Task:
        try:
            return self.app.tasks[name]
        except KeyError:
            near = get_close_matches(name, self.app.tasks, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"is its app in {APPS_SETTING}?"
            raise UnknownTask(f"No task {name!r:.100} is registered: {hint}") from None

    def _options(self, options: Mapping[str, Any], explicit: Mapping[str, Any]) -> dict[str, Any]:
        return _given(self.defaults) | _given(options) | _given(explicit)

    def _apply(self, workflow: canvas.Signature, options: Mapping[str, Any]) -> Any:
        return workflow.apply_async(**self._options(options, {}))

    def _signature(self, task: Any) -> canvas.Signature:
        if isinstance(task, canvas.Signature):
            return task
        name, args, kwargs = (task, (), {}) if isinstance(task, str) else (*task, (), {})[:3]
        return self._task(name).signature(args, kwargs)


def _not_found(task_id: str) -> TaskNotFound:
    return TaskNotFound(f"No task was recorded under the id {task_id!r:.300}.")


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}
