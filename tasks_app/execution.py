"""The one door in: a run is claimed in Postgres before the task's body starts.

A message that lost (repeated, late, revoked, expired) finds no row to claim, and is dropped by Celery's `Ignore`. What
a run works with is what its row says: a message is a hint, and anybody who reaches the broker can write one.
"""

import itertools
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from billiard import current_process
from celery import Task
from celery.app.task import Context
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Reject
from django.db import InterfaceError, OperationalError, connection, connections, transaction
from kombu.utils.functional import maybe_list
from kombu.utils.json import loads

from tasks_app import broker, messages, states
from tasks_app.ambient import forget
from tasks_app.conf import conf
from tasks_app.exceptions import InvalidSubmission
from tasks_app.gathering import Successors
from tasks_app.models import TaskRecord
from tasks_app.moves import Run
from tasks_app.publishing import GEN_HEADER
from tasks_app.storable import as_sent, dump_json

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds that a worker holds an outcome while the database is away.
DATABASE_PATIENCE = 600


class ConsoleTask(DjangoTask):
    """Base class of the app's tasks that name none. The body may be a coroutine function."""

    abstract = True

    #: Runs of a task with `acks_late=True` that may be lost with their worker before it has failed.
    #: By default TASK_MAX_LOST.
    max_lost: int | None = None
    #: Whether, and while what, there may be one only: "waiting", "unfinished" or seconds (see uniqueness.py).
    unique: str | float | timedelta | None = None
    unique_by: Sequence[str] | None = None
    #: How many may run at once, across all workers; `rate_limit` is across all workers too (see limits.py).
    concurrency_limit: int | None = None
    limit_key: str | None = None


def _max_lost(task: Task) -> int:
    """Runs that may be lost before it has failed."""
    if not task.acks_late:
        return 1
    own = getattr(task, "max_lost", None)
    return conf.TASK_MAX_LOST if own is None else own


def claim_run(task: Task, request: Context, args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Claim a run for its message; False where the message has lost.

    What the row says is put into `args`, `kwargs` and the request, where the message says otherwise.
    """
    forget()
    run = _claim_when_possible(request, task.name, _max_lost(task))
    if run is None:
        return False
    request.attempt, request.claimed = run.attempt, True
    _go_by_record(run, request, args, kwargs)
    return True


def is_in_force(request: Context) -> bool:
    """Whether a run still is its task's, and was not asked to stop."""
    run = TaskRecord.objects.filter(task_id=request.id, gen=gen_of(request), state=states.STARTED)
    return run.filter(cancel_at=None).exists()


def replace_run(task: Task, successors: Successors) -> None:
    """End a run whose task goes on as `successors`; or as revoked, where it was asked to stop."""
    request = task.request
    with transaction.atomic():
        if TaskRecord.objects.mark_replaced(request.id, gen_of(request)):
            task.app.submit_gathered(successors)
            return
    task.backend.mark_as_revoked(request.id, "asked to stop", request)


def _go_by_record(run: Run, request: Context, args: list[Any], kwargs: dict[str, Any]) -> None:
    if _is_other(run.args, args) or _is_other(run.kwargs, kwargs):
        broker.quarantine(_message_of(request), "it has other arguments than its record, which is what runs")
        args[:] = loads(run.args)
        kwargs.clear()
        kwargs.update(loads(run.kwargs))
    options = loads(run.options)
    request.update(
        root_id=run.root_id,
        parent_id=run.parent_id,
        group=run.group_id,
        chord=options.get("chord"),
        chain=options.get("chain"),
        callbacks=maybe_list(options.get("link")),
        errbacks=maybe_list(options.get("link_error")),
        eta=run.eta and run.eta.isoformat(),
        expires=run.expires and run.expires.isoformat(),
        delivery_info=(request.delivery_info or {}) | {"redelivered": run.redelivered},
    )


def _is_other(kept: str, given: Any) -> bool:
    """Whether what a message gives differs from what its record keeps, as JSON."""
    try:
        return dump_json(given) != kept and dump_json(given) != dump_json(json.loads(kept))
    except InvalidSubmission:  # of a project's own types, which are encoded one way only
        return True


def gen_of(request: Context) -> int:
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


#: Threads that have all to serve (the relay's, the leases', a worker's main one): what a project's code takes its time
#: for is not done there.
busy_threads: set[int] = set()


def aside(action: Callable[[], object]) -> None:
    """Do what calls a project's code: at once, or beside, where this thread must not wait for it."""
    if threading.get_ident() not in busy_threads:
        action()
        return

    def with_connections_of_its_own() -> None:
        try:
            action()
        except Exception:
            logger.exception("What follows from the end of a task could not be done")
        finally:
            connections.close_all()

    threading.Thread(target=with_connections_of_its_own, name="aside", daemon=True).start()


def _claim_when_possible(request: Context, name: str, max_lost: int) -> Run | None:
    tries = itertools.count()
    # Without end: Celery has acknowledged the message already, so there is no giving it back.
    try:
        return patiently(lambda: _claim(request, name, max_lost, next(tries) == 0), request.id, patience=math.inf)
    except (OperationalError, InterfaceError) as error:
        raise Reject(error, requeue=True) from error


def _claim(request: Context, name: str, max_lost: int, is_first: bool) -> Run | None:
    who = request.id, gen_of(request), request.hostname, os.getpid()
    run = TaskRecord.objects.claim(*who, max_lost, name)
    record = None if run else TaskRecord.objects.filter(task_id=request.id).first()
    if run is None and record is None:
        if reason := messages.may_adopt(request):
            broker.quarantine(_message_of(request), reason)
            return None
        TaskRecord.objects.adopt(foreign_record(request))
        run = TaskRecord.objects.claim(*who, max_lost, name)
    elif record and record.name != name and record.is_waiting and record.gen == gen_of(request):
        broker.quarantine(_message_of(request), f"it is for {name}, and its record for {record.name}, which waits on")
    if run is None and not is_first and not _in_main_process():  # whose threads share one pid
        run = TaskRecord.objects.claimed(*who)  # it was done, and the answer was lost
    return run


def _message_of(request: Context) -> dict[str, Any]:
    """What a message said, as far as its run knows."""
    names = ("id", "task", GEN_HEADER, "args", "kwargs", "callbacks", "errbacks", "chain", "chord", "eta", "headers")
    return {name: getattr(request, name, None) for name in names}


def request_of(record: TaskRecord) -> Context:
    """A run's request as far as its record tells, for who has to end it without its worker."""
    options = as_sent(record.options) if isinstance(record.options, dict) else {}  # anything, where written by SQL
    return Context(
        id=record.task_id,
        task=record.name,
        args=as_sent(record.args),
        kwargs=as_sent(record.kwargs),
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
    request: Context, task_id: str | None = None, name: str | None = None, root_id: str | None = None
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


def _id_in(request: Context, name: str) -> str | None:
    value = getattr(request, name, None)
    return value if isinstance(value, str) else None
