"""Backfills: due times of a range, run for the first time, or again. waiting.py runs them; here they are made.

A due time has one row in the ledger, also when it is run again: the row then tells of the latest run, and names the
task before it. While it waits for its turn, it keeps what it was, so that a cancelled backfill leaves no trace of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, takewhile

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from scheduling_app.conf import conf
from scheduling_app.ledger import policies
from scheduling_app.ledger.marks import Mark, marks_between
from scheduling_app.ledger.policies import Outcome, Reason, Run
from scheduling_app.models import CHANGED_CHANNEL, Backfill, Schedule, ScheduleRun
from scheduling_app.timing.kinds import MICROSECOND
from tasks_app import moments, states
from tasks_app.notify import notify

State, Which = Backfill.State, Backfill.Which
#: Backfills of a schedule that are kept.
KEPT = 20
#: Reasons of what did not run: while a row waits, they tell whether it had been skipped, or had fired.
_SKIPPED = (Reason.MISFIRE, Reason.OVERLAP, Reason.BLACKOUT, Reason.PAUSED, Reason.LIMIT, Reason.INVALID)
_PHASES: dict[str, set[str | None]] = {
    Which.MISSING: {None, "skipped"},
    Which.FAILED: {"failed", "revoked", "rejected"},
    Which.ALL: {None, "skipped", "failed", "revoked", "rejected", "succeeded", "ignored", "fired"},
}


class BackfillError(ValueError):
    """Why there can be no such backfill: str() says what to change."""


@dataclass(frozen=True)
class DueTime:
    """A due time of a range, and what the ledger has for it."""

    at: datetime
    mark: Mark | None
    #: Whether it is older than what the ledger keeps: it may have run, and is not among those that did not.
    is_forgotten: bool = False

    def is_chosen(self, which: str) -> bool:
        if self.is_forgotten and which == Which.MISSING:
            return False
        return (self.mark.phase if self.mark else None) in _PHASES[which]


def due_times(schedule: Schedule, start: datetime, end: datetime) -> list[DueTime]:
    """The due times from `start` to `end`, both included, and not later than now. Raises TimingError, BackfillError."""
    now = moments.now()
    if end < start:
        raise BackfillError("It ends before it starts.")
    if start > now:
        raise BackfillError("It starts in the future: choose a range of times that have passed.")
    end = min(end, now)
    if schedule.enabled and schedule.next_fire_at is not None:  # what is due and not fired yet is the schedulers'
        end = min(end, schedule.next_fire_at - MICROSECOND)
    after = schedule.timing().times_after(start - MICROSECOND)
    times = list(islice(takewhile(lambda at: at <= end, after), Backfill.MOST + 1))
    if len(times) > Backfill.MOST:
        raise BackfillError(f"More than {Backfill.MOST:,} due times: choose a shorter range.")
    return _marked(schedule, times)


def _marked(schedule: Schedule, times: Sequence[datetime]) -> list[DueTime]:
    if not times:
        return []
    marks = {mark.scheduled_for: mark for mark in marks_between(schedule, times[0], times[-1])}
    latest = schedule.runs.order_by("-scheduled_for").values_list("scheduled_for", flat=True)
    kept_since = next(iter(latest[conf.SCHEDULE_RUNS_KEPT - 1 : conf.SCHEDULE_RUNS_KEPT]), None)
    return [
        DueTime(at, marks.get(at), is_forgotten=at not in marks and kept_since is not None and at < kept_since)
        for at in times
    ]


@transaction.atomic
def start(
    schedule: Schedule,
    times: Iterable[DueTime],
    *,
    which: str = Which.MISSING,
    newest_first: bool = False,
    concurrency: int = 1,
    by: str = "",
) -> Backfill:
    """Begin with those of `times` that are chosen, up to `concurrency` at once. Raises BackfillError where none is."""
    if concurrency < 1:
        raise BackfillError("At least one run at once.")
    chosen = [time for time in times if time.is_chosen(which)]
    if not chosen:
        raise BackfillError("None of these times is to be run.")
    backfill = Backfill.objects.create(
        schedule=schedule,
        start_at=chosen[0].at,
        end_at=chosen[-1].at,
        which=which,
        newest_first=newest_first,
        concurrency=concurrency,
        created_by=by,
    )
    known = [time.at for time in chosen if time.mark]
    settled = schedule.runs.filter(scheduled_for__in=known).exclude(outcome=Outcome.WAITING)
    # Another backfill may have begun with them since they were looked at.
    settled = settled.exclude(record__state__in=states.UNREADY_STATES)
    settled.update(outcome=Outcome.WAITING, backfill=backfill)
    new = [time.at for time in chosen if not time.mark]
    runs = [Run(schedule, at, Outcome.WAITING, Reason.BACKFILL, backfill_id=backfill.pk) for at in new]
    ScheduleRun.objects.insert(runs)
    backfill.total = backfill.runs.count()
    if not backfill.total:
        raise BackfillError("None of these times is to be run.")
    backfill.save(update_fields=["total"])
    old = schedule.backfills.exclude(state__in=[State.RUNNING, State.PAUSED]).order_by("-pk")
    Backfill.objects.filter(pk__in=list(old.values_list("pk", flat=True)[KEPT:])).delete()
    notify(CHANGED_CHANNEL)
    return backfill


def make_up_for(schedule: Schedule, since: datetime, until: datetime, only_latest: bool, by: str) -> Backfill | None:
    """Run what came due from `since` to `until` and did not run, or the latest alone; at most Schedule.MAX_CATCH_UP."""
    timing = schedule.timing()
    first = timing.next_after(since - MICROSECOND)
    if first is None or first > until:
        return None
    passed = _marked(schedule, policies.due_times(timing, first, until).times)
    times = [time for time in passed if time.is_chosen(Which.MISSING)]
    times = times[-1:] if only_latest else times[-Schedule.MAX_CATCH_UP :]
    return start(schedule, times, concurrency=schedule.max_instances, by=by) if times else None


def pause(backfills: QuerySet[Backfill]) -> int:
    """Start no more of its runs; those that run go on."""
    return backfills.filter(state=State.RUNNING).update(state=State.PAUSED)


def resume(backfills: QuerySet[Backfill]) -> int:
    changed = backfills.filter(state=State.PAUSED).update(state=State.RUNNING)
    notify(CHANGED_CHANNEL)
    return changed


@transaction.atomic
def cancel(backfill: Backfill) -> bool:
    """End it: what waits is again what it was before, which may be nothing; what runs goes on."""
    unfinished = Backfill.objects.filter(pk=backfill.pk, state__in=[State.RUNNING, State.PAUSED])
    if not unfinished.update(state=State.CANCELLED, finished_at=Now()):
        return False
    waiting = backfill.runs.filter(outcome=Outcome.WAITING)
    waiting.filter(reason=Reason.BACKFILL, fired_at__gte=backfill.created_at).delete()  # made by it
    waiting.filter(reason__in=_SKIPPED).update(outcome=Outcome.SKIPPED, backfill=None)
    waiting.update(outcome=Outcome.FIRED, backfill=None)
    return True
