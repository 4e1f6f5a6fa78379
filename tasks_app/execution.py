"""The one door in: a run is claimed in Postgres before the task's body starts.

A message that lost (repeated, late, revoked, expired) finds no row to claim, and is dropped by Celery's `Ignore`.
"""

import asyncio
import functools
import inspect
import itertools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from asgiref.sync import sync_to_async
from billiard import current_process
from celery.app.task import Context
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded, TaskPredicate
from celery.signals import task_postrun
from django.db import InterfaceError, OperationalError, close_old_connections, connection, transaction
from kombu.utils.functional import maybe_list

from tasks_app import states
from tasks_app.exceptions import DuplicateTask
from tasks_app.models import TaskRecord
from tasks_app.moves import MAX_LOST
from tasks_app.notify import DUE_CHANNEL, notify
from tasks_app.outbox import begin_ending, take_successors
from tasks_app.publishing import GEN_HEADER

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Header by which a message asks for retries: {"max_retries": 3, "backoff": 10}, the first pause in seconds, doubled
#: each time up to LONGEST_BACKOFF.
RETRY_HEADER, LONGEST_BACKOFF = "retry_policy", 3600
#: Seconds that a worker holds an outcome while the database is away.
DATABASE_PATIENCE = 600


class ConsoleTask(DjangoTask):
    """Base class of every task of the app. The body may be a coroutine function."""

    abstract = True
    Request = "tasks_app.workers:ConsoleRequest"
    #: Lets Celery report each retry and failure to the backend, which keeps the record (see backend.py).
    store_errors_even_if_ignored = True

    #: Runs of a task with `acks_late=True` that may be lost with their worker before it has failed.
    max_lost: int = MAX_LOST
    #: Whether, and while what, there may be one only: "waiting", "unfinished" or seconds (see uniqueness.py).
    unique: str | float | timedelta | None = None
    unique_by: Sequence[str] | None = None
    #: How many may run at once, across all workers; `rate_limit` is across all workers too (see limits.py).
    concurrency_limit: int | None = None
    limit_key: str | None = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        run = cls.__dict__.get("run")
        body = run.__func__ if isinstance(run, staticmethod) else run
        if inspect.iscoroutinefunction(body):
            wrapped = _in_event_loop(body)
            cls.run = staticmethod(wrapped) if isinstance(run, staticmethod) else wrapped

    def before_start(self, task_id, args, kwargs):
        """Claim the run. A task that overrides this calls `super().before_start` first."""
        request = self.request
        request.is_next = True
        if request.is_eager:
            return
        take_successors()  # of a run that Celery gave up in between
        attempt = _claim_when_possible(request, self.max_lost if self.acks_late else 1)
        if attempt is None:
            raise Ignore(f"{self.name}[{task_id}] is not to run by this message: done, revoked, expired or taken.")
        request.attempt, request.claimed = attempt, True

    def __call__(self, *args, **kwargs):
        request = self.request
        if not request.__dict__.pop("is_next", False):  # called as a function, by its own body or another's
            return super().__call__(*args, **kwargs)
        try:
            result = self.run(*args, **kwargs)
        except TaskPredicate:
            raise
        except Exception as error:
            self._retry_as_asked(error)
            raise
        if not request.is_eager:
            begin_ending()
        return result

    def _retry_as_asked(self, error: Exception) -> None:
        """Retry where the message asks for it, as that of a schedule may, beside what the task does by itself."""
        asked = getattr(self.request, RETRY_HEADER, None)
        if isinstance(asked, dict) and not self.request.is_eager:
            pause = min(asked.get("backoff", 0) * 2**self.request.retries, LONGEST_BACKOFF)
            try:
                raise self.retry(exc=error, countdown=pause, max_retries=asked.get("max_retries", 0))
            finally:  # Celery keeps it on the task, for its autoretry of this and any later run
                self.__dict__.pop("override_max_retries", None)

    def is_cancelled(self) -> bool:
        """Whether this run was asked to stop, or is taken for lost: for a long body to ask now and then, and return."""
        run = TaskRecord.objects.filter(task_id=self.request.id, gen=gen_of(self.request), state=states.STARTED)
        return not run.filter(cancel_at=None).exists()

    def continue_as(self, record: TaskRecord) -> None:
        """Called by send_task where the running task sends its own id: a retry, or `replace`."""
        if record.retries > self.request.retries:
            self.request.next_run = record  # backend.mark_as_retry writes it, with the run's outcome
            return
        if not self.app.take_over(record):
            raise DuplicateTask(f"Task {record.task_id} runs: it can be retried or replaced, not sent beside itself.")

    def on_replace(self, sig):
        """Go on as `sig`: its last step, which has this task's id, takes the record over when it is sent."""
        if self.request.is_eager:
            return super().on_replace(sig)
        self.request.claimed = False
        with transaction.atomic():
            if TaskRecord.objects.mark_replaced(self.request.id, gen_of(self.request)):
                sig.delay()
            else:
                self.backend.mark_as_revoked(self.request.id, "asked to stop", self.request)
        raise Ignore(f"Replaced by {sig.name}")


@task_postrun.connect
def close_dropped_run(sender, task_id, state, retval, **_):
    """Celery tells no backend of a body that raised Ignore or Reject; and the relay waits for a slot to become free."""
    request = sender.request
    if state in (states.IGNORED, states.REJECTED) and getattr(request, "claimed", False):
        patiently(lambda: sender.backend.mark_as_dropped(request, state, retval), task_id)
    if sender.concurrency_limit and not request.is_eager:
        patiently(lambda: notify(DUE_CHANNEL), task_id)


def gen_of(request) -> int:
    """The `gen` that a run's message carries; 1 where it was sent past the console."""
    gen = getattr(request, GEN_HEADER, None)
    return gen if isinstance(gen, int) and 0 < gen < 2**31 else 1


def _in_main_process() -> bool:
    return current_process().name == "MainProcess"


def patiently(action: Callable[[], T], task_id: str, patience: float = DATABASE_PATIENCE) -> T:
    """Do `action`, again and again while the database is away: nothing runs unclaimed, no outcome is thrown away.

    (Celery's Django fixup mends no connection here: it is told to keep them.) The worker's parent, in which all wait
    for each other, has less patience; within a transaction there is none, for it is lost.
    """
    give_up_at = time.monotonic() + (5 if _in_main_process() else patience)
    pause = 0.0
    while True:
        try:
            return action()
        except (OperationalError, InterfaceError) as error:
            if connection.in_atomic_block or time.monotonic() > give_up_at:
                raise
            connection.close()
            if pause:
                logger.warning("Task %s waits: no database (%s).", task_id, str(error).strip())
            time.sleep(pause)
            pause = 1.0


def _claim_when_possible(request, max_lost: int) -> int | None:
    tries = itertools.count()
    # Without end: Celery has acknowledged the message already, so there is no giving it back.
    try:
        return patiently(lambda: _claim(request, max_lost, is_first=next(tries) == 0), request.id, patience=math.inf)
    except (OperationalError, InterfaceError) as error:
        raise Reject(error, requeue=True) from error


def _claim(request, max_lost: int, is_first: bool) -> int | None:
    who = request.id, gen_of(request), request.hostname, os.getpid()
    attempt = TaskRecord.objects.claim(*who, max_lost)
    if attempt is None and not TaskRecord.objects.filter(task_id=request.id).exists():
        TaskRecord.objects.adopt(foreign_record(request))
        attempt = TaskRecord.objects.claim(*who, max_lost)
    if attempt is None and not is_first and not _in_main_process():  # whose threads share one pid
        attempt = TaskRecord.objects.claimed(*who)  # it was done, and the answer was lost
    return attempt


def request_of(record: TaskRecord) -> Context:
    """A run's request as far as its record tells, for who has to end it without its worker."""
    options = record.options if isinstance(record.options, dict) else {}  # anything, where it was written by SQL
    return Context(
        id=record.task_id,
        task=record.name,
        args=record.args,
        kwargs=record.kwargs,
        root_id=record.root_id,
        parent_id=record.parent_id,
        group=record.group_id,
        retries=record.retries,
        hostname=record.worker,
        chord=options.get("chord"),
        chain=options.get("chain"),
        errbacks=maybe_list(options.get("link_error")),
        headers=options.get("headers"),
        delivery_info={"routing_key": record.queue, "priority": record.priority},
        called_directly=False,
        **{GEN_HEADER: record.gen},
    )


def foreign_record(
    request, task_id: str | None = None, name: str | None = None, root_id: str | None = None
) -> TaskRecord:
    """The record of a task that was sent past the console, as far as its message tells."""
    task_id = task_id or request.id
    delivery = getattr(request, "delivery_info", None) or {}
    priority = delivery.get("priority")
    return TaskRecord(
        task_id=task_id,
        name=name or getattr(request, "task", None) or getattr(request, "name", None) or "unknown",
        args=getattr(request, "args", None) or [],
        kwargs=getattr(request, "kwargs", None) or {},
        options={},
        queue=delivery.get("routing_key") or "",
        priority=priority if isinstance(priority, int) and 0 <= priority <= 9 else None,
        root_id=root_id or _id_in(request, "root_id") or task_id,
        parent_id=_id_in(request, "parent_id"),
        group_id=_id_in(request, "group"),
        retries=getattr(request, "retries", None) or 0,
        gen=gen_of(request),
    )


def _id_in(request, name: str) -> str | None:
    value = getattr(request, name, None)
    return value if isinstance(value, str) else None


_loops = threading.local()


def event_loop_runner() -> asyncio.Runner:
    """This thread's event loop, kept between tasks, so that an async client opened by one serves the next."""
    if getattr(_loops, "pid", None) != os.getpid():
        # A loop that runs one task blocks nobody else: its body may call `other.delay()` as any other does.
        os.environ.setdefault("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        _loops.runner, _loops.pid = asyncio.Runner(), os.getpid()
    return _loops.runner


def close_event_loop() -> None:
    if hasattr(_loops, "pid"):
        _loops.runner.close()
        del _loops.pid


def _in_event_loop(body):
    """`body`, a coroutine function, as a function that runs it to its end."""

    async def guarded(*args, **kwargs):
        # Django's ORM runs in a thread of its own here, out of the reach of what mends the task's own connection.
        await sync_to_async(close_old_connections)()
        return await body(*args, **kwargs)

    @functools.wraps(body)
    def run(*args, **kwargs):
        try:
            return event_loop_runner().run(guarded(*args, **kwargs))
        except SoftTimeLimitExceeded:
            close_event_loop()  # cancels the body, which would go on beside the next one otherwise
            raise

    return run
