"""The one door out: whoever sends a task, its record is written first, and its message goes out on commit.

`Task.delay`, `apply_async`, `retry`, every canvas, Celery Beat and `CeleryClient` end in `Celery.send_task`, which the
subclass here overrides. A message is a hint that there may be a row to run, so publishing may fail, or happen twice:
what was not marked as published is published by the relay (maintenance.Relay), and the claim drops what came double.

A project's Celery app is made before Django's apps are loaded, so the model is imported where it is used.
"""

from __future__ import annotations

import inspect
import logging
import numbers
import operator
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import datetime, timedelta
from functools import cached_property, partial, wraps
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

from celery import Celery, Task, canvas
from celery.exceptions import TaskRevokedError
from django.conf import settings
from django.core.exceptions import SynchronousOnlyOperation
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from kombu.exceptions import EncodeError
from kombu.serialization import prepare_accept_content
from kombu.utils.uuid import uuid

from tasks_app import messages, states, transport
from tasks_app.coroutines import awaiting
from tasks_app.exceptions import DuplicateTask, InvalidSubmission, NotUnique
from tasks_app.notify import DUE_CHANNEL, notify
from tasks_app.publishing import AT_ONCE, GEN_HEADER, Publisher, has_handlers

if TYPE_CHECKING:
    from django_celery_results.models import ChordCounter

    from tasks_app.models import TaskRecord
    from tasks_app.steps import Step

logger = logging.getLogger(__name__)
transport.use()

_OMITTED: Any = object()
#: Seconds that a countdown may last; and how old an `eta` is that is published without a look at the database's clock.
LONGEST, LONG_PAST = 3_155_760_000, timedelta(minutes=10)


class Successors:
    """What was sent, and is not written yet: by the end of a run, or as one workflow."""

    def __init__(self, parent=None):
        #: The task whose end this is, for the ids of what follows; None for a workflow.
        self.parent = parent
        self.records: list[TaskRecord] = []
        self.chords: list[ChordCounter] = []
        self.steps: list[Step] = []


#: Where what is sent goes while a run ends, or a workflow is put together; None: to be submitted at once.
_gathering: ContextVar[Successors | None] = ContextVar("gathering", default=None)


def begin_ending(parent) -> None:
    """From here on, until `take_successors`, gather what is sent: the body has ended, its outcome is not stored yet."""
    _gathering.set(Successors(parent))


def take_successors() -> Successors | None:
    successors = _gathering.get()
    if successors is not None:
        _gathering.set(None)
    return successors


def gathering() -> Successors | None:
    return _gathering.get()


@contextmanager
def gathered() -> Iterator[Successors]:
    """Gather what is sent within the block."""
    successors = Successors()
    token = _gathering.set(successors)
    try:
        yield successors
    finally:
        _gathering.reset(token)


def route_scheduled(name, args, kwargs, options, task=None, **_):
    """A task route: what a schedule fires, Celery Beat's included, goes to the queue of its own."""
    if "periodic_task_name" in (options.get("headers") or {}):
        return {"queue": settings.CRON_QUEUE}
    return None


class RecordingCelery(Celery):
    """A Celery app that records each task in Postgres before it publishes it."""

    task_cls = "tasks_app.execution:ConsoleTask"
    control_cls = "tasks_app.control:RecordingControl"
    registry_cls = "tasks_app.guard:ClaimedTasks"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps["worker"].add("tasks_app.workers:Upkeep")

    publisher = cached_property(Publisher)
    AsyncResult = cached_property(
        lambda self: self.subclass_with_self("tasks_app.waiting:RecordedResult", "AsyncResult", reverse="AsyncResult")
    )
    # A look into Celery's configuration costs 19 µs.
    _default_priority = cached_property(lambda self: self.conf.task_default_priority)
    _inherits_priority = cached_property(lambda self: self.conf.task_inherit_parent_priority)
    #: The content types that workers accept.
    accepts = cached_property(lambda self: frozenset(prepare_accept_content(self.conf.accept_content or ["json"])))

    def _task_from_fun(self, fun, *args, **options):
        if options.get("pydantic") and inspect.iscoroutinefunction(fun):  # whose value is what pydantic shall dump
            fun = awaiting(fun)
        return super()._task_from_fun(fun, *args, **options)

    def send_task(
        self, name, args=None, kwargs=None, countdown=None, eta=None, task_id=None, producer=None, connection=None,
        router=None, result_cls=None, expires=_OMITTED, publisher=None, link=None, link_error=None,
        add_to_parent=True, **options,
    ):  # fmt: skip
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
        if options.get("task_type") is None and (sentry := sys.modules.get("sentry_sdk.integrations.celery")):
            send = sentry._wrap_task_run(send)  # what it does to Celery's own; to a task's `apply_async` it has done so
        return send(self, name, args, kwargs, **options)

    def _send(self, name, args, kwargs, *, task_id, result_cls, add_to_parent, **options):
        parent, successors = self.current_worker_task, _gathering.get()
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
            record.task_id = self._submit_now(record)
        result = (result_cls or self.AsyncResult)(record.task_id)
        result.ignored = record.options.get("ignore_result")
        if add_to_parent and parent:
            parent.add_trail(result)
        return result

    def _built(self, name, args, kwargs, **options) -> TaskRecord:
        successors = _gathering.get()
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

    def _submit_now(self, record: TaskRecord) -> str:
        try:
            return self.submit_one(record)
        except SynchronousOnlyOperation as error:
            raise SynchronousOnlyOperation(
                f"{record.name}: a coroutine cannot wait for the database. Use `await task.adelay(…)`, "
                "`await task.aapply_async(…)` or `await CeleryClient().asubmit(…)`; for a workflow, "
                "`await sync_to_async(workflow.apply_async)(…)`."
            ) from error

    def build_record(
        self, name, args=None, kwargs=None, *, parent=None, task_type=None, route_name=None, task_id=None, eta=None,
        countdown=None, router=None, announce=True, **options,
    ) -> TaskRecord:  # fmt: skip
        """The record of such a call, checked, with all that depends on the moment and the caller; not saved.

        `announce`: send Celery's signals of publishing, which call a project's code; else they are sent when its
        message goes out.
        """
        from tasks_app.models import TaskRecord

        task = task_type or self.tasks.get(name)  # which has the shared tasks registered first
        options = (_given(task._get_exec_options()) if task else {}) | options
        args, kwargs = _checked_arguments(name, args, kwargs)
        task_id = _checked_text("task_id", task_id) or uuid()
        request = parent.request if parent else None
        if request and options.get("priority") is None and self._inherits_priority:
            options["priority"] = (request.delivery_info or {}).get("priority")
        options["headers"] = _own_headers(options.get("headers"))
        to_exchange = options.get("exchange") and options.get("routing_key") and not options.get("queue")
        options = (router or self.amqp.router).route(dict(options), route_name or name, args, kwargs, task)
        queue, exchange, key = (options.pop(part, None) for part in ("queue", "exchange", "routing_key"))
        if to_exchange or (queue is None and exchange and key):
            options |= {"exchange": exchange, "routing_key": key}
            queue = None
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
        )
        _set_times(record, countdown, eta, options.pop("expires", None))
        headers = _own_headers(options.pop("headers", None))  # a route's too
        record.options = _given(options) | ({"headers": headers} if headers else {})
        record.steps_are_known = parent is not None and _is_tail(record.options.get("chain"), parent.request.chain)
        messages.check_record(record, self.accepts, known=["chain"] if record.steps_are_known else ())
        if task is not None:
            self._apply_task_options(record, task)
        self._announce(record, announce)
        return record

    def _announce(self, record: TaskRecord, now: bool) -> None:
        if not now:
            record.is_announced = False
        elif has_handlers():
            self.publisher.announce(record)
        if now:
            record.encoded()  # by a project's encoders, too

    def build_records(self, name, calls: Iterable[tuple[Sequence, Mapping]], **options) -> list[TaskRecord]:
        """Records of one task for many (args, kwargs), all with the same options, and the first one's route."""
        if options.get("idempotency_key") is not None:
            raise InvalidSubmission("idempotency_key is for one task, not for many.")
        records: list[TaskRecord] = []
        for args, kwargs in calls:
            if not records:
                record = self.build_record(name, args, kwargs, **options, announce=False)
                is_root, made = record.root_id == record.task_id, record.options
                record.is_announced = True
                self._announce(record, now=True)
            else:
                record = records[0].sibling(uuid())
                record.args, record.kwargs = _checked_arguments(name, args, kwargs)
                record.root_id = record.task_id if is_root else record.root_id
                record.options = made
                if options.get("task_type") is not None:
                    self._apply_task_options(record, options["task_type"])
                self._announce(record, now=True)
            records.append(record)
        return records

    def announce_late(self, record: TaskRecord) -> bool:
        """Do for a record that was made in a transaction of ours what a project's code does when a task is sent: that
        of its own `apply_async`, and of signals' handlers. Whether that changed the record."""
        task, record.is_announced = self.tasks.get(record.name), True
        if task is None or (is_sent_plainly(task) and not has_handlers()):
            return False
        made = record.args, record.kwargs, record.options
        with gathered() as sent:
            task.apply_async(
                record.args, record.kwargs, task_id=record.task_id, queue=record.queue, priority=record.priority,
                add_to_parent=False, **record.options,
            )  # fmt: skip
        (again,) = sent.records
        record.args, record.kwargs, record.options = again.args, again.kwargs, again.options
        return made != (again.args, again.kwargs, again.options)

    def build_like(self, record: TaskRecord, args, kwargs, *, task_id: str, eta=None, expires=None, headers=None):
        """As build_record would make it, of the task and with the options of `record`, at a third of the cost."""
        other = record.sibling(task_id)
        other.args, other.kwargs = _checked_arguments(record.name, args, kwargs)
        other.root_id, other.options = task_id, record.options | {"headers": _own_headers(headers)}
        messages.check_headers(other.options["headers"])
        other.publish_at = other.publish_in = None
        _set_times(other, None, eta, expires)
        if record.unique_key or record.limit_key:
            self._apply_task_options(other, self.tasks[record.name])
        return other

    def _apply_task_options(self, record: TaskRecord, task) -> None:
        """What a task's own options say about when there may be another one of it (uniqueness.py, limits.py)."""
        from tasks_app import limits, uniqueness

        if getattr(task, "unique", None) is not None:
            record.unique_key, lasts = uniqueness.key_of(task, record.args, record.kwargs)
            record.unique_for = lasts.total_seconds() if lasts else None
        if limit_key := limits.key_of(task, record.args, record.kwargs):
            record.limit_key = limit_key
            if record.is_due:  # the relay's to publish, when there is a slot
                record.publish_in = 0

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
        found = [step for step in found if step.task_id not in known]
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
        if len(workflow.records) == 1 and not workflow.chords and not workflow.steps:
            self._submit_now(workflow.records[0])
            return
        try:
            with transaction.atomic():
                self.submit_gathered(workflow)
        except IntegrityError as error:
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


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    ours = messages.OF_PUBLISHING
    return {key: value for key, value in options.items() if value is not None and value != [] and key not in ours}


def _own_headers(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    headers = headers or {}
    if not isinstance(headers, Mapping):
        messages.check_headers(headers)  # says what is wrong
    return {key: value for key, value in headers.items() if key != GEN_HEADER}


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


def is_sent_plainly(task) -> bool:
    """Whether nothing but Celery's own code runs when a task is sent: no `apply_async` of its class, nor around it."""
    function = inspect.getattr_static(type(task), "apply_async")
    return function.__module__ == Task.__module__ and not hasattr(function, "__wrapped__")


def may_have_steps(record: TaskRecord) -> bool:
    """Whether others may be to come after a record, or may be found by a stamp of it; at next to no cost."""
    options = record.options.keys()
    return not options.isdisjoint(_WITH_STEPS) or ("chain" in options and not record.steps_are_known)


_WITH_STEPS = {"link", "link_error", "stamped_headers"}


def _is_tail(chain: Any, whole: Any) -> bool:
    """Whether a chain is what is left of a running task's, from which Celery sends its next step."""
    is_shorter = isinstance(chain, list) and isinstance(whole, list) and len(chain) == len(whole) - 1
    return is_shorter and all(map(operator.is_, chain, whole))


def _known_steps(parent) -> list[Step]:
    """What is to come after a running task by its own message: it is known since that was made."""
    from tasks_app.models import TaskRecord
    from tasks_app.steps import steps_of

    request = parent.request
    options = {"chain": request.chain, "link": request.callbacks, "link_error": request.errbacks}
    return steps_of(TaskRecord(task_id=request.id, root_id=request.root_id or request.id, options=options))


def _set_times(record: TaskRecord, countdown: Any, eta: Any, expires: Any) -> None:
    """When it may start, and until when: spans are the database's to count, whose clock judges everything."""
    if countdown:  # before `eta`, as Celery has it
        record.countdown = record.publish_in = max(_seconds("countdown", countdown), 0)
    elif isinstance(eta, numbers.Real):
        record.countdown = record.publish_in = max(_seconds("eta", eta), 0)
    elif (at := _moment("eta", eta)) is not None:
        record.eta = at
        if at > timezone.now() - LONG_PAST:
            record.publish_at = at
    if isinstance(expires, numbers.Real):
        record.expires_in = _seconds("expires", expires)
    else:
        record.expires = _moment("expires", expires)


def _seconds(what: str, value: Any) -> float:
    """A span of at most a hundred years."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise InvalidSubmission(f"{what} must be a number of seconds, not {value!r:.80}.")
    if not -LONGEST <= float(value) <= LONGEST:
        raise InvalidSubmission(f"{what}: {value!r:.80} is out of range: {LONGEST:,} seconds at most.")
    return float(value)


def _moment(what: str, value: Any) -> datetime | None:
    """A point in time, given as one (naive: in the project's zone), or as ISO 8601 text."""
    if value is None:
        return None
    try:
        moment = parse_datetime(value) if isinstance(value, str) else value
        if isinstance(moment, datetime):
            aware = timezone.is_aware(moment)
            return moment if aware else timezone.make_aware(moment, timezone.get_default_timezone())
    except (OverflowError, ValueError) as error:
        raise InvalidSubmission(f"{what}: {value!r:.80} is out of range: {error}.") from error
    raise InvalidSubmission(f"{what} must be a time or a number of seconds, not {value!r:.80}.")


def _whole(canvas_class: type) -> None:
    """Let a workflow be recorded as a whole, or not at all, in as few statements as one task.

    The tasks of a group or a chord that no task sends have its id as their root, so that they can be told to belong
    together; Celery would give each its own.
    """
    apply_async = canvas_class.apply_async  # type: ignore[attr-defined]

    @wraps(apply_async)
    def whole(self, *args, **kwargs):
        app = self.app
        if not isinstance(app, RecordingCelery) or app.conf.task_always_eager:
            return apply_async(self, *args, **kwargs)
        if kwargs.get("idempotency_key") is not None:
            raise InvalidSubmission("idempotency_key is for one task: give it to the first of the workflow.")
        if canvas_class is not canvas._chain and app.current_worker_task is None:
            kwargs.setdefault("root_id", uuid())
        if _gathering.get() is not None:
            return apply_async(self, *args, **kwargs)
        with gathered() as workflow:
            result = apply_async(self, *args, **kwargs)
        app.submit_workflow(workflow)
        return result

    canvas_class.apply_async = whole  # type: ignore[attr-defined]


def _in_order(freeze_unroll: Callable) -> Callable:
    """Let a group have the tasks of nested groups in their order; Celery turns each nested one round."""

    def laid_out(tasks: Iterable, app) -> Iterator[canvas.Signature]:
        for task in tasks:
            signature = canvas.maybe_signature(task, app=app)
            if isinstance(signature, canvas.group):
                yield from laid_out(signature.tasks, app)
            else:
                yield signature

    @wraps(freeze_unroll)
    def unroll(self, *args):
        self.tasks = list(laid_out(self.tasks, self._app))
        yield from freeze_unroll(self, *args)

    return unroll


canvas.group._freeze_unroll = _in_order(canvas.group._freeze_unroll)
for canvas_class in (canvas._chain, canvas.group, canvas._chord):
    _whole(canvas_class)
