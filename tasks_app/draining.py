"""What only the console knows, and nobody would run once it is gone: counted, waited for, or handed to plain Celery.

The broker has the messages of what is queued. What is to start later, is to be retried, or waits for a slot of a limit
has none yet: it is a row, and the relay publishes it when its time has come.
"""

from celery import Celery
from django.db.models import Count, Q
from kombu.exceptions import OperationalError

from tasks_app.models import PHASES, TaskRecord
from tasks_app.recording import current_app
from tasks_app.seams.celery import itself
from tasks_app.storable import as_sent

_KNOWN_HERE = Q(publish_at__isnull=False) | Q(parked_at__isnull=False)


def left(everything: bool = False) -> dict[str, int]:
    """How many tasks are in each phase of those that only the console knows; or of all that are unfinished."""
    tasks = TaskRecord.objects.unfinished()
    if not everything:
        tasks = tasks.filter(_KNOWN_HERE)
    counts = tasks.aggregate(**{phase: Count("pk", filter=is_in) for phase, is_in in PHASES.items()})
    return {phase: count for phase, count in counts.items() if count}


def hand_over(after: int = 0) -> tuple[int, str] | None:
    """Hand the next of these tasks to plain Celery: its message goes out now, with its ETA, and its row is deleted.

    `after`: the primary key that it is to come after. Returns its own, and why it was not handed over, "" where it was.
    None: there is no other.

    Raises kombu's OperationalError where the broker does not answer; the row stays. What happens in between, a crash
    or a relay that runs on, leaves both, and the task may run twice: rather that than never.
    """
    record = TaskRecord.objects.waiting().filter(_KNOWN_HERE, pk__gt=after).order_by("pk").first()
    if record is None:
        return None
    try:
        if record.options.get("chord"):
            return record.pk, "it is a member of a chord, which only the console counts"
        _send_plainly(record)  # in no transaction: a project's handlers of publishing are called
    except OperationalError:
        raise
    except Exception as error:  # of this row, as it may be of one that was written by SQL
        return record.pk, f"no message can be made of it: {error}"
    TaskRecord.objects.waiting().filter(pk=record.pk, gen=record.gen).delete()
    return record.pk, ""


def _send_plainly(record: TaskRecord) -> None:
    options = dict(as_sent(record.options))
    headers = options.pop("headers", None) or {}
    Celery.send_task(
        itself(current_app), record.name, as_sent(record.args), as_sent(record.kwargs),
        task_id=record.task_id, root_id=record.root_id, parent_id=record.parent_id, group_id=record.group_id,
        queue=record.queue, priority=record.priority, eta=record.eta or record.publish_at, expires=record.expires,
        retries=record.retries, headers=headers, add_to_parent=False, **options,
    )  # fmt: skip
