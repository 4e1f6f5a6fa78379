"""What a schedule must be to run, and to run as meant, whatever road its definition comes by."""

from datetime import UTC, datetime

from celery import current_app
from django.core.exceptions import ValidationError

from scheduling_app.models import Schedule
from scheduling_app.signatures import arguments_of, misfit, registered_tasks
from scheduling_app.triggers import TimingError
from tasks_app.guard import LONGEST_BACKOFF, RETRY_HEADER
from tasks_app.publishing import GEN_HEADER

#: Seconds in a day: more jitter than that is a mistake.
MOST_JITTER = 86_400
_SHAPES = {"args": list, "kwargs": dict, "headers": dict}
_NOT_GIVEN = [field.name for field in Schedule._meta.fields if not field.editable]
_SOME_TIME = datetime(2000, 1, 1, tzinfo=UTC)

Complaint = tuple[str, str]


def complaints(schedule: Schedule, stored_task: str = "") -> list[Complaint]:
    """What is wrong with a schedule, saved or not, as (field, complaint): all that needs no other row to know.

    `stored_task` is what its row names now: that may be a task which is not registered. An interval needs `created_at`.
    """
    try:
        schedule.clean_fields(exclude=["blackout", *_NOT_GIVEN])
    except ValidationError as error:
        return [(name, " ".join(said)) for name, said in error.message_dict.items()]
    for name, shape in _SHAPES.items():
        if not isinstance(getattr(schedule, name), shape):
            return [(name, f"Write {'a JSON list' if shape is list else 'a JSON object'}.")]
    found = [*policy_complaints(schedule), *call_complaints(schedule, stored_task)]
    try:
        schedule.timing()
    except TimingError as error:
        found.append((error.field, str(error)))
    return found


def policy_complaints(schedule: Schedule) -> list[Complaint]:
    """What is wrong with its limits and its headers."""
    found, soft, hard = [], schedule.soft_time_limit, schedule.time_limit
    if soft and hard and soft >= hard:
        found.append(("soft_time_limit", f"Must be below the time limit, {hard} s: at that the run is killed."))
    if schedule.jitter > MOST_JITTER:
        found.append(("jitter", f"Must be {MOST_JITTER} s at most, which is a day."))
    if (schedule.retry_backoff or 0) > LONGEST_BACKOFF:
        found.append(("retry_backoff", f"Must be {LONGEST_BACKOFF} s at most."))
    if taken := sorted(_own_headers() & schedule.headers.keys()):
        found.append(("headers", f"{', '.join(taken)}: set by Celery or the console itself. Use another name."))
    return found


def call_complaints(schedule: Schedule, stored_task: str) -> list[Complaint]:
    """What is wrong with its task and the arguments, the due time among them, against what the task takes."""
    due = schedule.due_kwarg
    if due and not due.isidentifier():
        return [("due_kwarg", "Write the name of an argument, such as scheduled_for.")]
    if due in schedule.kwargs:
        return [("due_kwarg", f"{due} is one of the keyword arguments already.")]
    task = registered_tasks().get(schedule.task)
    if task is None:
        if schedule.task == stored_task:
            return []
        return [("task", f"No task {schedule.task} is registered here. Is its app in INSTALLED_APPS or EXTRA_APPS?")]
    complaint = misfit(task, *arguments_of(schedule, _SOME_TIME))
    if complaint and due and misfit(task, schedule.args, schedule.kwargs) is None:
        return [("due_kwarg", complaint[1])]
    return [complaint] if complaint else []


def _own_headers() -> set[str]:
    """The names of what is in a message's headers anyway."""
    celerys = current_app.amqp.create_task_message("id", "name", (), {}).headers
    return {*celerys, GEN_HEADER, RETRY_HEADER, "periodic_task_name", "scheduled_for"}


def queue_notes(schedule: Schedule) -> list[str]:
    """What to know about its queue, where that is not one that workers consume by default."""
    if not schedule.queue or schedule.queue in current_app.amqp.queues:
        return []
    return [f"Workers do not consume the queue {schedule.queue} by default: name it in EXTRA_QUEUES."]
