"""What is due: published; what nobody started before it expired: revoked."""

import logging
from datetime import datetime

from django.db.models import Min
from kombu.exceptions import OperationalError

from tasks_app import limits, messages
from tasks_app.exceptions import InvalidSubmission
from tasks_app.models import TaskRecord
from tasks_app.recording import current_app
from tasks_app.statements import brief_transaction

logger = logging.getLogger(__name__)

#: Seconds until a message is tried again that the broker did not take.
POSTPONED = 10


def publish_due(limit: int = 500) -> int:
    """Publish a batch of what is due: ETAs, countdowns and retries, and what a submitter left unpublished.

    Any number of relays share the rows out by their locks. A crash between publishing and marking sends a message
    twice; the claim drops the second. Raises kombu's OperationalError where the broker does not answer.
    """
    with brief_transaction():
        records = list(TaskRecord.objects.due_for_publishing(limit))
        if published := _publish(limits.admit(records)):
            TaskRecord.objects.mark_published([(record.task_id, record.gen) for record in published])
    return len(records)


def _publish(records: list[TaskRecord]) -> list[TaskRecord]:
    """Publish together; where that fails, one by one, so that a bad one fails alone. Returns those that went out.

    A broker that fails a message, and answers otherwise, is not away: kombu knows no better what was wrong. That
    message is tried again later, and keeps nobody waiting.
    """
    records = [record for record in records if _is_sound(record)]
    if not records:
        return []
    try:
        current_app.publish(records)
    except Exception as error:
        if isinstance(error, OperationalError):
            current_app.publisher.ask()  # raises, where it is away
        if len(records) > 1:
            return [record for each in records for record in _publish([each])]
        logger.exception("No message can be made of task %s", records[0].task_id)
        if isinstance(error, OperationalError):
            TaskRecord.objects.mark_postponed(records[0], f"not published, tried again: {error}", POSTPONED)
        else:
            current_app.backend.fail_unpublishable(records[0], error)
        return []
    return records


def _is_sound(record: TaskRecord) -> bool:
    """Whether a worker could take its message; where not, as may be of a row that was written by SQL, it has failed."""
    try:
        messages.check_row(record, current_app.accepts)
    except InvalidSubmission as error:
        current_app.backend.fail_unpublishable(record, error)
        return False
    return True


def expire_waiting(limit: int = 500) -> int:
    """Revoke what nobody started before it expired."""
    with brief_transaction():
        revoked = TaskRecord.objects.mark_expired(limit)
        if revoked:
            current_app.backend.follow_revoked(revoked)
    return len(revoked)


def next_due_at() -> datetime | None:
    """When the next row is to be published."""
    return TaskRecord.objects.aggregate(at=Min("publish_at"))["at"]
