"""What becomes of messages that no worker can take, and of what waits in a queue that is purged."""

from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from tasks_app import transport
from tasks_app.exceptions import MessageRefused
from tasks_app.execution import patiently
from tasks_app.models import TaskRecord
from tasks_app.recording import current_app
from tasks_app.statements import brief_transaction
from tasks_app.storable import printable

#: Messages of one run that no worker could take, at which its task has failed.
MOST_REFUSED = 3


def note_refused(task_id: str, gen: int, reason: str) -> None:
    """Let a message that a worker could not take be published again, a few times; then its task has failed."""
    patiently(lambda: _note_refused(task_id, gen, printable(reason)[:1000]), task_id)


def _note_refused(task_id: str, gen: int, reason: str) -> None:
    with brief_transaction():
        if TaskRecord.objects.mark_refused(task_id, gen, reason, MOST_REFUSED):
            return
    times = f"No worker could take its message, {MOST_REFUSED} times"
    fail_waiting(task_id, gen, f"{times}: {reason}. Mend what that names, and run it again.")


def fail_waiting(task_id: str, gen: int, reason: str) -> bool:
    """Fail a task that still waits for the message with this gen; whether it did."""
    with brief_transaction():
        waiting = TaskRecord.objects.waiting().filter(task_id=task_id, gen=gen)
        record = waiting.select_for_update(skip_locked=True).first()
        if record is not None:
            current_app.backend.fail_waiting(record, MessageRefused(reason))
    return record is not None


def revoke_purged(queue: str, batch: int = 1000) -> int:
    """Revoke what waits in a queue that is purged, as by `celery purge`; not what is to start later, or that a worker
    holds already."""
    sent = Q(published_at__isnull=False) | Q(publish_at__lte=Now()) | Q(parked_at__isnull=False)
    held = Q(lease_until__gt=Now())
    waiting = TaskRecord.objects.waiting().filter(sent, queue=queue).exclude(held).order_by("pk")
    last, count = 0, 0
    while ids := list(waiting.filter(pk__gt=last).values_list("pk", flat=True)[:batch]):
        last = ids[-1]
        with transaction.atomic():
            revoked = TaskRecord.objects.filter(pk__in=ids).mark_revoked("its queue was purged")
            current_app.backend.follow_revoked(revoked)
        count += len(revoked)
    return count


transport.on_refused, transport.on_purged = note_refused, revoke_purged
