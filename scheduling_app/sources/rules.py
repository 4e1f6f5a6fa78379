"""What a schedule must be to run, and to run as meant, whatever road its definition comes by."""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models

from scheduling_app.json_text import DEEPEST, LONGEST_JSON
from scheduling_app.models import Schedule
from scheduling_app.signatures import arguments_of, misfit, registered_tasks
from scheduling_app.sources.fields import COLUMNS, Part, names, rule_complaints
from scheduling_app.timing import clocks
from scheduling_app.timing.clocks import ScheduleError, TimingError
from tasks_app.conf import APPS_SETTING, QUEUES_SETTING
from tasks_app.exceptions import InvalidSubmission
from tasks_app.recording import current_app
from tasks_app.storable import dump_json, printable

BLANK = "This field cannot be blank."
UNSTORABLE = "It has a character that Postgres cannot hold."
#: The fields that decide about the times.
TIMING = names(Part.TIMING)
_SHAPES: dict[str, type] = {"args": list, "kwargs": dict, "headers": dict}
#: What a value must be for a field, and how people call that.
_TYPES: "Sequence[tuple[type[models.Field[Any, Any]], type, str]]" = (
    (models.BooleanField, bool, "true or false"),
    (models.IntegerField, int, "a whole number"),
    (models.CharField, str, "a text"),
    (models.TextField, str, "a text"),
)
_NOT_GIVEN = [field.name for field in Schedule._meta.fields if not field.editable]
_SOME_TIME = datetime(2000, 1, 1, tzinfo=UTC)

Complaint = tuple[str, str]


class ScheduleRefused(ScheduleError):
    """A schedule that cannot be, whatever road it came by: `field` is at fault, str() says what to change."""

    def __init__(self, name: str, field: str, message: str):
        super().__init__(field, f"Schedule {name!r}: {field}: {message}")


def check(schedule: Schedule, stored: Schedule | None = None, now: datetime | None = None) -> None:
    """Raises ScheduleRefused where it is at fault. `stored` is the row that it is to replace, as it is now.

    With `now`, one that is new, or whose timing is, must have a time to come.
    """
    for wrong in complaints(schedule, stored.task if stored else ""):
        raise ScheduleRefused(schedule.name, *wrong)
    if now is not None and (complaint := past_complaint(schedule, stored, now)):
        raise ScheduleRefused(schedule.name, *complaint)


def complaints(schedule: Schedule, stored_task: str = "") -> list[Complaint]:
    """What is wrong with a schedule, saved or not, as (field, complaint): all that needs no other row to know.

    `stored_task` is what its row names now: that may be a task which is not registered. An interval needs `created_at`.
    """
    if found := field_complaints(schedule):
        return found
    found = [*rule_complaints(schedule), *call_complaints(schedule, stored_task)]
    try:
        schedule.timing()
    except TimingError as error:
        found.append((error.field, str(error)))
    return found


def field_complaints(schedule: Schedule) -> list[Complaint]:
    """What is wrong with the values of its fields, each by itself."""
    if found := list(_value_complaints(schedule)):
        return found
    try:
        schedule.clean_fields(exclude=["blackout", *_NOT_GIVEN])
    except ValidationError as error:
        return [(name, " ".join(said)) for name, said in error.message_dict.items()]
    return []


def past_complaint(schedule: Schedule, stored: Schedule | None, now: datetime) -> Complaint | None:
    """What is wrong with a new timing that has no time to come."""
    if stored and all(getattr(stored, name) == getattr(schedule, name) for name in TIMING):
        return None
    if schedule.timing().next_after(now) is not None:
        return None
    at = next(name for name in ("run_at", "end_at", "start_at", "kind") if getattr(schedule, name))
    return at, "past: it would not run"


def _value_complaints(schedule: Schedule) -> Iterator[Complaint]:
    """What is wrong with the values by themselves."""
    for name, field in COLUMNS.items():
        value = getattr(schedule, field.attname)
        if name in _SHAPES:
            said = _json_complaint(value, _SHAPES[name])
        elif value is None or name == "blackout":
            said = ""
        elif isinstance(field, models.DateTimeField):
            said = _time_complaint(value)
        else:
            said = type_complaint(field, value) or text_complaint(value)
        if said:
            yield name, said
    if isinstance(schedule.name, str) and not schedule.name.strip():
        yield "name", BLANK


def type_complaint(field: "models.Field[Any, Any]", value: Any) -> str:
    """What is wrong with the type of a field's value; a number is no truth value, and a text no number."""
    wanted, called = next((wanted, called) for kind, wanted, called in _TYPES if isinstance(field, kind))
    if isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
        return ""
    return f"Write {called}, not {json.dumps(value, default=repr):.80}."


def text_complaint(value: Any) -> str:
    return UNSTORABLE if isinstance(value, str) and printable(value) != value else ""


def _time_complaint(value: Any) -> str:
    try:
        clocks.check_aware("", value)
    except TimingError as error:
        return str(error)
    if not 1970 <= value.year < 9999:
        return "The year must be between 1970 and 9998."
    return clocks.skipped(value)


def _json_complaint(value: Any, shape: type) -> str:
    if not isinstance(value, (list, tuple) if shape is list else shape):  # a tuple of code's is a list in JSON
        return f"Write {'a JSON list' if shape is list else 'a JSON object'}."
    if _is_deeper(value, DEEPEST):
        return f"Nested more than {DEEPEST} deep."
    if not _is_finite(value):
        return "NaN and infinities are no JSON: write a number or null."
    try:
        length = len(dump_json(value))
    except InvalidSubmission as error:
        return str(error)
    return f"{length:,} characters as JSON, {LONGEST_JSON:,} are allowed." if length > LONGEST_JSON else ""


def _inner(value: Any) -> Sequence[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()


def _is_deeper(value: Any, most: int) -> bool:
    is_nest = isinstance(value, dict | list | tuple)
    return is_nest and (most == 0 or any(_is_deeper(each, most - 1) for each in _inner(value)))


def _is_finite(value: Any) -> bool:
    return math.isfinite(value) if isinstance(value, float) else all(map(_is_finite, _inner(value)))


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
        return [("task", f"No task {schedule.task} is registered here. Is its app in {APPS_SETTING}?")]
    complaint = misfit(task, *arguments_of(schedule, _SOME_TIME))
    if complaint and due and misfit(task, schedule.args, schedule.kwargs) is None:
        return [("due_kwarg", complaint[1])]
    return [complaint] if complaint else []


def queue_notes(schedule: Schedule) -> list[str]:
    """What to know about its queue, where that is not one that workers consume by default."""
    if not schedule.queue or schedule.queue in current_app.amqp.queues:
        return []
    return [f"Workers do not consume the queue {schedule.queue} by default: add it to {QUEUES_SETTING}."]


def check_saved(instance: Schedule, raw: bool, update_fields: Collection[str] | None, **_: Any) -> None:
    """A receiver of `pre_save`: values that no row can have are refused there too. Raises ScheduleRefused.

    What depends on the code that is here, its task and what that takes, is for `check`, and for firing to record.
    (Django's `bulk_create` and `update` send no signal.)
    """
    if raw:  # loaddata, which has its own order
        return
    for name, said in field_complaints(instance):
        if update_fields is None or name in update_fields:
            raise ScheduleRefused(instance.name, name, said)
