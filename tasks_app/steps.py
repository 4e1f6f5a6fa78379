"""Tasks that are still to come: what the options of a record name by id, as a workflow's later steps.

A chain's next tasks, a chord's body, callbacks and errbacks travel with the tasks before them, as signatures. Each that
has an id (Celery gives them theirs when a workflow is sent) has a row from the submit on, so that `get_status`,
`revoke` and the pages find it, by index, before it has a record. A task that is in no workflow pays nothing for this.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS
from django.db.models import Exists, OuterRef, QuerySet
from django_celery_results.models import ChordCounter, TaskResult
from kombu.utils.functional import maybe_list

from tasks_app import states
from tasks_app.models import FORGOTTEN, TaskRecord, TaskStamp, TaskStep
from tasks_app.statements import execute_many, rowset

#: Of a signature: task_id, name, after_id, place, options.
Found = tuple[str, str, str, str, Mapping[str, Any]]

#: Options that hold signatures.
PLACES = {"chain": "chain", "chord": "body", "link": "link", "link_error": "errback"}
#: What is sent where a task failed does not follow from it.
ERRBACK = "errback"


class Step(NamedTuple):
    task_id: str
    name: str
    root_id: str
    after_id: str
    place: str
    options: Mapping[str, Any]


def steps_of(record: TaskRecord) -> list[Step]:
    """What is to come after a new record, each once. (Its chord's body is known by the chord: see chords.py.)"""
    options = record.options
    if not options.keys() & PLACES.keys():
        return []
    return _unique(record.root_id, _in_options({**options, "chord": None}, record.task_id), {record.task_id})


def steps_of_body(body: Mapping[str, Any], group_id: str, root_id: str | None) -> list[Step]:
    """A chord's body, and what is to come after it."""
    return _unique(root_id or group_id, _in_signature(body, group_id, "body"), set())


def insert_stamps(tasks: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Keep the stamps of tasks, records or steps, given as ids and options."""
    stamps = [
        TaskStamp(task_id=task_id, header=header[:255], value=str(value)[:255])
        for task_id, options in tasks
        for header in options.get("stamped_headers") or ()
        for value in maybe_list(options.get(header)) or ()
    ]
    if stamps:
        TaskStamp.objects.bulk_create(stamps)


def is_to_come(step: TaskStep) -> bool:
    """Whether something of its workflow has not ended, from which it may follow."""
    return step.root_id in open_roots([step.root_id])


def open_roots(root_ids: Iterable[str]) -> set[str]:
    """Those of these workflows that have an unfinished task, or a chord whose body is about to be sent."""
    bodies = TaskStep.objects.filter(place="body")
    chords = ChordCounter.objects.using(DEFAULT_DB_ALIAS)
    return {
        root_id
        for root_id in root_ids
        if TaskRecord.objects.in_workflow(root_id).unfinished().exists()
        or chords.filter(group_id__in=bodies.filter(root_id=root_id).values("after_id")).exists()
    }


def still_to_come(root_id: str) -> QuerySet[TaskStep]:
    """The steps of a workflow that have no record yet, in no order."""
    come = TaskRecord.objects.filter(task_id=OuterRef("task_id")).exclude(note=FORGOTTEN)
    return TaskStep.objects.filter(~Exists(come), root_id=root_id).exclude(place=ERRBACK)


def insert_steps(steps: Iterable[Step]) -> set[str]:
    """Insert those that are new, in the current transaction; the ids of those that are unfinished tasks already.

    What has ended under such an id is of an earlier time, and forgotten.
    """
    rows = execute_many(_INSERT, _COLUMNS, [step[:-1] for step in steps]).fetchall()
    if ended := [task_id for task_id, is_ended in rows if is_ended]:
        TaskRecord.objects.filter(task_id__in=ended).update(note=FORGOTTEN)
        TaskResult.objects.using(DEFAULT_DB_ALIAS).filter(task_id__in=ended).delete()
    return {task_id for task_id, is_ended in rows if not is_ended}


def _unique(root_id: str, found: Iterable[Found], known: set[str]) -> list[Step]:
    steps = []
    for task_id, name, after_id, place, options in found:
        if task_id not in known:
            known.add(task_id)
            steps.append(Step(task_id, name, root_id, after_id, place, options))
    return steps


def _in_options(options: Mapping[str, Any], after: str) -> Iterator[Found]:
    before = after
    for signature in reversed(maybe_list(options.get("chain")) or ()):  # the first to come is the last
        yield from _in_signature(signature, before, "chain")
        before = _id_of(signature) or before
    for option in ("chord", "link", "link_error"):
        for signature in maybe_list(options.get(option)) or ():
            yield from _in_signature(signature, after, PLACES[option])


def _in_signature(signature: Any, after: str, place: str) -> Iterator[Found]:
    if not isinstance(signature, Mapping):
        return
    options, kwargs = signature.get("options") or {}, signature.get("kwargs") or {}
    own_id, kind = options.get("task_id"), signature.get("subtask_type")
    if kind == "chain":
        for task in kwargs.get("tasks") or ():
            yield from _in_signature(task, after, place)
            after, place = _id_of(task) or after, "chain"
    elif kind == "group":
        for task in kwargs.get("tasks") or ():
            yield from _in_signature(task, after, place)
    elif kind == "chord":
        header = kwargs.get("header") or ()
        for task in (header.get("kwargs") or {}).get("tasks") or () if isinstance(header, Mapping) else header:
            yield from _in_signature(task, after, place)
        yield from _in_signature(kwargs.get("body"), own_id or after, "body")
    elif isinstance(own_id, str):
        yield own_id, str(signature.get("task") or "unknown"), after, place, options
    yield from _in_options({**options, "chord": None} if kind else options, own_id or after)


def _id_of(signature: Any) -> str | None:
    """The id by which what comes next knows it: a chord's is that of its body, a chain's that of its last task."""
    if not isinstance(signature, Mapping):
        return None
    kwargs = signature.get("kwargs") or {}
    if signature.get("subtask_type") == "chord":
        return _id_of(kwargs.get("body"))
    if signature.get("subtask_type") == "chain" and kwargs.get("tasks"):
        return _id_of(kwargs["tasks"][-1])
    return (signature.get("options") or {}).get("task_id")


_COLUMNS = {"task_id": "varchar", "name": "varchar", "root_id": "varchar", "after_id": "varchar", "place": "varchar"}
_READY = ", ".join(f"'{state}'" for state in states.READY_STATES)
_INSERT = f"""
WITH given AS (SELECT * FROM {rowset(_COLUMNS)}),
known AS (
    SELECT task_id, state IN ({_READY}) AS has_ended FROM {TaskRecord._meta.db_table}
    WHERE task_id IN (SELECT task_id FROM given)
),
added AS (
    INSERT INTO {TaskStep._meta.db_table} ({", ".join(_COLUMNS)})
    SELECT {", ".join(_COLUMNS)} FROM given WHERE task_id NOT IN (SELECT task_id FROM known WHERE NOT has_ended)
    ON CONFLICT (task_id) DO UPDATE SET
        name = excluded.name, root_id = excluded.root_id, after_id = excluded.after_id, place = excluded.place
)
SELECT task_id, has_ended FROM known
"""
