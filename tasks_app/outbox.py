"""The one door out: whoever sends a task, its record is written first, and its message goes out on commit.

`Task.delay`, `apply_async`, `retry`, every canvas, Celery Beat and `CeleryClient` end in `Celery.send_task`, which the
subclass here overrides. A message is a hint that there may be a row to run, so publishing may fail, or happen twice:
what was not marked as published is published by the relay (loop.Relay), and the claim drops what came double.

A project's Celery app is made before Django's apps are loaded, so the model is imported where it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

from celery import Task
from celery.exceptions import TaskRevokedError
from django.core.exceptions import SynchronousOnlyOperation
from django.db import IntegrityError, transaction
from kombu.exceptions import EncodeError

from tasks_app import canvases, recording, states
from tasks_app.building import BuildingCelery
from tasks_app.conf import conf
from tasks_app.coroutines import awaiting
from tasks_app.exceptions import DuplicateTask, InvalidSubmission, NotUnique
from tasks_app.gathering import Successors, gathering
from tasks_app.notify import DUE_CHANNEL, notify
from tasks_app.publishing import AT_ONCE
from tasks_app.seams import sentry

if TYPE_CHECKING:
    from tasks_app.models import TaskRecord
    from tasks_app.steps import Step

canvases.record_as_wholes()

_OMITTED: Any = object()


def route_scheduled(
    name: str, args: Any, kwargs: Any, options: Any, task: Task | None = None, **_: Any
) -> dict[str, str] | None:
    """A task route: what a schedule fires, Celery Beat's included, goes to CRON_QUEUE, where that is set."""
    if conf.CRON_QUEUE and "periodic_task_name" in (options.get("headers") or {}):
        return {"queue": conf.CRON_QUEUE}
    return None


#: What the console needs of Celery's settings, where a project says nothing else.
DEFAULTS: dict[str, Any] = {
    "result_backend": "tasks_app.backend:RecordBackend",
    "result_expires": None,  # results are kept with their records
    "task_publish_retry": False,  # the relay publishes what a submitter could not
    "worker_disable_rate_limits": True,  # a task's rate_limit is kept in Postgres, across all workers
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_transport_options": {
        "priority_steps": list(range(10)),
        "socket_connect_timeout": 1,
        "socket_timeout": 5,  # above the worker's blocking pop of one second
        "socket_keepalive": True,
    },
    # The Django fixup reads this one by its full name. Without it, it closes the database connection around every task.
    "CELERY_DB_REUSE_MAX": 1_000_000_000,
}


def _set_defaults(source: Any, **_: Any) -> None:
    source.maps.insert(len(source.maps) - 1, DEFAULTS)  # below a project's settings, above Celery's own defaults


class RecordingCelery(BuildingCelery):
    """A Celery app that records each task in Postgres before it publishes it."""

    amqp_cls = "tasks_app.transport:BrokerSide"
    task_cls = "tasks_app.execution:ConsoleTask"
    control_cls = "tasks_app.control:RecordingControl"
    registry_cls = "tasks_app.guard:ClaimedTasks"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        recording.apps[self] = None
        self.steps["worker"].add("tasks_app.workers:Upkeep")
        self.on_after_configure.connect(_set_defaults)

    AsyncResult = cached_property(
        lambda self: self.subclass_with_self("tasks_app.waiting:RecordedResult", "AsyncResult", reverse="AsyncResult")
    )

    def as_body(self, fun: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
        is_dumped = options.get("pydantic") and inspect.iscoroutinefunction(fun)  # its value is, and not itself
        return awaiting(fun) if is_dumped else fun

    def send_task(
        self, name: str, args: Any = None, kwargs: Any = None, countdown: Any = None, eta: Any = None,
        task_id: str | None = None, producer: Any = None, connection: Any = None, router: Any = None,
        result_cls: Any = None, expires: Any = _OMITTED, publisher: Any = None, link: Any = None,
        link_error: Any = None, add_to_parent: bool = True, **options: Any,
    ) -> Any:  # fmt: skip
        """Record the task in the current transaction, and publish it on commit. Takes and returns what Celery's does.

        Takes `idempotency_key` too: a second call with the same text records nothing, and returns the result of the
        first. Raises InvalidSubmission, DuplicateTask and NotUnique; nothing is recorded then. A broker that is away
        raises nothing: the message goes out when it is back. (So what would publish now, a producer or a connection,
        is not used.)
        """
        options |= {"countdown": countdown, "eta": eta, "link": link, "link_error": link_error, "router": router}
        options |= {"task_id": task_id, "result_cls": result_cls, "add_to_parent": add_to_parent}
        if expires is not _OMITTED:
            options["expires"] = expires
        send = RecordingCelery._send
        if options.get("task_type") is None:  # a task's `apply_async` is traced already
            send = sentry.traced(send)
        return send(self, name, args, kwargs, **options)

    def _send(
        self, name: str, args: Any, kwargs: Any, *, task_id: str | None, result_cls: Any, add_to_parent: bool,
        **options: Any,
    ) -> Any:  # fmt: skip
        parent, successors = self.current_worker_task, gathering()
        if successors is not None and successors.parent is not None and not task_id:
            task_id = str(uuid5(NAMESPACE_OID, f"{successors.parent.request.id} {len(successors.records)}"))
        record = self._built(name, args, kwargs, parent=parent, task_id=task_id, **options)
        if parent and parent.request.id == record.task_id and record.retries > parent.request.retries:
            parent.continue_as(record)
        elif successors is not None:
            successors.records.append(record)
        elif parent and parent.request.id == record.task_id and hasattr(parent, "continue_as"):
            parent.continue_as(record)
        else:
            with _in_coroutines_named(record):
                record.task_id = self.submit_one(record)
        result = (result_cls or self.AsyncResult)(record.task_id)
        result.ignored = record.options.get("ignore_result")
        if add_to_parent and parent:
            parent.add_trail(result)
        return result

    def _built(self, name: str, args: Any, kwargs: Any, **options: Any) -> TaskRecord:
        successors = gathering()
        try:
            record = self.build_record(name, args, kwargs, **options)
            if successors is not None and successors.parent is not None:
                record.is_successor = True
                record.inserted_values()
            return record
        except InvalidSubmission as error:
            if successors is None or successors.parent is None:
                raise
            # The word that Celery knows: the run fails, with this as its reason.
            raise EncodeError(f"Its result cannot be handed on to {name}: {error}") from error

    def submit(self, records: Sequence[TaskRecord]) -> None:
        """Insert built records in the current transaction, all or none, and publish on commit those that are due.

        Raises InvalidSubmission, DuplicateTask and NotUnique.
        """
        with transaction.atomic():
            for record in self.submit_new(records):
                self._raise_duplicate(record)

    def submit_one(self, record: TaskRecord) -> str:
        """The same for one; the id under which it is recorded, by the idempotency key an earlier one's."""
        with transaction.atomic() if may_have_steps(record) else nullcontext():
            if not self.submit_new([record]) or self.take_over(record):
                return record.task_id
            return self._raise_duplicate(record)

    def submit_new(self, records: Sequence[TaskRecord]) -> list[TaskRecord]:
        """Submit those that are new; returns the others, whose id or key is there already."""
        from tasks_app.models import TaskRecord

        old = TaskRecord.objects.insert(records, self.publisher.grace)
        new = [record for record in records if record not in old] if old else records
        self._submit_steps([record for record in new if may_have_steps(record)])
        due = [record for record in new if record.is_due]
        if len(due) < len(new):
            notify(DUE_CHANNEL)
        if due:
            transaction.on_commit(partial(self.publisher.publish_committed, due))
        return old

    def _submit_steps(self, records: Sequence[TaskRecord], steps: Sequence[Step] = ()) -> None:
        """Insert what is to come after new records, and `steps`. Raises DuplicateTask for one that has come already."""
        if not records and not steps:
            return
        from tasks_app.steps import insert_stamps, insert_steps, steps_of

        parent = self.current_worker_task
        ours = parent.request.id if parent else None  # whose last step takes its id over
        known = {step.task_id for step in _known_steps(parent)} if parent else set()
        found = [*steps, *(step for record in records for step in steps_of(record))]
        found = list({step.task_id: step for step in reversed(found) if step.task_id not in known}.values())
        if found and (twice := insert_steps(found) - {ours}):
            raise DuplicateTask(
                f"A task {min(twice)} is unfinished, and cannot be a step to come: a signature was sent twice under "
                "one id. Wait for its end, or send a copy of it (`.clone()`, before it is frozen)."
            )
        stamped: list[Any] = [*records, *found]
        insert_stamps((each.task_id, each.options) for each in stamped)

    def submit_gathered(self, workflow: Successors) -> None:
        """Submit what was gathered of a workflow, in the current transaction, all or none.

        Raises InvalidSubmission, DuplicateTask and NotUnique.
        """
        for chord in workflow.chords:
            chord.save(force_insert=True)
        for start in range(0, len(workflow.records), AT_ONCE):
            for record in self.submit_new(workflow.records[start : start + AT_ONCE]):
                if not self.take_over(record):
                    self._raise_duplicate(record)
        self._submit_steps([], workflow.steps)

    def submit_workflow(self, workflow: Successors) -> None:
        """The same in a transaction of its own, or at its caller's."""
        if not workflow.records:
            return
        try:
            with _in_coroutines_named(workflow.records[0]), transaction.atomic():
                self.submit_gathered(workflow)
        except IntegrityError as error:
            if not workflow.chords:
                raise
            ids = ", ".join(chord.group_id for chord in workflow.chords)
            raise DuplicateTask(f"A chord {ids} is unfinished: wait for its end, or send a copy of it.") from error

    def submit_successors(self, successors: Successors, revoked: bool) -> None:
        """Submit what follows from a run, in the transaction that closes it; `revoked`: but let none of it start."""
        from tasks_app.models import TaskRecord

        for chord in successors.chords:
            chord.save(force_insert=True)
        self._submit_steps([], successors.steps)
        if not successors.records:
            return
        for record in self.submit_new(successors.records):
            if not self.take_over(record):
                self._submit_not_new(record)
        if revoked:
            ids = [record.task_id for record in successors.records]
            followed = TaskRecord.objects.filter(task_id__in=ids).mark_revoked("the task before it was asked to stop")
            self.backend.follow_revoked(followed)

    def _submit_not_new(self, record: TaskRecord) -> None:
        """Let a step end that was not unique, or whose id is taken: its workflow can be seen to end here."""
        from tasks_app.models import FORGOTTEN, TaskRecord

        revoked = TaskRecord.objects.filter(task_id=record.task_id, state=states.REVOKED)
        if revoked.exclude(note=FORGOTTEN).exists():  # while it was to come
            self.backend.follow_end_of(record, TaskRevokedError("revoked"))
            return
        try:
            if (holder := self._raise_duplicate(record)) == record.task_id:
                return
            error: Exception = TaskRevokedError(f"it is task {holder}, by its idempotency key")
        except NotUnique as reason:
            error = TaskRevokedError(str(reason))
        except DuplicateTask as reason:
            self.backend.follow_end_of(record, reason)
            return
        record.idempotency_key = record.unique_key = record.unique_for = None
        self.submit_new([record])
        TaskRecord.objects.filter(task_id=record.task_id).mark_revoked(str(error))
        self.backend.follow_end_of(record, error)

    def _raise_duplicate(self, record: TaskRecord) -> str:
        """Say why a record is not new. Returns the id of an earlier one with its idempotency key, or its own id where
        it was new in the end, or starts one that has ended anew."""
        from tasks_app.models import TaskRecord

        for _ in range(3):
            if (holder := TaskRecord.objects.holder_of(record)) is not None:
                break
            if not self.submit_new([record]):  # it let go in between
                return record.task_id
        else:
            raise DuplicateTask(f"Task {record.task_id} is like one whose transaction has not ended: try again.")
        if record.idempotency_key is not None and holder.idempotency_key == record.idempotency_key:
            return holder.task_id
        if holder.task_id == record.task_id and (renewed := TaskRecord.objects.start_anew(record)):
            self._go_on_as(renewed, record)
            return record.task_id
        if record.unique_key is not None and holder.unique_key == record.unique_key:
            raise NotUnique(
                f"{record.name} is to be there once, and is: task {holder.task_id} ({holder.state}), "
                f"by {holder.unique_key!r}.",
                holder.task_id,
            )
        raise DuplicateTask(f"A task {record.task_id} is recorded already: give each an id of its own, or none.")

    def take_over(self, record: TaskRecord) -> bool:
        """Send a task under the id of one that was replaced by it."""
        from tasks_app.models import TaskRecord

        moved = TaskRecord.objects.take_over(record)
        if moved:
            self._go_on_as(moved, record)
        return moved is not None

    def _go_on_as(self, moved: TaskRecord, record: TaskRecord) -> None:
        self._submit_steps([record] if may_have_steps(record) else [])
        self.publish_or_wake(moved, record)

    def publish_or_wake(self, moved: TaskRecord, next_run: TaskRecord) -> None:
        """Have a record that waits again, as `next_run` says, published on commit, or by the relay when it is due."""
        if next_run.is_due:
            transaction.on_commit(partial(self.publisher.publish_committed, [moved]))
        else:
            notify(DUE_CHANNEL)

    def publish(self, records: Sequence[TaskRecord]) -> None:
        """Send the messages of these records. Raises kombu's OperationalError where the broker does not answer."""
        self.publisher.publish(records)


@contextmanager
def _in_coroutines_named(record: TaskRecord) -> Iterator[None]:
    """Tell a coroutine how it is to send what it sends within."""
    try:
        yield
    except SynchronousOnlyOperation as error:
        raise SynchronousOnlyOperation(
            f"{record.name}: a coroutine cannot wait for the database. Use `await task.adelay(…)`, "
            "`await task.aapply_async(…)` or `await CeleryClient().asubmit(…)`; for a workflow, "
            "`await sync_to_async(workflow.apply_async)(…)`."
        ) from error


def may_have_steps(record: TaskRecord) -> bool:
    """Whether others may be to come after a record, or may be found by a stamp of it; at next to no cost."""
    options = record.options.keys()
    return not options.isdisjoint(_WITH_STEPS) or ("chain" in options and not record.steps_are_known)


_WITH_STEPS = {"link", "link_error", "stamped_headers"}


def _known_steps(parent: Any) -> list[Step]:
    """What is to come after a running task by its own message: it is known since that was made."""
    from tasks_app.models import TaskRecord
    from tasks_app.steps import steps_of

    request = parent.request
    options = {"chain": request.chain, "link": request.callbacks, "link_error": request.errbacks}
    return steps_of(TaskRecord(task_id=request.id, root_id=request.root_id or request.id, options=options))
