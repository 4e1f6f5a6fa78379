"""Bodies that are coroutines: run to their end by an event loop of their thread, which is kept between tasks."""

import asyncio
import functools
import inspect
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from asgiref.sync import sync_to_async
from celery.exceptions import SoftTimeLimitExceeded
from django.db import close_old_connections

from tasks_app.seams.django import allow_database_in


def awaiting(run: Any) -> Any:
    """A task's `run`, as its class has it, where an awaitable that it returns is awaited."""
    body = run.__func__ if isinstance(run, staticmethod) else run
    if not inspect.isroutine(body):
        return run
    is_unbound = isinstance(run, staticmethod) or inspect.ismethod(run)

    @functools.wraps(body)
    def waiting(*args: Any, **kwargs: Any) -> Any:
        return awaited(body(*args, **kwargs))

    return staticmethod(waiting) if is_unbound else waiting


def awaited(value: Any) -> Any:
    """A body's value; an awaitable's own value, by this thread's event loop."""
    if not inspect.isawaitable(value):
        return value

    async def to_its_end() -> Any:
        # Django's ORM runs in a thread of its own here, out of the reach of what mends the task's own connection.
        await sync_to_async(close_old_connections)()
        return await value

    if _is_in_event_loop():  # an eager task of an async view
        with ThreadPoolExecutor(1) as side:
            return side.submit(copy_context().run, asyncio.run, to_its_end()).result()
    try:
        return event_loop_runner().run(to_its_end())
    except SoftTimeLimitExceeded:
        close_event_loop()  # cancels the body, which would go on beside the next one otherwise
        raise


def _is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_loops = threading.local()


def event_loop_runner() -> asyncio.Runner:
    """This thread's event loop, kept between tasks, so that an async client opened by one serves the next."""
    if getattr(_loops, "pid", None) != os.getpid():
        _loops.runner, _loops.pid = asyncio.Runner(), os.getpid()
        # A loop that runs one task blocks nobody else: its body may call `other.delay()` as any other does.
        allow_database_in(_loops.runner.get_loop())
    return _loops.runner


def close_event_loop() -> None:
    if hasattr(_loops, "pid"):
        _loops.runner.close()
        del _loops.pid
