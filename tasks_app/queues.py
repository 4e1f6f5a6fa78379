"""Which queues workers read: a task in one that none reads would wait for ever, without a word.

Each worker says so of its queues now and then. One that is full of long runs says it too, and one whose process hangs
says it no more.
"""

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Min

from tasks_app import moments, states
from tasks_app.models import QueueReader, TaskRecord
from tasks_app.statements import execute

#: Seconds between two such words of a worker; and for how long a queue is unread, while something waits in it, before
#: people are told.
SAID_EACH, PATIENCE = 20, timedelta(minutes=1)


class Reading:
    """What a worker says of its queues."""

    def __init__(self) -> None:
        self._said_at, self._said = float("-inf"), frozenset[str]()

    def say(self, queues: Collection[str]) -> None:
        """That it reads them, unless it has just said so."""
        if queues and (time.monotonic() - self._said_at >= SAID_EACH or not self._said.issuperset(queues)):
            execute(_SAY, [sorted(queues)])  # in one order: two workers at once shall not wait for each other
            self._said_at, self._said = time.monotonic(), frozenset(queues)


@dataclass(frozen=True)
class Unread:
    """A queue that no worker reads, though something waits in it."""

    queue: str
    #: Since when the first of what waits does so.
    since: datetime

    def __str__(self) -> str:
        return (
            f"No worker reads the queue {self.queue}, and tasks wait in it: "
            f"start one, `manage.py celery worker -Q {self.queue}`."
        )


def unread(only: Iterable[str] | None = None) -> list[Unread]:
    """The queues in which something has waited for a minute that no worker has read meanwhile; `only`: of these."""
    long_ago = moments.now() - PATIENCE
    read = set(QueueReader.objects.filter(read_at__gte=long_ago).values_list("queue", flat=True))
    waiting = TaskRecord.objects.waiting().filter(publish_at=None, published_at__lt=long_ago).exclude(queue__in=read)
    if only is not None:
        waiting = waiting.filter(queue__in=list(only))
    since = dict(waiting.order_by().values_list("queue").annotate(Min("published_at")))
    # By a worker of the version before this one, which says nothing.
    running = TaskRecord.objects.filter(state=states.STARTED, queue__in=list(since), lease_until__gt=long_ago)
    busy = set(running.order_by().values_list("queue", flat=True).distinct())
    return [Unread(queue, at) for queue, at in sorted(since.items()) if queue not in busy]


_SAY = f"""
INSERT INTO {QueueReader._meta.db_table} (queue, read_at)
SELECT queue, clock_timestamp() FROM unnest(%s::text[]) AS queue
ON CONFLICT (queue) DO UPDATE SET read_at = excluded.read_at
"""
