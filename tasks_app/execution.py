"""The one door in: a run is claimed in Postgres before the task's body starts.

A message that lost (repeated, late, revoked, expired) finds no row to claim, and is dropped by Celery's `Ignore`.
"""

import asyncio
import functools
import inspect
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from asgiref.sync import sync_to_async
from billiard import current_process
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.signals import task_postrun
from django.db import InterfaceError, OperationalError, close_old_connections, connection

from tasks_app import states
from tasks_app.exceptions import DuplicateTask
from tasks_app.models import TaskRecord
from tasks_app.outbox import GEN_HEADER

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds that a worker holds an outcome while the database is away.
DATABASE_PATIENCE = 600


class ConsoleTask(DjangoTask):
    """Base class of every task of the app. The body may be a coroutine function."""

    abstract = True
    #: Lets Celery report each retry and failure to the backend, which keeps the record (see backend.py).
    store_errors_even_if_ignored = True

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
        if request.is_eager:
            return
        if _claim_when_possible(request) is None:
            raise Ignore(f"{self.name}[{task_id}] is not to run by this message: done, revoked, expired or taken.")
        request.claimed = True

    def continue_as(self, record: TaskRecord) -> None:
        """Called by send_task where the running task sends its own id: a retry, or `replace`."""
        if record.retries > self.request.retries:
            self.request.next_run = record  # backend.mark_as_retry writes it, with the run's outcome
            return
        if not self.app.take_over(record):
            raise DuplicateTask(f"Task {record.task_id} runs: it can be retried or replaced, not sent beside itself.")

    def on_replace(self, sig):
        """Go on as `sig`: its last step, which has this task's id, takes the record over when it is sent."""
        if not self.request.is_eager:
            self.request.claimed = False
            TaskRecord.objects.mark_replaced(self.request.id, gen_of(self.request))
        return super().on_replace(sig)


@task_postrun.connect
def close_dropped_run(sender, task_id, state, retval, **_):
    """Celery tells no backend of a body that raised Ignore or Reject."""
    request = sender.request
    if state not in (states.IGNORED, states.REJECTED) or not getattr(request, "claimed", False):
        return
    if getattr(retval, "requeue", False):
        TaskRecord.objects.mark_requeued(task_id, gen_of(request))
    else:
        TaskRecord.objects.mark_dropped(task_id, gen_of(request), state)


def gen_of(request) -> int:
    """The `gen` that a run's message carries; 1 where it was sent past the console."""
    return getattr(request, GEN_HEADER, None) or 1


def patiently(action: Callable[[], T], task_id: str, patience: float = DATABASE_PATIENCE) -> T:
    """Do `action`, again and again while the database is away: nothing runs unclaimed, no outcome is thrown away.

    (Celery's Django fixup mends no connection here: it is told to keep them.) The worker's parent, in which all wait
    for each other, has less patience; within a transaction there is none, for it is lost.
    """
    give_up_at = time.monotonic() + (5 if current_process().name == "MainProcess" else patience)
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


def _claim_when_possible(request) -> int | None:
    try:
        # Without end: Celery has acknowledged the message already, so there is no giving it back.
        return patiently(lambda: _claim(request), request.id, patience=math.inf)
    except (OperationalError, InterfaceError) as error:
        raise Reject(error, requeue=True) from error


def _claim(request) -> int | None:
    claim = functools.partial(TaskRecord.objects.claim, request.id, gen_of(request), request.hostname, os.getpid())
    attempt = claim()
    if attempt is None and not TaskRecord.objects.filter(task_id=request.id).exists():
        TaskRecord.objects.adopt(foreign_record(request))
        attempt = claim()
    return attempt


def foreign_record(request, task_id: str | None = None, name: str | None = None) -> TaskRecord:
    """The record of a task that was sent past the console, as far as its message tells."""
    task_id = task_id or request.id
    delivery = getattr(request, "delivery_info", None) or {}
    return TaskRecord(
        task_id=task_id,
        name=name or getattr(request, "task", None) or getattr(request, "name", None) or "unknown",
        args=getattr(request, "args", None) or [],
        kwargs=getattr(request, "kwargs", None) or {},
        options={},
        queue=delivery.get("routing_key") or "",
        priority=delivery.get("priority"),
        root_id=getattr(request, "root_id", None) or task_id,
        parent_id=getattr(request, "parent_id", None),
        group_id=getattr(request, "group", None),
        retries=getattr(request, "retries", None) or 0,
        gen=gen_of(request),
    )


_loops = threading.local()


def event_loop_runner() -> asyncio.Runner:
    """This thread's event loop, kept between tasks, so that an async client opened by one serves the next."""
    if getattr(_loops, "pid", None) != os.getpid():
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
