"""The one door in: a run is claimed in Postgres before the task's body starts.

A message that lost (repeated, late, revoked, expired) finds no row to claim, and is dropped by Celery's `Ignore`.
"""

import asyncio
import functools
import inspect
import logging
import os
import threading
import time

from asgiref.sync import sync_to_async
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, Reject
from celery.signals import task_postrun
from django.db import InterfaceError, OperationalError, close_old_connections, connection, transaction

from tasks_app import states
from tasks_app.models import TaskRecord
from tasks_app.outbox import GEN_HEADER

logger = logging.getLogger(__name__)

#: Seconds that a worker holds a message while the database is away, before it gives the message back.
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
        self.request.claimed = False
        moved = TaskRecord.objects.mark_replaced(record.task_id, gen_of(self.request), record)
        if moved:
            transaction.on_commit(functools.partial(self.app.publish_submitted, [moved]))


@task_postrun.connect
def close_dropped_run(sender, task_id, state, **_):
    """Celery tells no backend of a body that raised Ignore or Reject."""
    request = sender.request
    if state in (states.IGNORED, states.REJECTED) and getattr(request, "claimed", False):
        TaskRecord.objects.mark_dropped(task_id, gen_of(request), state)


def gen_of(request) -> int:
    """The `gen` that a run's message carries; 1 where it was sent past the console."""
    return getattr(request, GEN_HEADER, None) or 1


def _claim_when_possible(request) -> int | None:
    """Claim, waiting for the database while it is away: the body never runs unclaimed, and nothing is lost."""
    give_up_at = time.monotonic() + DATABASE_PATIENCE
    while True:
        try:
            return _claim(request)
        except (OperationalError, InterfaceError) as error:
            connection.close()
            if time.monotonic() > give_up_at:
                raise Reject(error, requeue=True) from error
            logger.warning("Task %s waits: no database (%s).", request.id, str(error).strip())
            threading.Event().wait(1)


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
        return event_loop_runner().run(guarded(*args, **kwargs))

    return run
