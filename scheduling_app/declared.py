"""Schedules that code declares, in the `schedules.py` of an app. (`sync` brings the table in line with them.)

    from scheduling_app.declared import schedule
    from shop.tasks import report

    schedule("nightly report", report, cron="0 3 * * *", timezone="Europe/Berlin", kwargs={"days": 1}, overlap="skip")

Whatever can be said here is the code's, and people cannot change it for long; whether the schedule is on is theirs.
What could not run, or not as meant, is refused here, with what is wrong named.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from celery import Task
from django.apps import apps

from scheduling_app.models import Schedule
from scheduling_app.sources.fields import COLUMNS, all_but
from scheduling_app.sources.rules import ScheduleRefused, complaints
from scheduling_app.timing.clocks import TimingError
from scheduling_app.timing.kinds import parse_every
from tasks_app import moments

_FIELDS = {name: column for name, column in COLUMNS.items() if name != "enabled"}
#: The fields of a schedule with an `owner` that are its code's: people's changes of them would not last.
CODE_FIELDS: Sequence[str] = tuple(_FIELDS)
#: What may be said of a schedule besides its name, its task and when it fires.
OPTIONS = all_but(("enabled", "name", "task", "kind", "unit", "cron", "every", "run_at"))


class DeclarationError(ScheduleRefused):
    """A declaration that cannot be."""


@dataclass(frozen=True)
class Declared:
    """A schedule as an app's code declares it."""

    name: str
    owner: str
    columns: Mapping[str, Any]
    #: Name of its calendar; "" for none.
    blackout: str = ""
    renamed_from: Sequence[str] = ()


#: What has been declared in this process, by name.
DECLARED: dict[str, Declared] = {}


def schedule(
    name: str,
    task: Task | str,
    *,
    cron: str = "",
    every: str = "",
    run_at: datetime | None = None,
    renamed_from: str | Sequence[str] = (),
    **options: Any,
) -> None:
    """Declare a schedule of the app in whose module this is called. Raises DeclarationError.

    It fires by a crontab expression, each `30s`, `90m`, `2h`, `1d` or `1w`, or once at an aware time. `options` are the
    fields of Schedule: `timezone`, `args`, `kwargs`, `queue`, `catch_up`, `jitter` …; `blackout` is a calendar's name.
    """
    module = inspect.currentframe().f_back.f_globals["__name__"]  # type: ignore[union-attr]
    app = apps.get_containing_app_config(module)
    if app is None:
        raise DeclarationError(name, "name", f"{module} is in no installed app: move it to an app's schedules.py.")
    if name in DECLARED:
        raise DeclarationError(name, "name", f"is declared already, by app {DECLARED[name].owner}.")
    if "max_instances" in options:  # as ApsSchedulerManager has it: without a limit of them, they may overlap
        options = {"overlap": Schedule.Overlap.SKIP} | options
    blackout = options.pop("blackout", "")
    row = Schedule(name=name, owner=app.label, task=task if isinstance(task, str) else task.name)
    try:
        _fill(row, {"cron": cron, "every": every, "run_at": run_at}, options)
    except TimingError as error:
        raise DeclarationError(name, error.field, str(error)) from error
    DECLARED[name] = Declared(
        name,
        app.label,
        {each.attname: _plain(getattr(row, each.attname)) for each in _FIELDS.values() if each.name != "blackout"},
        blackout,
        [renamed_from] if isinstance(renamed_from, str) else renamed_from,
    )


def _fill(row: Schedule, times: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Set what is declared, and check all of it. Raises TimingError and DeclarationError."""
    if unknown := options.keys() - OPTIONS:
        known = ", ".join(sorted(OPTIONS))
        raise DeclarationError(row.name, min(unknown), f"is no option of a schedule. There are {known}.")
    if len(given := [kind for kind, value in times.items() if value]) != 1:
        raise DeclarationError(row.name, "cron", "say when: give one of cron, every and run_at.")
    for name, value in options.items():
        setattr(row, name, list(value) if name == "args" and isinstance(value, tuple) else value)
    match given[0]:
        case "cron":
            row.kind, row.cron = Schedule.Kind.CRON, times["cron"]
        case "every":
            row.kind = Schedule.Kind.INTERVAL
            row.every, row.unit = parse_every(str(times["every"]))
        case "run_at":
            row.kind, row.run_at = Schedule.Kind.DATE, times["run_at"]
            if bounds := options.keys() & {"start_at", "end_at"}:
                raise DeclarationError(row.name, min(bounds), "is for cron and every: run_at is one time.")
    _check(row)


def _check(row: Schedule) -> None:
    if missing := [name for name, each in _FIELDS.items() if not each.null and getattr(row, name) is None]:
        raise DeclarationError(row.name, missing[0], "is not to be None; leave it out for the default.")
    row.created_at = moments.now()  # an interval counts from it
    for wrong in complaints(row):
        raise DeclarationError(row.name, *wrong)


def _plain(value: Any) -> Any:
    """Times in UTC, as the database gives them: two times of different zones in a repeated hour are never equal."""
    return value.astimezone(UTC) if isinstance(value, datetime) else value
