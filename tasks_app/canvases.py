"""Celery's chains, groups and chords, recorded as a whole; imported by the console's app, for all of its process."""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps

from celery import canvas
from kombu.utils.uuid import uuid

from tasks_app.exceptions import InvalidSubmission
from tasks_app.gathering import gathered, gathering


def _whole(canvas_class: type) -> None:
    """Let a workflow be recorded as a whole, or not at all, in as few statements as one task.

    The tasks of a group or a chord that no task sends have its id as their root, so that they can be told to belong
    together; Celery would give each its own.
    """
    apply_async = canvas_class.apply_async  # type: ignore[attr-defined]

    @wraps(apply_async)
    def whole(self, *args, **kwargs):
        app = self.app
        if not hasattr(app, "submit_workflow") or app.conf.task_always_eager:
            return apply_async(self, *args, **kwargs)
        if kwargs.get("idempotency_key") is not None:
            raise InvalidSubmission("idempotency_key is for one task: give it to the first of the workflow.")
        if canvas_class is not canvas._chain and app.current_worker_task is None:
            kwargs.setdefault("root_id", uuid())
        if gathering() is not None:
            return apply_async(self, *args, **kwargs)
        with gathered() as workflow:
            result = apply_async(self, *args, **kwargs)
        app.submit_workflow(workflow)
        return result

    canvas_class.apply_async = whole  # type: ignore[attr-defined]


def _in_order(freeze_unroll: Callable) -> Callable:
    """Let a group have the tasks of nested groups in their order; Celery turns each nested one round."""

    def laid_out(tasks: Iterable, app) -> Iterator[canvas.Signature]:
        for task in tasks:
            signature = canvas.maybe_signature(task, app=app)
            if isinstance(signature, canvas.group):
                yield from laid_out(signature.tasks, app)
            else:
                yield signature

    @wraps(freeze_unroll)
    def unroll(self, *args):
        self.tasks = list(laid_out(self.tasks, self._app))
        yield from freeze_unroll(self, *args)

    return unroll


canvas.group._freeze_unroll = _in_order(canvas.group._freeze_unroll)
for canvas_class in (canvas._chain, canvas.group, canvas._chord):
    _whole(canvas_class)
