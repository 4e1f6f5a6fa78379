"""What others left behind: runs whose worker is gone and chords whose process is, ended; limits of no use, deleted."""

import logging
import os
import socket
from datetime import timedelta

from django.db import DEFAULT_DB_ALIAS
from django.db.models.functions import Now
from django_celery_results.models import ChordCounter

from tasks_app import broker, limits
from tasks_app.chords import INTERRUPTED_AFTER
from tasks_app.conf import conf
from tasks_app.execution import aside
from tasks_app.models import Duty, TaskRecord
from tasks_app.recording import current_app
from tasks_app.relay.census import Census, census_pause, republish_after_restart
from tasks_app.statements import brief_transaction

logger = logging.getLogger(__name__)

#: Seconds between two looks for limits that are of no use any more; and how many of them one turn deletes.
PRUNE_EACH, PRUNED_AT_ONCE = 3600, 1000


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


class Rescuer:
    """Ends lost runs, finds lost messages, deletes idle limits, each in its time.

    Blind for long, as every one is while Postgres is away, it waits for a whole lease before it takes a run for lost:
    until then the workers renew the leases that they could not renew either.
    """

    def __init__(self) -> None:
        self._seen_at = -conf.TASK_LEASE
        self._trusts_at = self._censor_at = self._end_chords_at = self._prune_at = 0.0
        self._census = Census()

    def end_lost_runs(self, now: float) -> None:
        """At `now`, in seconds of the monotonic clock. Called after a look at the database worked."""
        if now - self._seen_at > conf.TASK_LEASE / 2:
            self._trusts_at = now + conf.TASK_LEASE
        if now - self._seen_at >= conf.TASK_LEASE / 6:
            self._seen_at = now
            if now >= self._trusts_at:
                rescue_lost()

    def end_chords(self, now: float) -> None:
        if now >= self._end_chords_at:
            self._end_chords_at = now + INTERRUPTED_AFTER
            if take_duty("chords", INTERRUPTED_AFTER):
                aside(end_interrupted_chords)

    def prune_limits(self, now: float) -> None:
        """Some of them in a turn, so that it keeps nothing else waiting; the rest in the next ones."""
        if now >= self._prune_at:
            is_ours = take_duty("limits", PRUNE_EACH)
            goes_on = is_ours and limits.prune_limits(PRUNED_AT_ONCE) == PRUNED_AT_ONCE
            self._prune_at = now if goes_on else now + PRUNE_EACH

    def find_lost_messages(self, now: float) -> None:
        if broker.is_readable():
            republish_after_restart()
            if now >= self._censor_at:
                pause = census_pause()
                self._censor_at = now + pause
                if take_duty("census", pause):
                    self._census.look()
