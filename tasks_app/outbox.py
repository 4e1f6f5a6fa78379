"""The one door out: whoever sends a task, its record is written first, and its message goes out on commit.

`Task.delay`, `apply_async`, `retry`, every canvas, Celery Beat and `CeleryClient` end in `Celery.send_task`, which the
subclass here overrides. A message is a hint that there may be a row to run, so publishing may fail, or happen twice:
what was not marked as published is published by the relay (maintenance.Relay), and the claim drops what came double.

A project's Celery app is made before Django's apps are loaded, so the model is imported where it is used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta
from functools import cached_property, partial, wraps
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

from celery import Celery, canvas, current_app
from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from kombu.exceptions import EncodeError
from kombu.utils.uuid import uuid

from tasks_app import transport
from tasks_app.exceptions import DuplicateTask, InvalidSubmission, NotUnique
from tasks_app.notify import DUE_CHANNEL, notify
from tasks_app.publishing import GEN_HEADER, Publisher

if TYPE_CHECKING:
    from django_celery_results.models import ChordCounter

    from tasks_app.models import TaskRecord

logger = logging.getLogger(__name__)
transport.use()


class Successors:
    """What follows from the end of a run: gathered, to be written in the transaction that closes it."""

    def __init__(self):
        self.records: list[TaskRecord] = []
        self.chords: list[ChordCounter] = []

    def add(self, record: TaskRecord) -> None:
        from tasks_app.models import dump_json

        try:
            dump_json((record.args, record.kwargs))
        except InvalidSubmission as error:  # the word that Celery knows: the run fails, with this as its reason
            raise EncodeError(f"Its result cannot be handed on to {record.name}: {error}") from error
        record.is_successor = True
        self.records.append(record)


#: Where what is sent goes while a run ends; None: to be submitted at once.
_ending: ContextVar[Successors | None] = ContextVar("ending", default=None)


def begin_ending() -> None:
    """From here on, until `take_successors`, gather what is sent: the body has ended, its outcome is not stored yet."""
    _ending.set(Successors())


def take_successors() -> Successors | None:
    successors = _ending.get()
    if successors is not None:
        _ending.set(None)
    return successors


def ending() -> Successors | None:
    return _ending.get()


@contextmanager
def gathered() -> Iterator[Successors]:
    """Gather what is sent within the block."""
    begin_ending()
    try:
        yield _ending.get()  # type: ignore[misc]
    finally:
        _ending.set(None)


def route_scheduled(name, args, kwargs, options, task=None, **_):
    """A task route: what a schedule fires, Celery Beat's included, goes to the queue of its own."""
    if "periodic_task_name" in (options.get("headers") or {}):
        return {"queue": settings.CRON_QUEUE}
    return None


class RecordingCelery(Celery):
    """A Celery app that records each task in Postgres before it publishes it."""

    task_cls = "tasks_app.execution:ConsoleTask"
    control_cls = "tasks_app.control:RecordingControl"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps["worker"].add("tasks_app.workers:Upkeep")

    publisher = cached_property(Publisher)
    # A look into Celery's configuration costs 19 µs.
    _default_priority = cached_property(lambda self: self.conf.task_default_priority)
    _inherits_priority = cached_property(lambda self: self.conf.task_inherit_parent_priority)

    def send_task(
        self, name, args=None, kwargs=None, *, producer=None, publisher=None, connection=None, router=None,
        result_cls=None, add_to_parent=True, **options,
    ):  # fmt: skip
        """Record the task in the current transaction, and publish it on commit. Takes and returns what Celery's does.

        Takes `idempotency_key` too: a second call with the same text records nothing, and returns the result of the
        first. Raises InvalidSubmission, DuplicateTask and NotUnique; nothing is recorded then. A broker that is away
        raises nothing: the message goes out when it is back. (So what would publish now, a producer or a connection,
        is not used.)
        """
        parent = self.current_worker_task
        successors = _ending.get()
        if successors is not None and parent and not options.get("task_id"):
            options["task_id"] = str(uuid5(NAMESPACE_OID, f"{parent.request.id} {len(successors.records)}"))
        record = self.build_record(name, args, kwargs, parent=parent, **options)
        task_id = record.task_id
        if successors is not None:
            successors.add(record)
        elif parent and parent.request.id == task_id:
            parent.continue_as(record)
        else:
            task_id = self.submit_one(record)
        result = (result_cls or self.AsyncResult)(task_id)
        result.ignored = record.options.get("ignore_result")
        if add_to_parent and parent:
            parent.add_trail(result)
        return result

    def build_record(
        self, name, args=None, kwargs=None, *, parent=None, task_type=None, route_name=None, task_id=None, eta=None,
        countdown=None, **options,
    ) -> TaskRecord:  # fmt: skip
        """The record of such a call, checked, with all that depends on the moment and the caller; not saved."""
        from tasks_app.models import TaskRecord

        task = task_type or self.tasks.get(name)  # which has the shared tasks registered first
        options = (_given(task._get_exec_options()) if task else {}) | options
        args, kwargs = _checked_arguments(name, args, kwargs)
        task_id = _checked_text("task_id", task_id) or uuid()
        request = parent.request if parent else None
        if request and options.get("priority") is None and self._inherits_priority:
            options["priority"] = (request.delivery_info or {}).get("priority")
        options = self.amqp.router.route(dict(options), route_name or name, args, kwargs, task)
        queue, exchange, key = (options.pop(part, None) for part in ("queue", "exchange", "routing_key"))
        if queue is None and exchange and key:
            options |= {"exchange": exchange, "routing_key": key}
        record = TaskRecord(
            task_id=task_id,
            name=name,
            args=args,
            kwargs=kwargs,
            queue=str(getattr(queue, "name", queue) or key or self.amqp.default_queue.name),
            priority=self._checked_priority(options.pop("priority", None)),
            root_id=options.pop("root_id", None) or (request and (request.root_id or request.id)) or task_id,
            parent_id=options.pop("parent_id", None) or (request and request.id),
            group_id=options.pop("group_id", None),
            retries=options.pop("retries", 0),
            max_retries=getattr(task, "max_retries", None),
            idempotency_key=_checked_text("idempotency_key", options.pop("idempotency_key", None)),
            eta=_moment("countdown", countdown) if eta is None else _moment("eta", eta),
            expires=_moment("expires", options.pop("expires", None)),
        )
        headers = _own_headers(options.pop("headers", None))
        record.options = _given(options) | ({"headers": headers} if headers else {})
        record.publish_at = record.eta if record.eta and record.eta > timezone.now() else None
        if task is not None:
            self._apply_task_options(record, task)
        return record

    def build_records(self, name, calls: Iterable[tuple[Sequence, Mapping]], **options) -> list[TaskRecord]:
        """Records of one task for many (args, kwargs), all with the same options, and the first one's route."""
        if options.get("idempotency_key") is not None:
            raise InvalidSubmission("idempotency_key is for one task, not for many.")
        records: list[TaskRecord] = []
        for args, kwargs in calls:
            if not records:
                record = self.build_record(name, args, kwargs, **options)
                is_root = record.root_id == record.task_id
            else:
                record = records[0].sibling(uuid())
                record.args, record.kwargs = _checked_arguments(name, args, kwargs)
                record.root_id = record.task_id if is_root else record.root_id
                if options.get("task_type") is not None:
                    self._apply_task_options(record, options["task_type"])
            records.append(record)
        return records

    def build_like(self, record: TaskRecord, args, kwargs, *, task_id: str, eta=None, expires=None, headers=None):
        """As build_record would make it, of the task and with the options of `record`, at a third of the cost."""
        other = record.sibling(task_id)
        other.args, other.kwargs = _checked_arguments(record.name, args, kwargs)
        other.root_id, other.options = task_id, record.options | {"headers": _own_headers(headers)}
        other.eta, other.expires = _moment("eta", eta), _moment("expires", expires)
        other.publish_at = other.eta if other.eta and other.eta > timezone.now() else None
        if record.unique_key or record.limit_key:
            self._apply_task_options(other, self.tasks[record.name])
        return other

    def _apply_task_options(self, record: TaskRecord, task) -> None:
        """What a task's own options say about when there may be another one of it (uniqueness.py, limits.py)."""
        from tasks_app import limits, uniqueness

        if getattr(task, "unique", None) is not None:
            record.unique_key, lasts = uniqueness.key_of(task, record.args, record.kwargs)
            record.unique_until = timezone.now() + lasts if lasts else None
        if limit_key := limits.key_of(task, record.args, record.kwargs):
            record.limit_key = limit_key
            record.publish_at = record.publish_at or timezone.now()  # the relay's to publish, when there is a slot

    def _checked_priority(self, priority: Any) -> int | None:
        if priority is None:
            return self._default_priority
        if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= 9:
            raise InvalidSubmission(f"priority must be a whole number from 0 (most urgent) to 9, not {priority!r:.80}.")
        return priority

    def submit(self, records: Sequence[TaskRecord]) -> None:
        """Insert built records in the current transaction, all or none, and publish on commit those that are due.

        Raises InvalidSubmission, DuplicateTask and NotUnique.
        """
        with transaction.atomic():
            for record in self.submit_new(records):
                self._raise_duplicate(record)

    def submit_one(self, record: TaskRecord) -> str:
        """The same for one; the id under which it is recorded, by the idempotency key an earlier one's."""
        if not self.submit_new([record]):
            return record.task_id
        if self.take_over(record):
            return record.task_id
        return self._raise_duplicate(record)

    def submit_new(self, records: Sequence[TaskRecord]) -> list[TaskRecord]:
        """Submit those that are new; returns the others, whose id or key is there already."""
        from tasks_app.models import TaskRecord

        old = TaskRecord.objects.insert(records, self.publisher.grace)
        new = [record for record in records if record not in old] if old else records
        due = [record for record in new if record.publish_at is None]
        if len(due) < len(new):
            notify(DUE_CHANNEL)
        if due:
            transaction.on_commit(partial(self.publisher.publish_committed, due))
        return old

    def submit_successors(self, successors: Successors, revoked: bool) -> None:
        """Submit what follows from a run, in the transaction that closes it; `revoked`: but let none of it start."""
        from tasks_app.models import TaskRecord

        for chord in successors.chords:
            chord.save(force_insert=True)
        if not successors.records:
            return
        for record in self.submit_new(successors.records):
            if not self.take_over(record):
                self._submit_not_unique(record)
        if revoked:
            ids = [record.task_id for record in successors.records]
            followed = TaskRecord.objects.filter(task_id__in=ids).mark_revoked("the task before it was asked to stop")
            self.backend.follow_revoked(followed)

    def _submit_not_unique(self, record: TaskRecord) -> None:
        """Record a step that was not unique as one that does not start: its workflow can be seen to end here."""
        from tasks_app.models import TaskRecord

        try:
            reason = f"it is task {self._raise_duplicate(record)}, by its idempotency key"
        except DuplicateTask as error:
            reason = str(error)
        record.idempotency_key = record.unique_key = record.unique_until = None
        self.submit_new([record])  # unless it was revoked before it came
        TaskRecord.objects.filter(task_id=record.task_id).mark_revoked(reason)
        self.backend.follow_end_of(record, reason)

    def _raise_duplicate(self, record: TaskRecord) -> str:
        """Say why a record is not new. Returns the id of an earlier one with its idempotency key, or its own id where
        it was new in the end."""
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
        if moved and record.publish_at is None:
            transaction.on_commit(partial(self.publisher.publish_committed, [moved]))
        elif moved:
            notify(DUE_CHANNEL)
        return moved is not None

    def publish(self, records: Sequence[TaskRecord]) -> None:
        """Send the messages of these records. Raises kombu's OperationalError where the broker does not answer."""
        self.publisher.publish(records)


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None and value != []}


def _own_headers(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (headers or {}).items() if key != GEN_HEADER}


def _checked_arguments(name, args, kwargs) -> tuple[Sequence, Mapping]:
    args, kwargs = () if args is None else args, {} if kwargs is None else kwargs
    if not isinstance(args, list | tuple):
        raise InvalidSubmission(f"{name}: args must be a list or a tuple, not {type(args).__name__}.")
    if not isinstance(kwargs, Mapping):
        raise InvalidSubmission(f"{name}: kwargs must be a mapping, not {type(kwargs).__name__}.")
    return args, kwargs


def _checked_text(what: str, text: Any) -> str | None:
    storable = text is None or (isinstance(text, str) and 0 < len(text) <= 255 and not _UNSTORABLE.search(text))
    if not storable:
        raise InvalidSubmission(f"{what} must be a text of 1 to 255 characters, without NUL, not {text!r:.80}.")
    return text


def _moment(what: str, value: Any) -> datetime | None:
    """A point in time, given as one (naive: in the project's zone), as ISO 8601 text, or as seconds from now."""
    if value is None:
        return None
    if isinstance(value, str):
        value = parse_datetime(value) or value
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return timezone.now() + timedelta(seconds=value)
        if isinstance(value, datetime):
            return value if timezone.is_aware(value) else timezone.make_aware(value, timezone.get_default_timezone())
    except (OverflowError, ValueError) as error:
        raise InvalidSubmission(f"{what}: {value!r:.80} is out of range: {error}.") from error
    raise InvalidSubmission(f"{what} must be a time or a number of seconds, not {value!r:.80}.")


def _whole(canvas_class: type) -> None:
    """Let a workflow be recorded as a whole, or not at all, also where its caller has no transaction open.

    The tasks of a group or a chord that no task sends have its id as their root, so that they can be told to belong
    together; Celery would give each its own.
    """
    apply_async = canvas_class.apply_async  # type: ignore[attr-defined]

    @wraps(apply_async)
    def in_one_transaction(self, *args, **kwargs):
        if kwargs.get("idempotency_key") is not None:
            raise InvalidSubmission("idempotency_key is for one task: give it to the first of the workflow.")
        if canvas_class is not canvas._chain and current_app.current_worker_task is None:
            kwargs.setdefault("root_id", uuid())
        if connection.in_atomic_block or _ending.get() is not None:
            return apply_async(self, *args, **kwargs)
        with transaction.atomic():
            return apply_async(self, *args, **kwargs)

    canvas_class.apply_async = in_one_transaction  # type: ignore[attr-defined]


for canvas_class in (canvas._chain, canvas.group, canvas._chord):
    _whole(canvas_class)
