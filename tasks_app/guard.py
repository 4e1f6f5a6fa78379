"""One claim for every run: what stands in front of each task's own class, whatever base that has.

A task is registered once, by whatever road (a decorator, `register_task`, the registry itself). There its class is
replaced by one that has `Guard` first, so that the claim comes before a `before_start` or `__call__` of the project's,
which go on to work as they would. Imported by the Celery app, before Django's apps are loaded: no models here.
"""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from celery import Task
from celery.app.registry import TaskRegistry
from celery.exceptions import Ignore, Retry, TaskPredicate
from celery.signals import task_postrun
from celery.utils.imports import symbol_by_name
from django.core.exceptions import ImproperlyConfigured

from tasks_app import states
from tasks_app.coroutines import awaiting
from tasks_app.seams.celery import has_own_backend, wrap_kept_body

if TYPE_CHECKING:
    from tasks_app.models import TaskRecord

#: Header by which a message asks for retries: {"max_retries": 3, "backoff": 10}, the first pause in seconds, doubled
#: each time up to LONGEST_BACKOFF.
RETRY_HEADER, LONGEST_BACKOFF = "retry_policy", 3600


class ClaimedTasks(TaskRegistry):
    """The tasks of an app, each of which claims its runs."""

    def __setitem__(self, name: str, task: Task) -> None:
        super().__setitem__(name, guarded(task))


def guarded(task: Task) -> Task:
    """The task, with a class of its own that has Guard in front. Raises ImproperlyConfigured where that cannot be."""
    cls = type(task)
    if issubclass(cls, Guard):
        return task
    try:
        if not isinstance(task, Task):
            raise TypeError("it is no celery.Task")
        if has_own_backend(task):
            raise TypeError("its `backend` is its own, and would not close its record")
        own: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        own["keeps_errors"] = cls.store_errors_even_if_ignored
        run = inspect.getattr_static(cls, "run")
        task.__class__ = type(cls.__name__, (Guard, cls), {**own, "run": awaiting(run), "Request": _Request(cls)})
        wrap_kept_body(task, awaiting)
    except (TypeError, AttributeError) as error:
        raise ImproperlyConfigured(
            f"Task {task.name!r} cannot be registered, since its runs could not be claimed and closed: {error}. "
            f"(It is of {cls.__module__}.{cls.__qualname__}.)"
        ) from error
    return task


class Guard:
    """In front of a task's own class: claims each run, and keeps what Celery sends meanwhile in step with it."""

    name: str
    app: Any
    request: Any
    run: Callable[..., Any]
    #: Lets Celery report each retry and failure to the backend, which keeps the record (see backend.py).
    store_errors_even_if_ignored = True
    #: Whether the task itself says so: else what is stored of one whose result is ignored is for the pages alone.
    keeps_errors = False

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        request = self.request
        request.is_next = True
        if not request.is_eager:
            from tasks_app.execution import claim_run

            if not claim_run(self, request, args, kwargs):
                raise Ignore(f"{self.name}[{task_id}] is not to run by this message: done, revoked, expired or taken.")
        super().before_start(task_id, args, kwargs)  # type: ignore[misc]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        if not request.__dict__.pop("is_next", False):  # called as a function, by its own body or another's
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        try:
            own = super().__call__ if self._has_own_call else self.run  # type: ignore[misc]
            result = own(*args, **kwargs)
        except TaskPredicate:
            raise
        except Exception as error:
            if not request.is_eager:
                request.raised = self.app.backend.describe(error)
                self._retry_as_asked(error)
            raise
        if not request.is_eager:
            from tasks_app.gathering import begin_ending

            if request.__dict__.get("next_run") is not None:
                raise Retry("by retry(throw=False)")
            begin_ending(self)
        return result

    @functools.cached_property
    def _has_own_call(self) -> bool:
        behind = type(self).mro()[2:]  # the task's own class, past Guard
        return any("__call__" in cls.__dict__ for cls in behind[: behind.index(Task)] if cls is not Guard)

    def _retry_as_asked(self, error: Exception) -> None:
        """Retry where the message asks for it, as that of a schedule may, beside what the task does by itself."""
        asked = getattr(self.request, RETRY_HEADER, None)
        if isinstance(asked, dict):
            pause = min(asked.get("backoff", 0) * 2**self.request.retries, LONGEST_BACKOFF)
            try:
                raise self.retry(exc=error, countdown=pause, max_retries=asked.get("max_retries", 0))  # type: ignore[attr-defined]
            finally:  # Celery keeps it on the task, for its autoretry of this and any later run
                self.__dict__.pop("override_max_retries", None)

    def is_cancelled(self) -> bool:
        """Whether this run was asked to stop, or is taken for lost: for a long body to ask now and then, and return."""
        from tasks_app.execution import is_in_force

        return not (self.request.is_eager or self.request.called_directly or is_in_force(self.request))

    def continue_as(self, record: "TaskRecord") -> None:
        """Called by send_task where the running task sends its own id: a retry, or `replace`."""
        record.inserted_values()  # refuses what no worker could take
        if record.retries > self.request.retries:
            self.request.next_run = record  # written with the run's outcome, by retries.wait_again
            return
        from tasks_app.exceptions import DuplicateTask

        if not self.app.take_over(record):
            raise DuplicateTask(f"Task {record.task_id} runs: it can be retried or replaced, not sent beside itself.")

    def on_replace(self, sig: Any) -> Any:
        """Go on as `sig`: its last step, which has this task's id, takes the record over when it is sent."""
        if self.request.is_eager:
            return super().on_replace(sig)  # type: ignore[misc]
        from tasks_app.execution import replace_run
        from tasks_app.gathering import gathered

        with gathered() as successors:
            sig.delay()
        self.request.claimed = False
        replace_run(self, successors)
        raise Ignore(f"Replaced by {sig.name}")

    async def adelay(self, *args: Any, **kwargs: Any) -> Any:
        """`delay` for a coroutine, such as an async view."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """`apply_async` for a coroutine.

        Runs in the thread of the request's other synchronous code, as Django's own async methods do, and so takes
        part in a transaction that is open there.
        """
        return await sync_to_async(self.apply_async)(args, kwargs, **options)  # type: ignore[attr-defined]


@task_postrun.connect
def close_dropped_run(sender: Any, task_id: str, state: str, retval: Any, **_: Any) -> None:
    """Celery tells no backend of a body that raised Ignore or Reject; and the relay waits for a slot to become free."""
    if not isinstance(sender, Guard) or sender.request.is_eager:
        return
    from tasks_app.execution import patiently
    from tasks_app.notify import DUE_CHANNEL, notify

    request, backend = sender.request, sender.app.backend
    if state in (states.IGNORED, states.REJECTED) and getattr(request, "claimed", False):
        patiently(lambda: backend.mark_as_dropped(request, state, retval), task_id)
    if getattr(sender, "concurrency_limit", None):
        patiently(lambda: notify(DUE_CHANNEL), task_id)


class _Request:
    """A task's class of requests, with the console's in front of one of its own; made when a worker asks for it."""

    def __init__(self, cls: type) -> None:
        self.own = cls.Request  # type: ignore[attr-defined]

    def __get__(self, task: Task, cls: Any = None) -> Any:
        ConsoleRequest = symbol_by_name("tasks_app.workers:ConsoleRequest")
        own = symbol_by_name(self.own)
        return ConsoleRequest if issubclass(ConsoleRequest, own) else type(own.__name__, (ConsoleRequest, own), {})
