"""What people do to schedules, on the pages and in the admin alike: done and written to the history in one transaction.

Each takes what it acts on and the user, and returns what it did, in numbers where it is about several.
"""

import contextlib
from collections.abc import Iterable
from itertools import chain, count
from typing import Any

from django.db import transaction
from django.db.models import QuerySet, TextChoices

from scheduling_app.ledger import backfill, firing
from scheduling_app.ledger.backfill import BackfillError, DueTime
from scheduling_app.ledger.policies import Run
from scheduling_app.models import Backfill, Schedule, ScheduleRun
from scheduling_app.sources.fields import COLUMNS
from scheduling_app.timing.clocks import TimingError
from tasks_app import moments
from tasks_app.history import AnyUser, log


class Missed(TextChoices):
    """What becomes of the times that passed while a schedule was paused."""

    NONE = "none", "Nothing"
    LATEST = "latest", "Run the latest"
    ALL = "all", "Run them all"


#: How many are run by hand, or copied, at once, at most.
MOST_RUNS = 500


@transaction.atomic
def run_now(schedules: QuerySet[Schedule], user: AnyUser) -> str:
    """Run each once, now, with its own settings. Its times, and whether it is on, stay as they are."""
    total, chosen = schedules.count(), list(schedules[:MOST_RUNS])
    if total > MOST_RUNS:
        return f"None started: {total} are too many at once, {MOST_RUNS} at most."
    runs = [run_one(schedule, user) for schedule in chosen]
    refused = [run for run in runs if run.outcome != ScheduleRun.Outcome.FIRED]
    said = f"{len(runs) - len(refused)} started{'' if refused else _which(chosen)}"
    return said + "".join(f"; not {run.schedule.name}: {run.detail}" for run in refused[:3])


@transaction.atomic
def run_one(schedule: Schedule, user: AnyUser) -> Run:
    """Run it once, now; the run, which tells its task, or why there is none."""
    run = firing.run_now(schedule, by=user.get_username())
    log(user, [schedule], f"Run by hand: task {run.record_id}." if run.record_id else f"Not run: {run.detail}")
    return run


def pause(schedules: QuerySet[Schedule], user: AnyUser) -> str:
    return _set_enabled(schedules, user, False, "paused")


@transaction.atomic
def resume(schedules: QuerySet[Schedule], user: AnyUser, missed: str = Missed.NONE) -> str:
    """Fire them again, from their next times on. `missed`: which of the times since they were paused are to run now."""
    paused = list(schedules.filter(enabled=False)) if missed != Missed.NONE else []
    said = _set_enabled(schedules, user, True, "resumed")
    total = sum(_make_up_for(schedule, user, only_latest=missed == Missed.LATEST) for schedule in paused)
    return f"{said} {total} missed {'time runs' if total == 1 else 'times run'} now." if paused else said


def _make_up_for(schedule: Schedule, user: AnyUser, only_latest: bool) -> int:
    begun = None
    with contextlib.suppress(TimingError, BackfillError):
        begun = backfill.make_up_for(
            schedule, schedule.switched_at, moments.now(), only_latest=only_latest, by=user.get_username()
        )
    if not begun:
        return 0
    log(user, [schedule], f"Backfill {begun.pk} started, of {begun.total} missed while it was paused.")
    return begun.total


@transaction.atomic
def duplicate(schedules: QuerySet[Schedule], user: AnyUser) -> list[Schedule]:
    """Copies of them, paused, each with a name of its own; what is declared in code is not so in its copy."""
    copies = []
    for schedule in schedules[:MOST_RUNS]:
        defined = {column.attname: getattr(schedule, column.attname) for column in COLUMNS.values()}
        row = Schedule(**defined | {"name": _free_name(schedule.name), "enabled": False})
        copies += Schedule.objects.bulk_create([row])  # not asked whether it is at fault: its original may be
        log(user, copies[-1:], f"Copied from {schedule.name}.")
    return copies


def _free_name(name: str) -> str:
    endings = chain([" (copy)"], (f" (copy {number})" for number in count(2)))
    names = (f"{name[: 200 - len(ending)]}{ending}" for ending in endings)
    return next(each for each in names if not Schedule.objects.filter(name=each).exists())


@transaction.atomic
def start_backfill(schedule: Schedule, times: Iterable[DueTime], user: AnyUser, **choices: Any) -> Backfill:
    """Begin with the chosen ones of these times; `choices` as backfill.start takes them. Raises BackfillError."""
    begun = backfill.start(schedule, times, by=user.get_username(), **choices)
    which = begun.get_which_display().lower()
    start, end = (f"{at:%Y-%m-%d %H:%M:%S} UTC" for at in (begun.start_at, begun.end_at))
    log(user, [schedule], f"Backfill {begun.pk} started: {begun.total} due times from {start} to {end}, {which}.")
    return begun


@transaction.atomic
def pause_backfill(begun: Backfill, user: AnyUser) -> str:
    return _moved(begun, user, backfill.pause(Backfill.objects.filter(pk=begun.pk)), "paused", "what runs goes on")


@transaction.atomic
def resume_backfill(begun: Backfill, user: AnyUser) -> str:
    return _moved(begun, user, backfill.resume(Backfill.objects.filter(pk=begun.pk)), "resumed", "its next times run")


@transaction.atomic
def cancel_backfill(begun: Backfill, user: AnyUser) -> str:
    waiting = begun.runs.filter(outcome=ScheduleRun.Outcome.WAITING).count()
    left = f"{waiting} {'time is' if waiting == 1 else 'times are'} left as {'it was' if waiting == 1 else 'they were'}"
    return _moved(begun, user, backfill.cancel(begun), "cancelled", left)


def _moved(begun: Backfill, user: AnyUser, changed: int, did: str, said: str) -> str:
    if not changed:
        begun.refresh_from_db(fields=["state"])
        return f"Backfill {begun.pk} was not {did}: it is {begun.state}."
    log(user, [begun.schedule], f"Backfill {begun.pk} {did}.")
    return f"Backfill {begun.pk} {did}: {said}."


@transaction.atomic
def _set_enabled(schedules: QuerySet[Schedule], user: AnyUser, enabled: bool, did: str) -> str:
    total = schedules.count()
    changed = list(schedules.exclude(enabled=enabled).order_by("pk").select_for_update(of=("self",)))
    Schedule.objects.filter(pk__in=[schedule.pk for schedule in changed]).set_enabled(enabled)
    log(user, changed, f"{did.capitalize()}.")
    already = total - len(changed)
    were = f", {already} {'was' if already == 1 else 'were'} so already" if already else ""
    return f"{len(changed)} {did}{_which(changed)}{were}."


def _which(schedules: list[Schedule]) -> str:
    return f" ({schedules[0].name})" if len(schedules) == 1 else ""
