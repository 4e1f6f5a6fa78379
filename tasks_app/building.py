"""Records of tasks as calls ask for them: checked, with all that depends on the moment and the caller; not saved.

A project's Celery app is made before Django's apps are loaded, so the model is imported where it is used.
"""

from __future__ import annotations

import numbers
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import Task
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from kombu.serialization import prepare_accept_content
from kombu.utils.uuid import uuid

from tasks_app import messages, moments
from tasks_app.exceptions import InvalidSubmission
from tasks_app.gathering import gathered
from tasks_app.publishing import GEN_HEADER, Publisher, has_handlers
from tasks_app.seams.celery import App, options_of

if TYPE_CHECKING:
    from tasks_app.models import TaskRecord

#: Seconds that a countdown may last; and how old an `eta` is that is published without a look at the database's clock.
LONGEST, LONG_PAST = 3_155_760_000, timedelta(minutes=10)


class BuildingCelery(App):
    """The part of the console's app that makes records."""

    publisher = cached_property(Publisher)
    # A look into Celery's configuration costs 19 µs.
    _default_priority = cached_property(lambda self: self.conf.task_default_priority)
    _inherits_priority = cached_property(lambda self: self.conf.task_inherit_parent_priority)
    #: The content types that workers accept.
    accepts = cached_property(lambda self: frozenset(prepare_accept_content(self.conf.accept_content or ["json"])))

    def build_record(
        self, name: str, args: Any = None, kwargs: Any = None, *, parent: Task | None = None,
        task_type: Task | None = None, route_name: str | None = None, task_id: str | None = None, eta: Any = None,
        countdown: Any = None, router: Any = None, announce: bool = True, **options: Any,
    ) -> TaskRecord:  # fmt: skip
        """The record of such a call, checked, with all that depends on the moment and the caller; not saved.

        `announce`: send Celery's signals of publishing, which call a project's code; else they are sent when its
        message goes out.
        """
        from tasks_app.models import TaskRecord

        task = task_type or self.tasks.get(name)  # which has the shared tasks registered first
        options = (_given(options_of(task)) if task else {}) | options
        args, kwargs = _checked_arguments(name, args, kwargs)
        task_id = _checked_text("task_id", task_id) or uuid()
        request = parent.request if parent else None
        if request and options.get("priority") is None and self._inherits_priority:
            options["priority"] = (request.delivery_info or {}).get("priority")
        queue, options = self._routed(options, router, route_name or name, args, kwargs, task)
        record = TaskRecord(
            task_id=task_id, name=name, args=args, kwargs=kwargs, queue=queue,
            priority=self._checked_priority(options.pop("priority", None)),
            root_id=options.pop("root_id", None) or (request and (request.root_id or request.id)) or task_id,
            parent_id=options.pop("parent_id", None) or (request and request.id),
            group_id=options.pop("group_id", None),
            retries=options.pop("retries", 0),
            max_retries=getattr(task, "max_retries", None),
            idempotency_key=_checked_text("idempotency_key", options.pop("idempotency_key", None)),
        )  # fmt: skip
        _set_times(record, countdown, eta, options.pop("expires", None))
        headers = _own_headers(options.pop("headers", None))  # a route's too
        record.options = _given(options) | ({"headers": headers} if headers else {})
        record.steps_are_known = parent is not None and _is_tail(record.options.get("chain"), parent.request.chain)
        messages.check_record(record, self.accepts, known=["chain"] if record.steps_are_known else ())
        if task is not None:
            self._apply_task_options(record, task)
        self._announce(record, announce)
        return record

    def _routed(self, options: dict[str, Any], router: Any, *call: Any) -> tuple[str, dict[str, Any]]:
        """The name of the queue that a call goes to, and its options as the routes leave them."""
        options["headers"] = _own_headers(options.get("headers"))
        to_exchange = options.get("exchange") and options.get("routing_key") and not options.get("queue")
        options = (router or self.amqp.router).route(dict(options), *call)
        queue, exchange, key = (options.pop(part, None) for part in ("queue", "exchange", "routing_key"))
        if to_exchange or (queue is None and exchange and key):
            options |= {"exchange": exchange, "routing_key": key}
            queue = None
        return str(getattr(queue, "name", queue) or key or self.amqp.default_queue.name), options

    def _announce(self, record: TaskRecord, now: bool) -> None:
        if not now:
            record.is_announced = False
        elif has_handlers():
            self.publisher.announce(record)
        if now:
            record.encoded()  # by a project's encoders, too

    def build_records(
        self, name: str, calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]], **options: Any
    ) -> list[TaskRecord]:
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

    def build_like(
        self, record: TaskRecord, args: Any, kwargs: Any, *, task_id: str, eta: Any = None, expires: Any = None,
        headers: Any = None,
    ) -> TaskRecord:  # fmt: skip
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

    def _apply_task_options(self, record: TaskRecord, task: Task) -> None:
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


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    ours = messages.OF_PUBLISHING
    return {key: value for key, value in options.items() if value is not None and value != [] and key not in ours}


def _own_headers(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    headers = headers or {}
    if not isinstance(headers, Mapping):
        messages.check_headers(headers)  # says what is wrong
    return {key: value for key, value in headers.items() if key != GEN_HEADER}


def _checked_arguments(name: str, args: Any, kwargs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
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


def is_sent_plainly(task: Task) -> bool:
    """Whether nothing but Celery's own code runs when a task is sent: no `apply_async` of its class, nor around it."""
    function = type(task).apply_async
    return function.__module__ == Task.__module__ and not hasattr(function, "__wrapped__")


def _is_tail(chain: Any, whole: Any) -> bool:
    """Whether a chain is what is left of a running task's, from which Celery sends its next step."""
    is_shorter = isinstance(chain, list) and isinstance(whole, list) and len(chain) == len(whole) - 1
    return is_shorter and all(map(operator.is_, chain, whole))


def _set_times(record: TaskRecord, countdown: Any, eta: Any, expires: Any) -> None:
    """When it may start, and until when: spans are the database's to count, whose clock judges everything."""
    if countdown:  # before `eta`, as Celery has it
        record.countdown = record.publish_in = max(_seconds("countdown", countdown), 0)
    elif isinstance(eta, numbers.Real):
        record.countdown = record.publish_in = max(_seconds("eta", eta), 0)
    elif (at := _moment("eta", eta)) is not None:
        record.eta = at
        if at > moments.now() - LONG_PAST:
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
