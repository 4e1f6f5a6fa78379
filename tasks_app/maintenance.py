"""What keeps the records moving without a submitter or a worker: each function does one batch and returns a count."""

import logging
import os
import socket
import threading
import time
from datetime import datetime, timedelta

from celery import current_app
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, transaction
from django.db.models import Min, Q
from django.db.models.functions import Now
from django.utils import timezone
from django_celery_results.models import ChordCounter
from kombu.exceptions import OperationalError

from tasks_app import broker, limits, messages, transport
from tasks_app.chords import INTERRUPTED_AFTER
from tasks_app.exceptions import InvalidSubmission, MessageRefused
from tasks_app.execution import aside, busy_threads, patiently
from tasks_app.models import Duty, TaskRecord, printable
from tasks_app.moves import LEASE
from tasks_app.notify import DUE_CHANNEL, Listener
from tasks_app.publishing import Marker
from tasks_app.statements import brief_transaction

logger = logging.getLogger(__name__)

#: Seconds after which a message that nobody claimed is looked for in the broker.
CENSUS_GRACE: float = getattr(settings, "TASK_CENSUS_GRACE", 60.0)
#: Seconds between two looks at the broker. In between a worker that took a message off its queue has told of it.
CENSUS_PAUSE = max(CENSUS_GRACE / 6, LEASE / 2)
#: Rows that one census judges.
CENSUS_ROWS = 5000
#: Seconds until a message is tried again that the broker did not take.
POSTPONED = 10
#: Messages of one run that no worker could take, and that were lost on their way, at which its task has failed.
MOST_REFUSED, MOST_MISSED = 3, 10


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


def note_refused(task_id: str, gen: int, reason: str) -> None:
    """Let a message that a worker could not take be published again, a few times; then its task has failed."""
    patiently(lambda: _note_refused(task_id, gen, printable(reason)[:1000]), task_id)


def _note_refused(task_id: str, gen: int, reason: str) -> None:
    with brief_transaction():
        if TaskRecord.objects.mark_refused(task_id, gen, reason, MOST_REFUSED):
            return
    times = f"No worker could take its message, {MOST_REFUSED} times"
    _fail_waiting(task_id, gen, f"{times}: {reason}. Mend what that names, and run it again.")


def _fail_waiting(task_id: str, gen: int, reason: str) -> bool:
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


def expire_waiting(limit: int = 500) -> int:
    """Revoke what nobody started before it expired."""
    with brief_transaction():
        revoked = TaskRecord.objects.mark_expired(limit)
        if revoked:
            current_app.backend.follow_revoked(revoked)
    return len(revoked)


def rescue_lost(limit: int = 100) -> int:
    """End runs whose lease ran out: nobody renews it, so their worker is gone, or knows of them no longer."""
    ids = list(TaskRecord.objects.lost().values_list("pk", flat=True)[:limit])
    for pk in ids:
        with brief_transaction():
            run = TaskRecord.objects.lost().select_for_update(skip_locked=True).filter(pk=pk).first()
            if run is not None:
                reason = f"its lease ran out: worker {run.worker} was lost, or cut off, during the run"
                current_app.backend.mark_as_lost(run.task_id, run.gen, reason)
    return len(ids)


def end_interrupted_chords(limit: int = 100) -> int:
    """End chords that were decided, by their last member or one that failed, in a process that then was killed."""
    chords = list(ChordCounter.objects.using(DEFAULT_DB_ALIAS).filter(count=0)[:limit])
    for chord in chords:
        if current_app.backend.is_interrupted(chord):
            logger.warning("Chord %s was decided, and its body not sent: it is sent now.", chord.group_id)
            current_app.backend.end_interrupted(chord)
    return len(chords)


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


def next_due_at() -> datetime | None:
    """When the next row is to be published."""
    return TaskRecord.objects.aggregate(at=Min("publish_at"))["at"]


def take_duty(name: str, pause: float) -> bool:
    """Whether it is this process that shall do what one alone does each `pause` seconds.

    It goes on with it; another takes over where it was silent for three times as long.
    """
    me = f"{socket.gethostname()}:{os.getpid()}"
    mine = Duty.objects.filter(name=name, holder=me).update(done_at=Now())
    silent = Duty.objects.filter(name=name, done_at__lt=Now() - timedelta(seconds=3 * pause))
    if mine or silent.update(holder=me, done_at=Now()):
        return True
    return bool(Duty.objects.bulk_create([Duty(name=name, holder=me, done_at=Now())], ignore_conflicts=True)) and (
        Duty.objects.filter(name=name, holder=me).exists()
    )


class Census:
    """Publishes again what the broker has lost: what was published, and is neither in its queues nor with a worker.

    Seen so twice, since a message may be on its way to a worker just then. A mistake is harmless: the message carries a
    new gen, and the old one is dropped. Each look goes on where the last one ended, so that what waits for long in one
    queue does not hide what was lost from another. What is lost again and again, as the message of a task that ends
    whoever takes it, has failed in the end.
    """

    def __init__(self):
        self._missing: set[tuple[str, int]] = set()
        self._seen_until: tuple[datetime, int] | None = None

    def look(self) -> int:
        rows = TaskRecord.objects.unclaimed(CENSUS_GRACE)
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

    def _after_the_last(self, rows):
        if self._seen_until is None:
            return rows
        at, pk = self._seen_until
        return rows.filter(Q(published_at__gt=at) | Q(published_at=at, pk__gt=pk))


def _give_up(lost: set[tuple[str, int]]) -> None:
    """Fail those of these that were lost as often before as may be."""
    often = TaskRecord.objects.filter(missed__gte=MOST_MISSED - 1, task_id__in=[task_id for task_id, _ in lost])
    for task_id, gen in lost.intersection(often.values_list("task_id", "gen")):
        logger.error("Task %s has failed: its message was lost %d times.", task_id, MOST_MISSED)
        _fail_waiting(
            task_id, gen,
            f"Its message was lost {MOST_MISSED} times before a worker could start it. Does it end whatever takes it? "
            "See the workers' logs, and whether one consumes its queue, and run it again.",
        )  # fmt: skip


def _of_our_lists(sent: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Without those that went to an exchange of their own, which need not lead to a list that can be read."""
    rows = TaskRecord.objects.filter(task_id__in=[task_id for task_id, _ in sent]).values_list("task_id", "options")
    elsewhere = {task_id for task_id, options in rows if isinstance(options, dict) and "exchange" in options}
    return {(task_id, gen) for task_id, gen in sent if task_id not in elsewhere}


class Rescuer:
    """Ends lost runs, and finds lost messages, each in its time.

    Blind for long, as every one is while Postgres is away, it waits for a whole lease before it takes a run for lost:
    until then the workers renew the leases that they could not renew either.
    """

    def __init__(self):
        self._seen_at = -LEASE
        self._trusts_at = self._censor_at = self._end_chords_at = 0.0
        self._census = Census()

    def end_lost_runs(self, now: float) -> None:
        """At `now`, in seconds of the monotonic clock. Called after a look at the database worked."""
        if now - self._seen_at > LEASE / 2:
            self._trusts_at = now + LEASE
        if now - self._seen_at >= LEASE / 6:
            self._seen_at = now
            if now >= self._trusts_at:
                rescue_lost()

    def end_chords(self, now: float) -> None:
        if now >= self._end_chords_at:
            self._end_chords_at = now + INTERRUPTED_AFTER
            if take_duty("chords", INTERRUPTED_AFTER):
                aside(end_interrupted_chords)

    def find_lost_messages(self, now: float) -> None:
        if broker.is_readable():
            republish_after_restart()
            if now >= self._censor_at:
                self._censor_at = now + CENSUS_PAUSE
                if take_duty("census", CENSUS_PAUSE):
                    self._census.look()


class Relay(threading.Thread):
    """Publishes what is due, and rescues what was lost, in every `runscheduler` and every worker's parent process.

    Woken by NOTIFY, polling behind it, it sleeps until the next row is due.
    """

    #: Seconds: between polls, and between tries while the database or the broker is away.
    POLL, BACK_OFF = 1.0, 1.0
    #: Between looks at a row that is due, and that somebody else holds.
    HELD = 0.05

    def __init__(self):
        super().__init__(name="relay", daemon=True)
        self._stopping = threading.Event()
        self._listener = Listener(DUE_CHANNEL)
        self._rescuer = Rescuer()

    def run(self) -> None:
        busy_threads.add(threading.get_ident())
        away = False
        while not self._stopping.is_set():
            try:
                pause = self._turn()
                away = False
            except (OperationalError, DatabaseError) as error:
                if not away:
                    logger.warning("Relay waits, what is due stays in Postgres: %s", str(error).strip())
                away, pause = True, self.BACK_OFF
                connections.close_all()
            except Exception:  # a relay that is not there is worse than one that repeats itself
                logger.exception("The relay's turn failed; it goes on.")
                pause = self.BACK_OFF
                connections.close_all()
            if pause and not self._wait(pause):
                self._stopping.wait(pause)
        busy_threads.discard(threading.get_ident())
        connections.close_all()
        self._listener.close()

    def stop(self, timeout: float = 5) -> None:
        """End the thread; returns when it has, or after `timeout` seconds."""
        if self.is_alive():
            self._stopping.set()
            self._listener.wake()
            self.join(timeout)

    def _wait(self, pause: float) -> bool:
        try:
            self._listener.wait(pause)
        except Exception:
            logger.exception("The relay cannot listen; it polls.")
            return False
        return True

    def _turn(self) -> float:
        """Do what is due, first what needs no broker; the seconds until there may be more."""
        expired = expire_waiting()
        self._rescuer.end_lost_runs(time.monotonic())
        self._rescuer.end_chords(time.monotonic())
        limits.admit_parked()
        published = publish_due()
        self._rescuer.find_lost_messages(time.monotonic())
        return 0.0 if published or expired else self._pause()

    def _pause(self) -> float:
        at = next_due_at()
        until_due = (at - timezone.now()).total_seconds() if at else self.POLL
        return min(max(until_due, self.HELD), self.POLL)
