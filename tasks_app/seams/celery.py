"""Celery: canvases, apps, tasks, a worker's requests, results, backends."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial, wraps
from inspect import getattr_static
from typing import Any

from celery import Celery, Task, _state, canvas
from celery.backends.base import Backend as CelerysBackend
from celery.local import Proxy
from celery.result import AsyncResult
from celery.worker.request import Request

from tasks_app.seams import KEPT, THERE, Seam

_REQUEST, _RESULT = "celery.worker.request:Request", "celery.result:AsyncResult"
_BACKEND = "celery.backends.base:Backend"
_WHOLES = "Celery sends each task of a canvas by itself. A canvas that first says all that it will send would end it."
_RESULTS = "Celery reads each result, and each parent of one, by a query of its own. A public `get_many` would end it."
_HOOKS = "Celery calls a backend by private methods. A backend of the console's own, or public hooks, would end it."
NAMES = (
    Seam("celery.canvas:", "_chain", THERE, "Recording a workflow as a whole", _WHOLES),
    Seam(
        "celery.canvas:group",
        "_freeze_unroll",
        "(self, new_tasks, group_id, chord, root_id, parent_id)",
        "The order of nested groups' results",
        "Celery turns each nested group one round. A release that does not ends it.",
    ),
    Seam("celery.canvas:Signature", "_app", THERE, "The app of nested groups' tasks", "`app` guesses one."),
    Seam(
        "celery:Celery",
        "_task_from_fun",
        "(self, fun, name=…, base=…, bind=…, …)",
        "A coroutine as the body of a task with `pydantic=True`",
        "Celery dumps what the function returns, and `shared_task` goes past `Celery.task`. Coroutines in Celery "
        "itself will end it.",
    ),
    Seam(
        "celery:Celery",
        "_pending",
        KEPT,
        "The check W002, which names what an unrecorded app sends",
        "Celery gives the tasks of an app to all; what an app was asked for, it tells nobody.",
    ),
    Seam(
        "celery._state:",
        "_get_active_apps",
        "()",
        "`manage.py check`, which looks at each app of the process",
        "Celery lists its apps nowhere else.",
    ),
    Seam(
        "celery.local:Proxy",
        "_get_current_object",
        "(self)",
        "Telling the requests of one app's worker from another's",
        "A worker may be given the proxy `current_app`, which is another app in another thread.",
    ),
    Seam(
        "celery:Task",
        "_get_exec_options",
        "(self)",
        "A task's own options, such as its queue, in a submit",
        "Celery's `apply_async` reads them so.",
    ),
    Seam(
        "celery.app.base:Celery._task_from_fun",
        "__header__",
        KEPT,
        "Refusing wrong arguments of `submit_many`; calling errbacks",
        "Celery's `apply_async` checks arguments so, one task at a time.",
    ),
    Seam(
        "celery:Task",
        "_backend",
        THERE,
        "Refusing a task with a result backend of its own",
        "Its property `backend` makes one where there is none.",
    ),
    Seam(
        "celery.app.autoretry:add_autoretry_behaviour",
        "_orig_run",
        KEPT,
        "A coroutine as the body of a task with `autoretry_for`",
        "Celery's autoretry keeps the body there when it wraps it. Coroutines in Celery itself will end it.",
    ),
    Seam(
        _REQUEST,
        "_retry_worker_lost",
        "(self, exc, exc_info)",
        "`retry_on_worker_lost`",
        "Celery retries there without a current task, and the retry would be a new record. A hook would end it.",
    ),
    Seam(_REQUEST, "_context", THERE, "Reading a message's `gen` in a worker's parent", "Nothing public has it."),
    Seam(_REQUEST, "_already_revoked", THERE, "Telling a revoked run from a lost one", "Nothing public says it."),
    Seam(_REQUEST, "_apply_result", THERE, "Killing a run that ignores its signal", "Nothing public tells of its end."),
    Seam(_REQUEST, "_eta", KEPT, "An ETA that the record judges, not the message", "Its property `eta` is read-only."),
    Seam(_REQUEST, "_expires", KEPT, "Expiry that the record judges, not the message", "Its property is read-only."),
    Seam(
        "celery.concurrency.prefork:process_initializer",
        "FORKED_BY_MULTIPROCESSING",
        KEPT,
        "The start of a pool's child that was not forked",
        "Such a child knows nothing of its parent's bootsteps. A signal that names its worker's app would end it.",
    ),
    Seam(_RESULT, "_maybe_reraise_parent_error", "(self)", "Waiting for the result of a chain", _RESULTS),
    Seam(_RESULT, "_maybe_set_cache", "(self, meta)", "Waiting for results", _RESULTS),
    Seam(_RESULT, "_cache", KEPT, "Waiting for results", _RESULTS),
    Seam(_RESULT, "_parents", "(self)", "Waiting for the result of a chain", _RESULTS),
    Seam(_BACKEND, "_call_task_errbacks", "(self, request, exc, traceback)", "The errbacks of a chord's body", _HOOKS),
    Seam(_BACKEND, "_errback_arity_greater", "(self, errback, n)", "Telling which errbacks take an exception", _HOOKS),
    Seam(_BACKEND, "_fail_chain", "(self, chain, exc, traceback=…, …)", "The end of the rest of a chain", _HOOKS),
    Seam(_BACKEND, "_ensure_not_eager", "(self)", "The error of a wait for an eager task", _HOOKS),
)


class App(Celery):
    """An app of the console: the one kind for which canvases differ from Celery's."""

    def _task_from_fun(self, fun: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return super()._task_from_fun(self.as_body(fun, options), *args, **options)

    def as_body(self, fun: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
        """The function that is to be the body of a task with these options."""
        return fun


#: What is made of other tasks, and sent by its own `apply_async`.
CANVASES: tuple[type[canvas.Signature], ...] = (canvas._chain, canvas.group, canvas.chord)
#: Sends a canvas of one of our apps: called with its `apply_async`, itself, and what that was given.
Whole = Callable[[Callable[..., Any], canvas.Signature, tuple[Any, ...], dict[str, Any]], Any]


def send_canvases_by(whole: Whole) -> None:
    """Have each canvas of one of our apps sent by `whole`, and those of other apps by Celery alone."""
    for canvas_class in CANVASES:
        canvas_class.apply_async = _sent_by(whole, canvas_class.apply_async)


def _sent_by(whole: Whole, apply_async: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(apply_async)
    def send(self: canvas.Signature, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.app, App):
            return whole(apply_async, self, args, kwargs)
        return apply_async(self, *args, **kwargs)

    return send


def is_chain(signature: canvas.Signature) -> bool:
    return isinstance(signature, canvas._chain)


def lay_out_groups_by(laid_out: Callable[[Iterable[Any], Celery], Iterator[canvas.Signature]]) -> None:
    """Have the tasks of groups of our apps laid out by `laid_out(tasks, app)`, where Celery would do it."""
    freeze_unroll = canvas.group._freeze_unroll

    @wraps(freeze_unroll)
    def unroll(self: canvas.group, *args: Any) -> Any:
        if isinstance(getattr(self, "app", None), App):  # its first task may be a dict, which has none
            self.tasks = list(laid_out(self.tasks, self._app))
        yield from freeze_unroll(self, *args)

    canvas.group._freeze_unroll = unroll


def active_apps() -> Iterable[Celery]:
    """The Celery apps of this process."""
    return _state._get_active_apps()


def unbound_tasks(app: Celery) -> list[Any]:
    """What this app was asked to make, and has not yet."""
    return list(app._pending)


def itself(app: Celery) -> Celery:
    """An app, also where a proxy of it is given."""
    return app._get_current_object() if isinstance(app, Proxy) else app


def options_of(task: Task) -> dict[str, Any]:
    """The options that a task's class gives to each call."""
    return task._get_exec_options()


def argument_check(task: Task) -> Callable[..., Any] | None:
    """What raises TypeError for arguments that do not fit the task's signature; a task from a class has none."""
    return getattr(task, "__header__", None)


def has_own_backend(task: Task) -> bool:
    """Whether its results are stored elsewhere than in its app's backend."""
    return getattr_static(task, "backend") is not getattr_static(Task, "backend") or bool(task._backend)


def wrap_kept_body(task: Task, wrap: Callable[[Any], Any]) -> None:
    """Wrap the body also where Celery's autoretry came first, and has kept it as it was."""
    if "_orig_run" in task.__dict__:
        task._orig_run = wrap(task._orig_run)


def is_spawned_child() -> bool:
    """Whether this is a pool's child that was started anew, and not forked."""
    return bool(os.environ.get("FORKED_BY_MULTIPROCESSING"))


class WorkerRequest(Request):
    """A message's run in the worker's parent process."""

    def _retry_worker_lost(self, exc: BaseException, exc_info: Any) -> Any:
        return self.retry_lost(exc, exc_info)

    def retry_lost(self, exc: BaseException, exc_info: Any) -> Any:
        """Retry a run whose process is gone, as its task asks."""
        return super()._retry_worker_lost(exc, exc_info)

    def forget_times(self) -> None:
        """Judge neither its ETA nor its expiry by the message."""
        self._eta = self._expires = None

    @property
    def was_revoked(self) -> bool:
        """Whether this process has revoked it."""
        return self._already_revoked


def context_of(request: Request) -> Any:
    """A run's request as its task sees it."""
    return request._context


def job_of(request: Request) -> Any:
    """What the pool knows of a run; None where it does not run, or nobody knows of it any more."""
    return request._apply_result and request._apply_result()


class Result(AsyncResult):
    def _maybe_reraise_parent_error(self) -> None:
        self.raise_for_parents()

    def raise_for_parents(self) -> None:
        """Raise the exception of a task before it that has failed."""
        super()._maybe_reraise_parent_error()


def learn(result: AsyncResult, meta: dict[str, Any]) -> None:
    """Let a result know what is stored of its task, and call what waits for it."""
    result._maybe_set_cache(meta)


def known_of(result: AsyncResult) -> dict[str, Any] | None:
    """How its task ended, as far as it has been told."""
    return result._cache


def parents_of(result: AsyncResult) -> list[AsyncResult]:
    """The results before it, the nearest first."""
    return list(result._parents())


class Backend(CelerysBackend):
    """Any backend of Celery's; what it calls of itself has public names here."""

    def _call_task_errbacks(self, request: Any, exc: BaseException, traceback: Any) -> Any:
        return self.call_errbacks(request, exc, traceback)

    def call_errbacks(self, request: Any, exc: BaseException, traceback: Any) -> Any:
        """Call, or send, the errbacks of a run, or of a chord's body."""
        return super()._call_task_errbacks(request, exc, traceback)

    def takes_exception(self, errback: canvas.Signature) -> bool:
        """Whether an errback is called with its task's exception; one that takes only an id is sent."""
        return not isinstance(errback.type.__header__, partial) and self._errback_arity_greater(errback, 1)

    def fail_chain(self, chain: Any, exc: BaseException, traceback: Any, state: str) -> None:
        """Let the tasks end that were to come after one in a chain."""
        self._fail_chain(chain, exc, traceback, state=state)

    def refuse_eager(self) -> None:
        """Warn, as Celery does, who waits for results where tasks are eager."""
        self._ensure_not_eager()
