"""Which tasks there are to schedule, what they take, and whether given arguments fit."""

import inspect
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from celery import Task

from tasks_app.conf import conf
from tasks_app.exceptions import InvalidSubmission
from tasks_app.messages import check_headers
from tasks_app.recording import current_app
from tasks_app.seams.celery import argument_check

if TYPE_CHECKING:
    from scheduling_app.models import Schedule

#: Headers of a run that the schedule itself does not choose.
OWN_HEADERS = ("periodic_task_name", "scheduled_for", "retry_policy")
#: Characters of a signature that are shown.
LONGEST = 80


def registered_tasks() -> dict[str, Task]:
    """The tasks that a schedule can name, by their names."""
    return {name: task for name, task in sorted(current_app.tasks.items()) if not name.startswith("celery.")}


def parameters_of(task: Task) -> str:
    """A task's parameters, `(command, *args, **options)`, cut where they are many."""
    parameters = inspect.signature(task.run).parameters.values()
    text = str(inspect.Signature([each.replace(annotation=each.empty) for each in parameters]))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def arguments_of(schedule: "Schedule", scheduled_for: datetime) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a schedule's task for one due time."""
    if not schedule.due_kwarg:
        return schedule.args, schedule.kwargs
    return schedule.args, schedule.kwargs | {schedule.due_kwarg: scheduled_for.astimezone(UTC).isoformat()}


def named_queue(schedule: "Schedule") -> str | None:
    """The queue that it, CRON_QUEUE or its task names; None where the project's routes decide."""
    task = current_app.tasks.get(schedule.task)
    return schedule.queue or conf.CRON_QUEUE or getattr(task, "queue", None)


def queue_of(schedule: "Schedule") -> str:
    """The queue of its runs. (A route that goes by the arguments may choose another one.)"""
    return named_queue(schedule) or routed_queue(schedule.task, {})


def routed_queue(name: str, headers: dict[str, Any]) -> str:
    """The queue to which the project's routes send a task with these headers and no arguments."""
    options = {"headers": headers} if headers else {}
    routed = current_app.amqp.router.route(options, name, (), {}, current_app.tasks.get(name)).get("queue")
    return str(getattr(routed, "name", routed) or current_app.amqp.default_queue.name)


def drift(schedule: "Schedule") -> str:
    """Why its task would not run here as it is defined: it is not there, or does not take the arguments. Or ""."""
    _, complaint = at_fault(schedule) or ("", "")
    return complaint


def at_fault(schedule: "Schedule") -> tuple[str, str] | None:
    """The field because of which its task would not run here, "task", "args", "kwargs" or "headers", and why."""
    if (task := current_app.tasks.get(schedule.task)) is None:
        return "task", f"No task {schedule.task} is registered."
    if not isinstance(schedule.args, list):
        return "args", f"{schedule.task}: args must be a list, not {type(schedule.args).__name__}."
    if not isinstance(schedule.kwargs, dict):
        return "kwargs", f"{schedule.task}: kwargs must be an object, not {type(schedule.kwargs).__name__}."
    if schedule.headers != {} and (said := header_fault(schedule.headers)):
        return "headers", said
    return misfit(task, *arguments_of(schedule, datetime.now(UTC)))


def header_fault(headers: Any) -> str:
    """Why no message could carry these headers; or ""."""
    if headers is None:
        return "headers must be an object, with texts as its keys."
    try:
        check_headers(headers)
    except InvalidSubmission as error:
        return str(error)
    return ""


def misfit(task: Task, args: list[Any], kwargs: dict[str, Any]) -> tuple[str, str] | None:
    """Why these arguments do not fit a task, as ("args" or "kwargs", complaint); by the check that `delay` makes."""
    return _misfit(task, len(args), tuple(kwargs)) if task.typing else None


@lru_cache(maxsize=1024)
def _misfit(task: Task, number: int, names: tuple[str, ...]) -> tuple[str, str] | None:
    if (check := argument_check(task)) is None:
        return None
    args, kwargs = [None] * number, dict.fromkeys(names)
    try:
        check(*args, **kwargs)
    except TypeError as error:
        return _complaint(task, args, kwargs, error)
    return None


def _complaint(task: Task, args: list[Any], kwargs: dict[str, Any], error: TypeError) -> tuple[str, str]:
    signature = inspect.signature(task.run)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as plainer:  # than Python's own, which counts `self` in
        error = plainer
    text = str(error)
    keyword_only = [name for name, each in signature.parameters.items() if each.kind is each.KEYWORD_ONLY]
    of_kwargs = "keyword" in text or "multiple values" in text or any(repr(name) in text for name in keyword_only)
    field = "kwargs" if of_kwargs else "args"
    return field, f"{text[0].upper()}{text[1:]}: {task.name} takes {parameters_of(task)}."
