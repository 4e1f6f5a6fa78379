"""The one door out: whoever sends a task, its record is written first, and its message goes out on commit.

`Task.delay`, `apply_async`, `retry`, every canvas, Celery Beat and `CeleryClient` end in `Celery.send_task`, which the
subclass here overrides. A message is a hint that there may be a row to run, so publishing may fail, or happen twice:
what was not marked as published is published by the relay (maintenance.Relay), and the claim drops what came double.

A project's Celery app is made before Django's apps are loaded, so the model is imported where it is used.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.app.control import Control
from celery.utils.nodenames import anon_nodename
from celery.utils.saferepr import saferepr
from django.conf import settings
from django.db import DatabaseError, connections, transaction
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from kombu.common import maybe_declare
from kombu.exceptions import OperationalError
from kombu.utils.functional import maybe_list
from kombu.utils.uuid import uuid

from tasks_app import transport
from tasks_app.exceptions import DuplicateTask, InvalidSubmission
from tasks_app.notify import DUE_CHANNEL, notify

if TYPE_CHECKING:
    from tasks_app.models import TaskRecord

logger = logging.getLogger(__name__)
transport.use()

#: Header that carries the record's `gen` in a message.
GEN_HEADER = "gen"
#: Options that are part of the message; the others tell how to send it.
_IN_MESSAGE = (
    "group_index", "chord", "time_limit", "soft_time_limit", "shadow", "chain", "ignore_result",
    "replaced_task_nesting",
)  # fmt: skip


def route_scheduled(name, args, kwargs, options, task=None, **_):
    """A task route: what a schedule fires, Celery Beat's included, goes to the queue of its own."""
    if "periodic_task_name" in (options.get("headers") or {}):
        return {"queue": settings.CRON_QUEUE}
    return None


class RecordingControl(Control):
    """Celery's remote control, where a revoke reaches tasks that no worker has heard of, workers up or down."""

    def revoke(self, task_id, destination=None, terminate=False, signal="SIGTERM", **kwargs):
        """Revoke what waits, in Postgres; ask the workers about the rest, which runs or was never recorded."""
        from tasks_app.models import TaskRecord

        task_ids = [task_id] if isinstance(task_id, str) else list(task_id)
        revoked = set(TaskRecord.objects.filter(task_id__in=task_ids).mark_revoked("revoked"))
        self.app.backend.count_revoked(revoked)
        others = [task_id for task_id in task_ids if task_id not in revoked]
        if others:
            return super().revoke(others, destination, terminate=terminate, signal=signal, **kwargs)
        return None


class RecordingCelery(Celery):
    """A Celery app that records each task in Postgres before it publishes it."""

    task_cls = "tasks_app.execution:ConsoleTask"
    control_cls = "tasks_app.outbox:RecordingControl"

    # A look into Celery's configuration costs 19 µs.
    _default_priority = cached_property(lambda self: self.conf.task_default_priority)
    _sends_event = cached_property(lambda self: self.conf.task_send_sent_event)
    _inherits_priority = cached_property(lambda self: self.conf.task_inherit_parent_priority)

    def send_task(
        self, name, args=None, kwargs=None, *, producer=None, publisher=None, connection=None, router=None,
        result_cls=None, add_to_parent=True, **options,
    ):  # fmt: skip
        """Record the task in the current transaction, and publish it on commit. Takes and returns what Celery's does.

        Raises InvalidSubmission and DuplicateTask; nothing is recorded then. A broker that is away raises nothing: the
        message goes out when it is back. (So what would publish now, a producer or a connection, is not used.)
        """
        parent = self.current_worker_task
        record = self.build_record(name, args, kwargs, parent=parent, **options)
        if parent and parent.request.id == record.task_id:
            parent.continue_as(record)
        else:
            try:
                self.submit([record])
            except DuplicateTask:
                if parent is None or not self.take_over(record):
                    raise
        result = (result_cls or self.AsyncResult)(record.task_id)
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

        task = task_type or self._tasks.get(name)
        options = (_given(task._get_exec_options()) if task else {}) | options
        args, kwargs = _checked_arguments(name, args, kwargs)
        task_id = _checked_id(task_id or uuid())
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
            eta=_moment("countdown", countdown) if eta is None else _moment("eta", eta),
            expires=_moment("expires", options.pop("expires", None)),
        )
        headers = {key: value for key, value in (options.pop("headers", None) or {}).items() if key != GEN_HEADER}
        record.options = _given(options) | ({"headers": headers} if headers else {})
        record.publish_at = record.eta if record.eta and record.eta > timezone.now() else None
        return record

    def build_records(self, name, calls: Iterable[tuple[Sequence, Mapping]], **options) -> list[TaskRecord]:
        """Records of one task for many (args, kwargs), all with the same options, and the first one's route."""
        records: list[TaskRecord] = []
        for args, kwargs in calls:
            if not records:
                record = self.build_record(name, args, kwargs, **options)
                is_root = record.root_id == record.task_id
            else:
                record = records[0].sibling(uuid())
                record.args, record.kwargs = _checked_arguments(name, args, kwargs)
                record.root_id = record.task_id if is_root else record.root_id
            records.append(record)
        return records

    def _checked_priority(self, priority: Any) -> int | None:
        if priority is None:
            return self._default_priority
        if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= 9:
            raise InvalidSubmission(f"priority must be a whole number from 0 (most urgent) to 9, not {priority!r:.80}.")
        return priority

    def submit(self, records: Sequence[TaskRecord]) -> None:
        """Insert built records in the current transaction, and publish on commit those that are due."""
        from tasks_app.models import TaskRecord

        TaskRecord.objects.insert(records)
        due = [record for record in records if record.publish_at is None]
        if len(due) < len(records):
            notify(DUE_CHANNEL)
        if due:
            transaction.on_commit(partial(self.publish_submitted, due))

    def take_over(self, record: TaskRecord) -> bool:
        """Send a task under the id of one that was replaced by it."""
        from tasks_app.models import TaskRecord

        moved = TaskRecord.objects.take_over(record)
        if moved:
            transaction.on_commit(partial(self.publish_submitted, [moved]))
        return moved is not None

    def publish_submitted(self, records: Sequence[TaskRecord]) -> None:
        """Publish what is committed and due. Where the broker does not answer, that is left to the relay."""
        try:
            self.publish(records)
        except OperationalError as error:
            logger.warning("Broker not reached (%s): %d tasks wait in Postgres for the relay.", error, len(records))
        except Exception:  # they are committed: the caller must not take them for failed
            logger.exception("%d tasks not published; the relay tries again.", len(records))
        else:
            marker.add((record.task_id, record.gen) for record in records)

    def publish(self, records: Sequence[TaskRecord]) -> None:
        """Send the messages of these records. Raises kombu's OperationalError where the broker does not answer.

        Messages are built and sent by Celery's own functions, those of `Celery.send_task`, which would decide again,
        for each message, what the record holds already. Several go out together where the transport can do that.
        """
        with self.producer_or_acquire() as producer, producer.connection._reraise_as_library_errors():
            self._declare({record.queue for record in records if "exchange" not in record.options}, producer)
            with producer.batch() if len(records) > 1 else nullcontext():
                options = None
                for record in records:
                    if record.options is not options:  # those of many submitted at once are one object
                        options = record.options
                        in_message, sending = self._split_options(options)
                    self._publish_one(producer, record, in_message, sending)

    def _declare(self, queues: set[str], producer) -> None:
        declared = producer.connection.declared_entities  # kombu's own memory, forgotten when it reconnects
        for name in queues - declared:
            maybe_declare(self.amqp.queues[name], producer.channel)
            declared.add(name)

    def _split_options(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options by what takes them: the function that makes a message, and the one that sends it."""
        sending = dict(options)
        in_message = {name: sending.pop(name) for name in _IN_MESSAGE if name in sending}
        in_message.setdefault("ignore_result", None)  # as the task has it
        in_message |= sending | {
            "callbacks": maybe_list(sending.pop("link", None)),
            "errbacks": maybe_list(sending.pop("link_error", None)),
            "reply_to": sending.pop("reply_to", None) or self.thread_oid,
            "origin": sending.get("origin") or anon_nodename(),
            "create_sent_event": self._sends_event,
        }
        for stamp in sending.pop("stamped_headers", ()):
            sending.pop(stamp, None)
        return in_message, sending

    def _publish_one(self, producer, record: TaskRecord, in_message: dict[str, Any], sending: dict[str, Any]) -> None:
        message = self.amqp.create_task_message(
            record.task_id,
            record.name,
            record.args,
            record.kwargs,
            group_id=record.group_id,
            retries=record.retries,
            root_id=record.root_id,
            parent_id=record.parent_id,
            argsrepr=saferepr(record.args, self.amqp.argsrepr_maxsize) if record.args else "()",
            kwargsrepr=saferepr(record.kwargs, self.amqp.kwargsrepr_maxsize) if record.kwargs else "{}",
            **in_message,  # no eta and no expires: they wait in Postgres, and are judged by its clock
        )
        message.headers[GEN_HEADER] = record.gen
        if "exchange" not in sending:
            sending = sending | {"queue": record.queue, "declare": ()}
        self.amqp.send_task_message(producer, record.name, message, priority=record.priority, **sending)


class _Marker:
    """Marks messages as published, many in one statement, from a thread: a submitter need not wait for that.

    What is lost when the process is killed goes out twice, and the claim drops the second.
    """

    #: Seconds to gather marks, well within PUBLISH_GRACE, and to keep an idle connection.
    GATHER, IDLE = 0.25, 5

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._start_lock = threading.Lock()
        self._queue: queue.SimpleQueue[list[tuple[str, int]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, messages: Iterable[tuple[str, int]]) -> None:
        self._queue.put(list(messages))
        if self._thread is None:
            with self._start_lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="mark-published", daemon=True)
                    self._thread.start()

    def flush(self) -> None:
        """Mark here and now what waits."""
        from tasks_app.models import TaskRecord

        batch = self._drain()
        if batch:
            try:
                TaskRecord.objects.mark_published(batch)
            except DatabaseError as error:
                logger.warning("%d messages not marked as published, they go out again: %s", len(batch), error)
                connections.close_all()

    def _run(self) -> None:
        while True:
            try:
                first = self._queue.get(timeout=self.IDLE)
            except queue.Empty:
                connections.close_all()
                first = self._queue.get()
            self._queue.put(first)
            threading.Event().wait(self.GATHER)
            self.flush()

    def _drain(self, limit: int = 5000) -> list[tuple[str, int]]:
        batch: list[tuple[str, int]] = []
        while len(batch) < limit:
            try:
                batch += self._queue.get_nowait()
            except queue.Empty:
                break
        return batch


marker = _Marker()
os.register_at_fork(after_in_child=marker.reset)
atexit.register(marker.flush)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None and value != []}


def _checked_arguments(name, args, kwargs) -> tuple[Sequence, Mapping]:
    args, kwargs = () if args is None else args, {} if kwargs is None else kwargs
    if not isinstance(args, list | tuple):
        raise InvalidSubmission(f"{name}: args must be a list or a tuple, not {type(args).__name__}.")
    if not isinstance(kwargs, Mapping):
        raise InvalidSubmission(f"{name}: kwargs must be a mapping, not {type(kwargs).__name__}.")
    return args, kwargs


def _checked_id(task_id: Any) -> str:
    if not isinstance(task_id, str) or not 0 < len(task_id) <= 255 or "\x00" in task_id:
        raise InvalidSubmission(f"task_id must be a text of 1 to 255 characters, not {task_id!r:.80}.")
    return task_id


def _moment(what: str, value: Any) -> datetime | None:
    """A point in time, given as one (naive: in the project's zone), as ISO 8601 text, or as seconds from now."""
    if isinstance(value, str):
        value = parse_datetime(value) or value
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return timezone.now() + timedelta(seconds=value)
        if isinstance(value, datetime):
            return value if timezone.is_aware(value) else timezone.make_aware(value, timezone.get_default_timezone())
    except (OverflowError, ValueError) as error:
        raise InvalidSubmission(f"{what}: {value!r:.80} is out of range: {error}.") from error
    if value is not None:
        raise InvalidSubmission(f"{what} must be a time or a number of seconds, not {value!r:.80}.")
    return None
