"""What our workers do besides running tasks: hooks around the pool's children; relay and leases in their parent.

All of it hangs on one bootstep, which RecordingCelery gives to each worker of its own: those of `manage.py celery
worker` have it, those within a test (celery.contrib.testing) too, and those of another app in this process do not.
"""

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

from asgiref.sync import sync_to_async
from billiard.common import TERM_SIGNAME
from billiard.exceptions import WorkerLostError
from celery import bootsteps
from celery.app import pop_current_task, push_current_task
from celery.apps.worker import Worker
from celery.concurrency import prefork, thread
from celery.concurrency.base import BasePool
from celery.exceptions import ImproperlyConfigured
from celery.platforms import signals
from celery.signals import worker_process_init, worker_process_shutdown, worker_shutting_down
from celery.worker import WorkController, state
from celery.worker.control import control_command
from click import ClickException
from django.db import DatabaseError, ProgrammingError, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from kombu.exceptions import OperationalError

from tasks_app import checks
from tasks_app.conf import conf
from tasks_app.coroutines import close_event_loop, event_loop_runner
from tasks_app.execution import busy_threads, gen_of
from tasks_app.leases import Leases, effective, terminated
from tasks_app.marking import marker
from tasks_app.models import TaskRecord
from tasks_app.publishing import GEN_HEADER
from tasks_app.queues import Reading
from tasks_app.recording import current_app
from tasks_app.relay.loop import Relay
from tasks_app.seams.asgiref import renew_after_fork
from tasks_app.seams.celery import WorkerRequest, context_of, is_spawned_child

logger = logging.getLogger(__name__)

Hook = Callable[[], object | Awaitable[object]]

_on_startup: list[Hook] = []
_on_shutdown: list[Hook] = []


def register_worker_hooks(on_startup: Hook | None = None, on_shutdown: Hook | None = None) -> None:
    """Have `on_startup` run in each pool child when it starts, `on_shutdown` when it ends; functions or coroutines.

    Startup hooks run in the order of their registration, shutdown hooks concurrently. Registering one again changes
    nothing. A hook that raises is logged; the others run.
    """
    for hook, hooks in ((on_startup, _on_startup), (on_shutdown, _on_shutdown)):
        if hook is not None and hook not in hooks:
            hooks.append(hook)


class UnsupportedPool(ImproperlyConfigured, ClickException):
    """A worker was asked for with a pool that the console does not work with. (Celery's command line shows it so.)"""


class Upkeep(bootsteps.StartStopStep):
    """Relay and leases beside a worker's consumer, from when its pool has started until its pool has ended."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        _refuse_green(worker.pool_cls)
        super().__init__(worker, **kwargs)
        self.has_children = issubclass(worker.pool_cls, prefork.TaskPool)
        if self.has_children:
            # Only now: Celery's Django fixup, which throws inherited connections away, has to come first in each.
            worker_process_init.connect(start_child, sender=worker.hostname)
            worker_process_shutdown.connect(end_child, sender=worker.hostname)
        worker_shutting_down.connect(self.begin_end, sender=worker.hostname)

    def create(self, worker: WorkController) -> None:
        self.app = worker.app
        self.threads: set[threading.Thread] = set()
        self.relay, self.leases = WorkerRelay(worker), Leases(worker.app)
        if isinstance(worker.pool, thread.TaskPool):
            worker.pool.executor = ThreadPoolExecutor(worker.pool.limit, initializer=self.begin_thread)

    def start(self, worker: WorkController) -> None:
        worker.app.set_current()  # by which `solo` finds its tasks; start_worker of another app makes that the default
        if isinstance(worker, Worker):  # not in a test, each of which would say it again
            checks.say_found(logger)
        if self.has_children:
            busy_threads.add(threading.get_ident())
        else:
            self.threads.add(threading.current_thread())
            self.opened = Opened(self.threads)
            start_child()
        self.relay.start()
        self.leases.start()

    def begin_thread(self) -> None:
        self.app.set_current()
        self.threads.add(threading.current_thread())

    def begin_end(self, **_: Any) -> None:
        """The process was told to end. Called in a signal's handler: whatever blocks must be done by another thread."""
        threading.Thread(target=self._begin_end, daemon=True).start()

    def _begin_end(self) -> None:
        self.leases.hand_back_after(conf.WORKER_SHUTDOWN_GRACE)
        self.relay.stop()

    def stop(self, worker: WorkController) -> None:
        worker.pool.stop()  # sooner than by its own step: its runs need their leases to the last
        self._end(worker)

    def terminate(self, worker: WorkController) -> None:
        if self.has_children:
            worker.pool.terminate()
        else:
            worker.pool.stop()  # a thread cannot be ended from outside; this waits for it
        self._end(worker)

    def _end(self, worker: WorkController) -> None:
        busy_threads.discard(threading.get_ident())
        self.relay.stop()
        self.leases.stop()
        marker.rest()
        if not self.has_children:
            _call_shutdown_hooks()
            close_event_loop()
            self.opened.close()
        close_database()
        worker_process_init.disconnect(start_child, sender=worker.hostname)
        worker_process_shutdown.disconnect(end_child, sender=worker.hostname)
        worker_shutting_down.disconnect(self.begin_end, sender=worker.hostname)


def _refuse_green(pool_cls: type[BasePool]) -> None:
    if pool_cls.is_green:
        name = pool_cls.__module__.rpartition(".")[2]
        raise UnsupportedPool(
            f"The pool {name} does not work with the console: each of its green threads would hold a connection to "
            "Postgres of its own, and what was imported before it patches Python's sockets would block them all. "
            "Use `-P prefork`, or `-P threads` for tasks that mostly wait."
        )


class WorkerRelay(Relay):
    """The relay of a worker, which tells of its queues too."""

    def __init__(self, worker: WorkController) -> None:
        super().__init__()
        self.worker, self._reading = worker, Reading()

    def run(self) -> None:
        self.worker.app.set_current()
        super().run()

    def _turn(self) -> float:
        pause = super()._turn()
        if (consumer := getattr(self.worker.consumer, "task_consumer", None)) is not None:
            with suppress(ProgrammingError):  # before `migrate`: what a worker tells is no reason to stand still
                self._reading.say({queue.name for queue in consumer.queues})
        return pause


class Opened:
    """The connections to the database that some threads open, in coroutines too, to be closed when they have ended."""

    def __init__(self, threads: Container[threading.Thread]) -> None:
        self.threads = threads
        self.connections: WeakSet[BaseDatabaseWrapper] = WeakSet()
        connection_created.connect(self._note)

    def _note(self, connection: BaseDatabaseWrapper, **_: Any) -> None:
        if threading.current_thread() in self.threads:
            self.connections.add(connection)

    def close(self) -> None:
        connection_created.disconnect(self._note)
        for each in self.connections:
            each.inc_thread_sharing()
            each.close()
        asyncio.run(sync_to_async(connections.close_all)())  # where coroutines use the ORM, in a thread that lives on


def start_child(**_: Any) -> None:
    open_database()
    open_broker()
    for hook in _on_startup:
        with _logged(hook):
            if inspect.iscoroutinefunction(hook):
                event_loop_runner().run(hook())
            else:
                hook()


def end_child(**_: Any) -> None:
    marker.flush()
    with ThreadPoolExecutor() as side:
        side.submit(close_broker)
        close_database()
        _call_shutdown_hooks()
    close_event_loop()


def _call_shutdown_hooks() -> None:
    if _on_shutdown:
        event_loop_runner().run(_call_all(_on_shutdown))


renew_after_fork()
if is_spawned_child():  # a child that was not forked knows nothing of its parent's bootsteps
    worker_process_init.connect(start_child)
    worker_process_shutdown.connect(end_child)


class ConsoleRequest(WorkerRequest):
    """A message's run, as the worker's parent process sees it."""

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)
        self.is_recorded = GEN_HEADER in self.request_dict
        if self.is_recorded:
            self.forget_times()  # the record's to say

    def revoked(self) -> bool:
        """As Celery judges it, but that an id which was revoked once may be given to a new task."""
        if self.is_recorded and self.id in state.revoked and not self.was_revoked and self._waits():
            return False
        return super().revoked()

    def _waits(self) -> bool:
        with suppress(DatabaseError):
            return TaskRecord.objects.waiting().filter(task_id=self.id, gen=gen_of(context_of(self))).exists()
        return False

    def terminate(self, pool: BasePool, signal: Any = None) -> None:
        super().terminate(pool, effective(signals.signum(signal or TERM_SIGNAME)))
        if self.worker_pid:
            terminated[self] = time.monotonic()

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        exc = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(exc, MemoryError):  # at which Celery would end the worker; the task has failed, that is all
            exc_info.exception = RuntimeError(f"MemoryError: {exc}")
        is_lost = isinstance(exc, WorkerLostError | SystemExit | KeyboardInterrupt) and not self.was_revoked
        if is_lost and self.task.acks_late and self.task.reject_on_worker_lost and not self.task.retry_on_worker_lost:
            # Celery puts the message back, which is void by then, and tells nobody.
            self.task.backend.mark_as_lost(self.id, gen_of(context_of(self)), f"its process has ended: {exc!r:.300}")
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def retry_lost(self, exc: BaseException, exc_info: Any) -> Any:
        """As the run itself would retry: what Celery sends then is the run's next one."""
        context = context_of(self)
        context.called_directly = False
        push_current_task(self.task)
        self.task.request_stack.push(context)
        try:
            return super().retry_lost(exc, exc_info)
        finally:
            self.task.request_stack.pop()
            pop_current_task()


@control_command(variadic="task_id", signature="[id1 [id2 [...]]]")
def revoke_unrecorded(worker: Any, task_id: list[str], **_: Any) -> dict[str, str]:
    """Refuse tasks that another producer sent, and that have no record yet. (Celery's `revoke` would close a record
    that was made since under such an id.)"""
    state.revoked.update(task_id)
    for each in task_id:
        worker.app.backend.keep_revoked(each)
    return {"ok": f"tasks {task_id} flagged as revoked"}


def open_database() -> None:
    with _quiet(DatabaseError):
        connection.ensure_connection()


def open_broker() -> None:
    with _quiet(OperationalError), current_app.publisher.producers.acquire(block=True) as producer:
        producer.connection.ensure_connection(max_retries=1, timeout=1)


def close_database() -> None:
    connections.close_all()


def close_broker() -> None:
    current_app.publisher.producers.force_close_all()


async def _call_all(hooks: list[Hook]) -> None:
    """Coroutines side by side in the event loop, functions each in a thread."""

    async def call(hook: Hook) -> None:
        with _logged(hook):
            await (hook() if inspect.iscoroutinefunction(hook) else asyncio.to_thread(hook))

    await asyncio.gather(*map(call, hooks))


@contextmanager
def _logged(hook: Hook) -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.exception("Worker hook %r failed", hook)


@contextmanager
def _quiet(error: type[Exception]) -> Iterator[None]:
    try:
        yield
    except error as reason:
        logger.warning("Not connected yet: %s", str(reason).strip())
