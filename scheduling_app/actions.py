"""What people do to schedules, on the pages and in the admin alike: done and written to the history in one transaction.

Each takes a queryset and the user, and returns in numbers what it did.
"""

import contextlib

from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.db.models import QuerySet, TextChoices
from django.utils import timezone

from scheduling_app import backfill, firing
from scheduling_app.models import Schedule, ScheduleRun
from scheduling_app.triggers import TimingError
from tasks_app.pages import log


class Missed(TextChoices):
    """What becomes of the times that passed while a schedule was paused."""

    NONE = "none", "Nothing"
    LATEST = "latest", "Run the latest"
    ALL = "all", "Run them all"


#: How many are run by hand at once, at most.
MOST_RUNS = 500


@transaction.atomic
def run_now(schedules: QuerySet[Schedule], user: AbstractBaseUser) -> str:
    """Run each once, now, with its own settings. Its times, and whether it is on, stay as they are."""
    total, chosen = schedules.count(), list(schedules[:MOST_RUNS])
    if total > MOST_RUNS:
        return f"None started: {total} are too many at once, {MOST_RUNS} at most."
    runs = [firing.run_now(schedule, by=user.get_username()) for schedule in chosen]
    for schedule, run in zip(chosen, runs, strict=True):
        log(user, [schedule], f"Run by hand: task {run.record_id}." if run.record_id else f"Not run: {run.detail}")
    refused = [run for run in runs if run.outcome != ScheduleRun.Outcome.FIRED]
    said = f"{len(runs) - len(refused)} started{_which(chosen)}"
    return said + "".join(f"; not {run.schedule.name}: {run.detail}" for run in refused[:3])


def pause(schedules: QuerySet[Schedule], user: AbstractBaseUser) -> str:
    return _set_enabled(schedules, user, False, "paused")


@transaction.atomic
def resume(schedules: QuerySet[Schedule], user: AbstractBaseUser, missed: str = Missed.NONE) -> str:
    """Fire them again, from their next times on. `missed`: which of the times since they were paused are to run now."""
    paused = list(schedules.filter(enabled=False)) if missed != Missed.NONE else []
    said = _set_enabled(schedules, user, True, "resumed")
    begun = []
    for schedule in paused:
        with contextlib.suppress(TimingError):
            only_latest, by = missed == Missed.LATEST, user.get_username()
            begun.append(backfill.make_up_for(schedule, schedule.switched_at, timezone.now(), only_latest, by))
    total = sum(each.total for each in begun if each)
    return f"{said} {total} missed {'time runs' if total == 1 else 'times run'} now." if paused else said


@transaction.atomic
def _set_enabled(schedules: QuerySet[Schedule], user: AbstractBaseUser, enabled: bool, did: str) -> str:
    total = schedules.count()
    changed = list(schedules.exclude(enabled=enabled).order_by("pk").select_for_update(of=("self",)))
    Schedule.objects.filter(pk__in=[schedule.pk for schedule in changed]).set_enabled(enabled)
    log(user, changed, f"{did.capitalize()}.")
    already = total - len(changed)
    were = f", {already} {'was' if already == 1 else 'were'} so already" if already else ""
    return f"{len(changed)} {did}{_which(changed)}{were}."


def _which(schedules: list[Schedule]) -> str:
    return f" ({schedules[0].name})" if len(schedules) == 1 else ""
