"""What a worker does besides running tasks: hooks around its pool children, the relay in its parent process."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable

from celery import current_app
from celery.signals import worker_process_init, worker_process_shutdown, worker_ready, worker_shutting_down
from django.db import DatabaseError, connection, connections
from kombu.exceptions import OperationalError

from tasks_app import outbox
from tasks_app.execution import event_loop_runner
from tasks_app.maintenance import Relay

logger = logging.getLogger(__name__)

Hook = Callable[[], object | Awaitable[object]]

_on_startup: list[Hook] = []
_on_shutdown: list[Hook] = []
_relay: Relay | None = None


def register_worker_hooks(on_startup: Hook | None = None, on_shutdown: Hook | None = None) -> None:
    """Have `on_startup` run in each pool child when it starts, `on_shutdown` when it ends; functions or coroutines.

    Startup hooks run in the order of their registration, shutdown hooks concurrently. Registering one again changes
    nothing. A hook that raises is logged; the others run.
    """
    for hook, hooks in ((on_startup, _on_startup), (on_shutdown, _on_shutdown)):
        if hook is not None and hook not in hooks:
            hooks.append(hook)


@worker_process_init.connect
def start_child(**_) -> None:
    open_database()
    open_broker()
    for hook in _on_startup:
        event_loop_runner().run(_call(hook))


@worker_process_shutdown.connect
def end_child(**_) -> None:
    outbox.marker.flush()
    runner = event_loop_runner()
    runner.run(_call_all([close_database, close_broker, *_on_shutdown]))
    runner.close()


@worker_ready.connect
def start_relay(**_) -> None:
    global _relay
    _relay = Relay()
    _relay.start()


@worker_shutting_down.connect
def stop_relay(**_) -> None:
    if _relay is not None:
        _relay.stop()


def open_database() -> None:
    _quietly(connection.ensure_connection, DatabaseError)


def open_broker() -> None:
    def connect():
        with current_app.pool.acquire() as broker:
            broker.ensure_connection(max_retries=1, timeout=1)

    _quietly(connect, OperationalError)


async def close_database() -> None:
    connections.close_all()


async def close_broker() -> None:
    await asyncio.to_thread(current_app.pool.force_close_all)


async def _call_all(hooks: list[Hook]) -> None:
    await asyncio.gather(*[_call(hook, concurrently=True) for hook in hooks])


async def _call(hook: Hook, concurrently: bool = False) -> None:
    try:
        if inspect.iscoroutinefunction(hook):
            await hook()
        elif concurrently:
            await asyncio.to_thread(hook)
        else:
            hook()
    except Exception:
        logger.exception("Worker hook %r failed", hook)


def _quietly(connect: Callable[[], object], error: type[Exception]) -> None:
    try:
        connect()
    except error as reason:
        logger.warning("Not connected yet: %s", str(reason).strip())
