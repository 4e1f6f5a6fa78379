"""How many of a task run at once, and how often one starts, over all workers together.

    @shared_task(concurrency_limit=3, rate_limit="10/m", limit_key="customer {customer}")

`limit_key` is filled in with a call's arguments: what has the same key shares the limits. By default it is the task's
name. `rate_limit` is written as Celery does it; starts are spaced evenly.

What waits for its turn waits in the table. A submitter never publishes a task with a limit; the relay does, in three
steps: `admit` parks what is due, `admit_parked` gives free slots to parked rows, the most urgent first, and what has
one is published. Even a task that could start at once is parked for a moment, so that none overtakes what waits.

Slots are nowhere but in the rows: one is in use while a row with `slot_at` is unfinished, and each way back to waiting
clears it. So there is nothing to repair after a crash. Slots of a key are given away under the lock of its `Limit`
row, and counted by a statement that begins when the lock is held: it sees all that any earlier holder gave.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from string import Formatter
from typing import Any, NamedTuple

from celery import Task
from celery.utils.time import rate
from django.db.models.functions import Now

from tasks_app import moments
from tasks_app.exceptions import InvalidSubmission
from tasks_app.models import Limit, TaskRecord
from tasks_app.recording import current_app
from tasks_app.statements import brief_transaction, execute
from tasks_app.storable import printable
from tasks_app.uniqueness import bound_arguments, signature_of

#: How far ahead starts are settled: what is later can still be overtaken, and a relay that looks each second keeps up.
HORIZON = timedelta(seconds=1)
#: Slots given for a key in one transaction, and keys looked after in one turn.
SLOTS, KEYS = 500, 100
#: After which a task that this process does not know, so that it cannot tell its limits, is published all the same.
UNKNOWN_FOR = timedelta(minutes=10)
LONGEST_KEY = 255


class Limits(NamedTuple):
    """A task's own: how many at once, if limited, and the time between two starts."""

    at_once: int | None
    apart: timedelta


NONE = Limits(None, timedelta(0))


def key_of(task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """The `limit_key` of such a call; None for a task without limits. Raises InvalidSubmission."""
    if getattr(task, "concurrency_limit", None) is None and not getattr(task, "rate_limit", None):
        return None
    try:
        _declared(task)
        template = getattr(task, "limit_key", None)
        key = task.name if template is None else template.format_map(bound_arguments(task, args, kwargs))
    except KeyError as error:
        raise InvalidSubmission(f"{task.name}: limit_key names {error}, which is no argument of it.") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InvalidSubmission(f"{task.name}: its limits cannot be applied to this call: {error}.") from error
    key = printable(key) or task.name
    if len(key) > LONGEST_KEY:
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        key = f"{key[: LONGEST_KEY - len(digest) - 1]} {digest}"
    return key


def problems(task: Task) -> list[str]:
    """What is wrong with a task's `concurrency_limit`, `rate_limit` and `limit_key`, for its author."""
    found = []
    try:
        declared = _declared(task)
    except ValueError as error:
        return [f"{error}"]
    template = getattr(task, "limit_key", None)
    if template is None:
        return []
    if declared == NONE:
        found.append("limit_key limits nothing without a concurrency_limit or a rate_limit")
    try:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except (ValueError, TypeError) as error:
        return [*found, f"limit_key must be a text with names of arguments in braces, not {template!r:.80}: {error}"]
    names = signature_of(task.__class__).parameters
    unknown = [field for field in fields if field.partition(".")[0].partition("[")[0] not in names]
    found += [f"limit_key names {field!r}, which is no argument of it" for field in unknown]
    sharers = [other for other in current_app.tasks.values() if getattr(other, "limit_key", None) == template]
    found += [
        f"it shares the limit_key {template!r} with {other.name}, but not its concurrency_limit and rate_limit"
        for other in sharers
        if _limits_of(other) != declared
    ]
    return found


def admit(records: Sequence[TaskRecord]) -> list[TaskRecord]:
    """Of rows that are due, locked by the caller's transaction, those to publish now; the others are parked.

    A task that is not registered here, where its limits are not known, is parked for a relay that knows them.
    """
    early = {record.pk for record in records if _is_early(record)}
    if early:
        TaskRecord.objects.filter(pk__in=early).update(publish_at=None, parked_at=Now())
    return [record for record in records if record.pk not in early]


def admit_parked() -> int:
    """Let parked rows be published, as far as there are slots. Returns how many got one."""
    registered = {name: _limits_of(task) for name, task in current_app.tasks.items()}
    limited = [(name, *limits) for name, limits in registered.items() if limits != NONE]
    columns = [list(column) for column in zip(*limited, strict=True)] or [[], [], []]
    known = list(registered)
    heads = TaskRecord.objects.raw(_HEADS_WITH_ROOM, [*columns, HORIZON, HORIZON, known, UNKNOWN_FOR, KEYS])
    return sum(_give_slots(str(head.limit_key), registered.get(head.name, NONE)) for head in heads)


def prune_limits(limit: int) -> int:
    """Delete up to `limit` rows that remember nothing: a `Limit` is made again where it is needed. Returns how many.

    Without this there would be one for each customer there ever was, where a `limit_key` names one.
    """
    idle = Limit.objects.filter(next_at__lt=Now() - timedelta(days=1)).select_for_update(skip_locked=True)
    with brief_transaction():
        keys = list(idle.values_list("pk", flat=True)[:limit])
        return Limit.objects.filter(pk__in=keys).delete()[0] if keys else 0


def _is_early(record: TaskRecord) -> bool:
    if record.limit_key is None or record.slot_at:
        return False
    task = current_app.tasks.get(record.name)
    return task is None or _limits_of(task) != NONE


def _give_slots(key: str, limits: Limits) -> int:
    with brief_transaction():
        shared = _locked(key)
        if shared is None:
            return 0  # another relay gives them just now
        at = _next_start(shared, limits)
        if (room := _room(shared, limits, at)) <= 0:
            return 0
        given = execute(_GIVE_SLOTS, [key, room, at, limits.apart]).rowcount
        if given and limits.apart:
            Limit.objects.filter(key=key).update(next_at=at + given * limits.apart)
    return given


def _locked(key: str) -> Any:
    """The key's Limit with the time `now`, locked; None while another relay holds it."""
    found = Limit.objects.annotate(now=moments.Now()).select_for_update(skip_locked=True).filter(key=key)
    shared = found.first()
    if shared is None:
        Limit.objects.bulk_create([Limit(key=key)], ignore_conflicts=True)
        shared = found.first()
    return shared


def _next_start(shared: Any, limits: Limits) -> datetime:
    """When the next one may start; a time further ahead than this rate puts it was put there before it was changed."""
    if shared.now < shared.next_at <= shared.now + HORIZON + limits.apart:
        return shared.next_at
    return shared.now


def _room(shared: Any, limits: Limits, at: datetime) -> int:
    room = SLOTS
    if limits.at_once is not None:
        held = TaskRecord.objects.unfinished().filter(limit_key=shared.key, slot_at__isnull=False)
        room = min(room, limits.at_once - held.count())
    if limits.apart:
        room = min(room, (shared.now + HORIZON - at) // limits.apart + 1)
    return room


def _limits_of(task: Task) -> Limits:
    """A task's limits as the relay takes them, which must go on: wrong ones (refused by key_of) are none."""
    try:
        return _declared(task)
    except ValueError:
        return NONE


def _declared(task: Task) -> Limits:
    """Raises ValueError."""
    at_once = getattr(task, "concurrency_limit", None)
    if at_once is not None and (not isinstance(at_once, int) or isinstance(at_once, bool) or at_once < 1):
        raise ValueError(f"concurrency_limit must be a whole number from 1 up, not {at_once!r:.80}")
    return Limits(at_once, _apart(getattr(task, "rate_limit", None)))


def _apart(rate_limit: Any) -> timedelta:
    try:
        per_second = rate(rate_limit)
        apart = timedelta(seconds=1 / per_second) if per_second else timedelta(0)
    except (KeyError, ValueError, TypeError, OverflowError):
        apart = timedelta.min
    if not timedelta(0) <= apart <= timedelta(days=366):
        raise ValueError(f"rate_limit must be a rate such as '10/s', '10/m' or '10/h', not {rate_limit!r:.80}")
    return apart


#: Rows that a revoke holds are passed over. (An array, since the planner may join many rows to a new table, of which it
#: knows nothing, one by one.)
_GIVE_SLOTS = """
WITH first AS MATERIALIZED (SELECT ARRAY(
    SELECT id FROM tasks_app_taskrecord
    WHERE limit_key = %s AND parked_at IS NOT NULL AND state IN ('PENDING', 'RETRY')
    ORDER BY priority, id LIMIT %s FOR UPDATE SKIP LOCKED
) AS ids)
UPDATE tasks_app_taskrecord
SET parked_at = NULL, slot_at = clock_timestamp(), publish_at = %s + (array_position(ids, id) - 1) * %s::interval
FROM first WHERE id = ANY(ids)
"""
#: The most urgent parked row of each key that seems to have room, which is seen for certain under the key's lock.
#: Each key is found by one step down the index task_parked, however many rows it has.
_HEADS_WITH_ROOM = """
WITH RECURSIVE head AS (
    (
        SELECT id, limit_key, name, priority, parked_at FROM tasks_app_taskrecord
        WHERE parked_at IS NOT NULL AND state IN ('PENDING', 'RETRY')
        ORDER BY limit_key, priority, id LIMIT 1
    )
    UNION ALL
    SELECT next.* FROM head CROSS JOIN LATERAL (
        SELECT id, limit_key, name, priority, parked_at FROM tasks_app_taskrecord
        WHERE parked_at IS NOT NULL AND state IN ('PENDING', 'RETRY') AND limit_key > head.limit_key
        ORDER BY limit_key, priority, id LIMIT 1
    ) AS next
)
SELECT head.id, head.limit_key, head.name
FROM head
LEFT JOIN unnest(%s::text[], %s::int[], %s::interval[]) AS task (name, at_once, apart) ON task.name = head.name
LEFT JOIN tasks_app_limit AS shared ON shared.key = head.limit_key
    AND shared.next_at > clock_timestamp() + %s
    AND shared.next_at <= clock_timestamp() + %s + coalesce(task.apart, interval '0')
WHERE shared.key IS NULL
    AND (head.name = ANY(%s) OR head.parked_at < clock_timestamp() - %s)
    AND (task.at_once IS NULL OR task.at_once > (
    SELECT count(*) FROM tasks_app_taskrecord AS holder
    WHERE holder.limit_key = head.limit_key AND slot_at IS NOT NULL AND state IN ('PENDING', 'STARTED', 'RETRY')
))
ORDER BY head.priority, head.id LIMIT %s
"""
