"""What keeps the records moving without a submitter or a worker: each function does one batch and returns a count."""

import logging
import threading
from datetime import datetime

from celery import current_app
from django.db import DatabaseError, connections, transaction
from django.db.models import Min
from django.utils import timezone
from kombu.exceptions import OperationalError

from tasks_app.models import TaskRecord
from tasks_app.notify import DUE_CHANNEL, Listener

logger = logging.getLogger(__name__)


def publish_due(limit: int = 500) -> int:
    """Publish a batch of what is due: ETAs, countdowns and retries, and what a submitter left unpublished.

    Any number of relays share the rows out by their locks. A crash between publishing and marking sends a message
    twice; the claim drops the second. Raises kombu's OperationalError where the broker does not answer.
    """
    with transaction.atomic():
        records = list(TaskRecord.objects.due_for_publishing(limit))
        if published := _publish(records):
            TaskRecord.objects.mark_published([(record.task_id, record.gen) for record in published])
    return len(records)


def _publish(records: list[TaskRecord]) -> list[TaskRecord]:
    """Publish together; where that fails, one by one, so that a bad one fails alone. Returns those that went out."""
    if not records:
        return []
    try:
        current_app.publish(records)
    except OperationalError:
        raise
    except Exception as error:
        if len(records) > 1:
            return [record for each in records for record in _publish([each])]
        logger.exception("No message can be made of task %s", records[0].task_id)
        TaskRecord.objects.mark_unpublishable(records[0], error)
        return []
    return records


def expire_waiting() -> int:
    """Revoke what nobody started before it expired."""
    revoked = TaskRecord.objects.mark_expired()
    current_app.backend.count_revoked(revoked)
    return len(revoked)


def next_due_at() -> datetime | None:
    """When the next row is to be published."""
    return TaskRecord.objects.aggregate(at=Min("publish_at"))["at"]


class Relay(threading.Thread):
    """Publishes what is due, in every `runscheduler` and in every worker's parent process.

    Woken by NOTIFY, polling behind it, it sleeps until the next row is due.
    """

    #: Seconds: between polls, and between tries while the database or the broker is away.
    POLL, BACK_OFF = 1.0, 1.0

    def __init__(self):
        super().__init__(name="relay", daemon=True)
        self._stopping = threading.Event()
        self._listener = Listener(DUE_CHANNEL)

    def run(self) -> None:
        away = False
        while not self._stopping.is_set():
            try:
                expire_waiting()
                pause = 0.0 if publish_due() else self._pause()
                away = False
            except (OperationalError, DatabaseError) as error:
                if not away:
                    logger.warning("Relay waits, what is due stays in Postgres: %s", str(error).strip())
                away, pause = True, self.BACK_OFF
                connections.close_all()
            if pause:
                self._listener.wait(pause)
        connections.close_all()
        self._listener.close()

    def stop(self, timeout: float = 5) -> None:
        """End the thread; returns when it has, or after `timeout` seconds."""
        if self.is_alive():
            self._stopping.set()
            self._listener.wake()
            self.join(timeout)

    def _pause(self) -> float:
        at = next_due_at()
        until_due = (at - timezone.now()).total_seconds() if at else self.POLL
        return min(max(until_due, 0.001), self.POLL)
