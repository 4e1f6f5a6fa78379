"""What people do to schedules, on the pages and in the admin alike: done and written to the history in one transaction.

Each takes a queryset and the user, and returns in numbers what it did.
"""

from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.db.models import QuerySet

from scheduling_app import firing
from scheduling_app.models import Schedule, ScheduleRun
from tasks_app.pages import log

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


def resume(schedules: QuerySet[Schedule], user: AbstractBaseUser) -> str:
    """Fire them again, from their next times on: what passed meanwhile is not made up for."""
    return _set_enabled(schedules, user, True, "resumed")


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
