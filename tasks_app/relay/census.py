"""What the broker has lost is published again: after it restarted empty, and message by message."""

import logging
import time
from datetime import datetime

from django.db.models import Q, QuerySet

from tasks_app import broker
from tasks_app.conf import conf
from tasks_app.marking import Marker
from tasks_app.models import TaskRecord
from tasks_app.relay.refused import fail_waiting
from tasks_app.statements import brief_transaction

logger = logging.getLogger(__name__)

#: Rows that one census judges.
CENSUS_ROWS = 5000
#: Messages of one run that were lost on their way, at which its task has failed.
MOST_MISSED = 10


def census_pause() -> float:
    """Seconds between two looks at the broker. In between a worker that took a message off its queue tells of it."""
    return max(conf.TASK_CENSUS_GRACE / 6, conf.TASK_LEASE / 2)


def republish_after_restart() -> int:
    """Publish again what a broker that restarted empty has forgotten. Twice: some were being marked as published."""
    if broker.has_epoch():
        return 0
    count = 0
    for pause in (2 * Marker.GATHER, 0):
        with brief_transaction():
            count += TaskRecord.objects.mark_all_forgotten()
        time.sleep(pause)
    broker.set_epoch()
    if count:
        logger.warning("The broker had restarted empty: %d messages are published again.", count)
    return count


class Census:
    """Publishes again what the broker has lost: what was published, and is neither in its queues nor with a worker.

    Seen so twice, since a message may be on its way to a worker just then. A mistake is harmless: the message carries a
    new gen, and the old one is dropped. Each look goes on where the last one ended, so that what waits for long in one
    queue does not hide what was lost from another. What is lost again and again, as the message of a task that ends
    whoever takes it, has failed in the end.
    """

    def __init__(self) -> None:
        self._missing: set[tuple[str, int]] = set()
        self._seen_until: tuple[datetime | None, int] | None = None

    def look(self) -> int:
        rows = TaskRecord.objects.unclaimed(conf.TASK_CENSUS_GRACE)
        rows = rows.only("task_id", "gen", "queue", "priority", "published_at")
        page = list(self._after_the_last(rows)[:CENSUS_ROWS])
        self._seen_until = (page[-1].published_at, page[-1].pk) if len(page) == CENSUS_ROWS else None
        records = page + list(rows.filter(task_id__in=[task_id for task_id, _ in self._missing]))
        if not records:
            self._missing = set()
            return 0
        held = broker.held({record.queue for record in records})
        missing = _of_our_lists({(record.task_id, record.gen) for record in records if not held.may_hold(record)})
        lost, self._missing = missing & self._missing, missing - self._missing
        if not lost:
            return 0
        with brief_transaction():
            count = TaskRecord.objects.mark_missed(lost, MOST_MISSED)
        logger.warning("%d messages had been lost by the broker or on their way: they are published again.", count)
        if count < len(lost):
            _give_up(lost)
        return count

    def _after_the_last(self, rows: QuerySet[TaskRecord]) -> QuerySet[TaskRecord]:
        if self._seen_until is None:
            return rows
        at, pk = self._seen_until
        return rows.filter(Q(published_at__gt=at) | Q(published_at=at, pk__gt=pk))


def _give_up(lost: set[tuple[str, int]]) -> None:
    """Fail those of these that were lost as often before as may be."""
    often = TaskRecord.objects.filter(missed__gte=MOST_MISSED - 1, task_id__in=[task_id for task_id, _ in lost])
    for task_id, gen in lost.intersection(often.values_list("task_id", "gen")):
        logger.error("Task %s has failed: its message was lost %d times.", task_id, MOST_MISSED)
        fail_waiting(
            task_id, gen,
            f"Its message was lost {MOST_MISSED} times before a worker could start it. Does it end whatever takes it? "
            "See the workers' logs, and whether one consumes its queue, and run it again.",
        )  # fmt: skip


def _of_our_lists(sent: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Without those that went to an exchange of their own, which need not lead to a list that can be read."""
    rows = TaskRecord.objects.filter(task_id__in=[task_id for task_id, _ in sent]).values_list("task_id", "options")
    elsewhere = {task_id for task_id, options in rows if isinstance(options, dict) and "exchange" in options}
    return {(task_id, gen) for task_id, gen in sent if task_id not in elsewhere}
