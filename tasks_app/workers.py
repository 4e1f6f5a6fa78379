"""What a worker does besides running tasks: hooks around its pool children, the relay in its parent process."""

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from celery import current_app
from celery.signals import (
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from celery.worker.request import Request
from django.db import DatabaseError, connection, connections
from kombu.exceptions import OperationalError

from tasks_app.coroutines import close_event_loop, event_loop_runner
from tasks_app.leases import SHUTDOWN_GRACE, Leases
from tasks_app.maintenance import Relay
from tasks_app.publishing import marker

logger = logging.getLogger(__name__)

Hook = Callable[[], object | Awaitable[object]]

_on_startup: list[Hook] = []
_on_shutdown: list[Hook] = []
_relay: Relay | None = None
_leases: Leases | None = None


def register_worker_hooks(on_startup: Hook | None = None, on_shutdown: Hook | None = None) -> None:
    """Have `on_startup` run in each pool child when it starts, `on_shutdown` when it ends; functions or coroutines.

    Startup hooks run in the order of their registration, shutdown hooks concurrently. Registering one again changes
    nothing. A hook that raises is logged; the others run.
    """
    for hook, hooks in ((on_startup, _on_startup), (on_shutdown, _on_shutdown)):
        if hook is not None and hook not in hooks:
            hooks.append(hook)


@worker_init.connect
def prepare_children(**_) -> None:
    # Not sooner: Celery's Django fixup, which throws inherited connections away, has to come first in each child.
    worker_process_init.connect(start_child)


def start_child(**_) -> None:
    open_database()
    open_broker()
    for hook in _on_startup:
        with _logged(hook):
            if inspect.iscoroutinefunction(hook):
                event_loop_runner().run(hook())
            else:
                hook()


@worker_process_shutdown.connect
def end_child(**_) -> None:
    marker.flush()
    with ThreadPoolExecutor() as side:
        side.submit(close_broker)
        close_database()
        event_loop_runner().run(_call_all(_on_shutdown))
    close_event_loop()


@worker_ready.connect
def start_threads(**_) -> None:
    global _relay, _leases
    _relay, _leases = Relay(), Leases()
    _relay.start()
    _leases.start()


@worker_shutting_down.connect
def begin_end(**_) -> None:
    # Called in a signal's handler: whatever waits for the same thread, or blocks, must be done by another.
    threading.Thread(target=_begin_end, daemon=True).start()


def _begin_end() -> None:
    if _leases is not None:
        _leases.hand_back_after(SHUTDOWN_GRACE)
    if _relay is not None:
        _relay.stop()


@worker_shutdown.connect
def stop_leases(**_) -> None:
    if _leases is not None:
        _leases.stop()


class ConsoleRequest(Request):
    """A message's run, as the worker's parent process sees it."""

    def on_failure(self, exc_info, send_failed_event=True, return_ok=False):
        exc = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(exc, MemoryError):  # at which Celery would end the worker; the task has failed, that is all
            exc_info.exception = RuntimeError(f"MemoryError: {exc}")
        return super().on_failure(exc_info, send_failed_event, return_ok)


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
def _logged(hook: Hook):
    try:
        yield
    except Exception:
        logger.exception("Worker hook %r failed", hook)


@contextmanager
def _quiet(error: type[Exception]):
    try:
        yield
    except error as reason:
        logger.warning("Not connected yet: %s", str(reason).strip())
