"""The chains, groups and chords of the console's apps, recorded as a whole; those of other apps are Celery's own."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from celery import Celery, canvas
from kombu.utils.uuid import uuid

from tasks_app.exceptions import InvalidSubmission
from tasks_app.gathering import gathered, gathering
from tasks_app.seams.celery import is_chain, lay_out_groups_by, send_canvases_by


@cache
def record_as_wholes() -> None:
    """Have canvases of the console's apps recorded as wholes, from here on; once in a process."""
    send_canvases_by(_whole)
    lay_out_groups_by(_in_order)


def _whole(
    apply_async: Callable[..., Any], workflow: canvas.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Let a workflow be recorded as a whole, or not at all, in as few statements as one task.

    The tasks of a group or a chord that no task sends have its id as their root, so that they can be told to belong
    together; Celery would give each its own.
    """
    app = workflow.app
    if app.conf.task_always_eager:
        return apply_async(workflow, *args, **kwargs)
    if kwargs.get("idempotency_key") is not None:
        raise InvalidSubmission("idempotency_key is for one task: give it to the first of the workflow.")
    if not is_chain(workflow) and app.current_worker_task is None:
        kwargs.setdefault("root_id", uuid())
    if gathering() is not None:
        return apply_async(workflow, *args, **kwargs)
    with gathered() as successors:
        result = apply_async(workflow, *args, **kwargs)
    app.submit_workflow(successors)
    return result


def _in_order(tasks: Iterable[Any], app: Celery) -> Iterator[canvas.Signature]:
    """The tasks of a group, those of nested groups in their place."""
    for task in tasks:
        signature = canvas.maybe_signature(task, app=app)
        if isinstance(signature, canvas.group):
            yield from _in_order(signature.tasks, app)
        else:
            yield signature
