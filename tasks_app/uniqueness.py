"""Tasks that are to be there once: what makes two submissions the same one.

A task says so by options of its own:

    @shared_task(unique="unfinished", unique_by=("customer",))

`unique` is "waiting" (until a worker starts it), "unfinished" (until it has ended), or a number of seconds from its
submission; `unique_by` names the arguments that count, all of them by default. A unique index holds it.
"""

import functools
import hashlib
import inspect
from datetime import timedelta
from typing import Any

from celery import Task

from tasks_app.exceptions import InvalidSubmission
from tasks_app.storable import dump_json


def key_of(task: Task, args: Any, kwargs: Any) -> tuple[str | None, timedelta | None]:
    """The `unique_key` of such a call, and for how long it holds where that is a time; None for a task without one."""
    unique = getattr(task, "unique", None)
    if unique is None:
        return None, None
    for problem in problems(task):
        raise InvalidSubmission(f"{task.name}: {problem}.")
    arguments = bound_arguments(task, args, kwargs)
    chosen = {name: arguments[name] for name in task.unique_by or arguments}
    digest = hashlib.sha256(dump_json(sorted(chosen.items())).encode()).hexdigest()[:32]
    while_ = unique if isinstance(unique, str) else "time"
    key = f"{while_} {task.name[:200]} {digest}"
    return key, None if isinstance(unique, str) else _seconds(unique)


def problems(task: Task) -> list[str]:
    """What is wrong with a task's `unique` and `unique_by`, for its author."""
    unique: Any = getattr(task, "unique", None)
    is_number = isinstance(unique, int | float | timedelta) and not isinstance(unique, bool)
    is_time = is_number and _seconds(unique) > timedelta(0)
    if not (unique in (None, "waiting", "unfinished") or is_time):
        return [f"unique must be 'waiting', 'unfinished' or a number of seconds, not {unique!r:.80}"]
    names = signature_of(task.__class__).parameters
    unknown = [name for name in getattr(task, "unique_by", None) or () if name not in names]
    return [f"unique_by names {name!r}, which is no argument of it" for name in unknown]


def bound_arguments(task: Task, args: Any, kwargs: Any) -> dict[str, Any]:
    """A call's arguments by name, with the defaults of those that are not given. Raises TypeError."""
    bound = signature_of(task.__class__).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


@functools.cache
def signature_of(task_class: Any) -> inspect.Signature:
    """The signature of a task's body, without `self`."""
    run = inspect.signature(task_class.run)
    is_bound = not isinstance(inspect.getattr_static(task_class, "run"), staticmethod)
    return run.replace(parameters=list(run.parameters.values())[is_bound:])


def _seconds(unique: float | timedelta) -> timedelta:
    return unique if isinstance(unique, timedelta) else timedelta(seconds=unique)
