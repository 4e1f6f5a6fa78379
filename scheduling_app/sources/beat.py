"""The periodic tasks of Celery Beat as schedules, not saved, or the reason why not.

What a schedule cannot say exactly is refused: an import never means another thing than what it was made from. When both
fire, and where they still differ, is for `beat_times` to tell.
"""

import contextlib
import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from celery import schedules
from cronsim import CronSimError
from django.conf import settings

from scheduling_app.json_text import JSONTextError, read_json
from scheduling_app.models import Schedule
from scheduling_app.seams.cronsim import Field
from scheduling_app.sources.fields import Part, names
from scheduling_app.sources.found import Found, Over, Refused, check
from scheduling_app.sources.rules import queue_notes
from scheduling_app.timing.kinds import MICROSECOND

#: Days of a month that are the first, second … fifth of their weekday in it.
_WEEKS = {number: set(range(7 * number - 6, min(7 * number, 31) + 1)) for number in range(1, 6)}
#: The columns of Beat's crontab in the order of an expression, how ours are read, and how many values each can have.
_COLUMNS = {
    "minute": (Field.MINUTE, 60),
    "hour": (Field.HOUR, 24),
    "day_of_month": (Field.DAY, 31),
    "month_of_year": (Field.MONTH, 12),
    "day_of_week": (Field.DOW, 7),
}
#: What a periodic task says of a schedule, besides its name and whether it is on.
BEAT_FIELDS = (*({*names(Part.CALL, Part.TIMING)} - {"name", "enabled"}), "expires_after", "max_runs")


def from_periodic_task(task: Any, now: datetime) -> Found:
    """The schedule that does what Beat does with this row of django_celery_beat's PeriodicTask. Raises Refused."""
    if task.exchange or task.routing_key:
        raise Refused("It names an exchange or a routing key: a schedule has a queue. Name that, and clear the two.")
    if task.task == "celery.backend_cleanup":
        raise Over("It deletes old results; here they are kept with their tasks.")
    if task.one_off and task.total_run_count:
        raise Over("It runs once, and has.")
    # As with Beat, a missed run is made up for however late, and what waits for a worker does not expire.
    schedule = Schedule(
        name=task.name,
        description=task.description,
        task=task.task,
        args=_json(task, "args", list),
        kwargs=_json(task, "kwargs", dict),
        headers=_json(task, "headers", dict),
        queue=task.queue or "",
        priority=task.priority,
        expires_after=task.expire_seconds or None,
        misfire_grace_time=None,
        enabled=task.enabled,
        max_runs=1 if task.one_off and not task.clocked else None,
        **_timing(task, now),
    )
    check(schedule, now)
    found = Found(schedule, queue_notes(schedule))
    if task.expires:
        found.notes.append("What waits for a worker when it ends still runs: Beat's messages expire at that moment.")
    if schedule.unit == Schedule.Unit.DAYS and settings.TIME_ZONE != "UTC":
        found.notes.append("Beat's day is 24 hours, so its zone is UTC; in a zone of yours it keeps the wall time.")
    return found


def _json(task: Any, name: str, shape: type) -> Any:
    try:
        value = read_json(getattr(task, name) or json.dumps(shape()))
    except JSONTextError as error:
        raise Refused(f"{name}: no JSON that means one thing: {error}.") from error
    if not isinstance(value, shape):
        raise Refused(f"{name}: {'a list' if shape is list else 'an object'} of JSON is needed.")
    return value


def _timing(task: Any, now: datetime) -> dict[str, Any]:
    # The last whole second at which Beat does not yet find it expired.
    end_at = (task.expires - MICROSECOND).replace(microsecond=0) if task.expires else None
    if end_at and end_at < now:
        raise Over("It has expired.")
    if task.interval:
        return _interval(task, now) | {"kind": Schedule.Kind.INTERVAL, "end_at": end_at}
    if task.crontab:
        bounds = {"start_at": task.start_time, "end_at": end_at}
        return _crontab(task) | {"kind": Schedule.Kind.CRON} | bounds
    if task.solar:
        raise Refused(f"It follows the sun ({task.solar}): no schedule does. Give it a time of day.")
    if task.clocked:
        run_at = max(task.clocked.clocked_time, task.start_time or task.clocked.clocked_time)
        if end_at and run_at > end_at:
            raise Over("It expires before its time.")
        if task.enabled and run_at <= now:
            raise Refused(
                "Its time is past, and Beat runs it when it starts next: let it do so, or run the task by hand."
            )
        return {"kind": Schedule.Kind.DATE, "run_at": run_at}
    raise Refused("It has no interval, crontab or time.")


def _interval(task: Any, now: datetime) -> dict[str, Any]:
    every, unit, zone = task.interval.every, task.interval.period, settings.TIME_ZONE
    if unit == "microseconds":
        every, rest = divmod(every, 1_000_000)
        if rest:
            raise Refused(f"{task.interval.every} microseconds are no whole seconds, in which a schedule counts.")
        unit = "seconds"
    if unit == "days":
        zone = "UTC"  # where each of them has 24 hours, as Beat's have
    return {"every": every, "unit": unit, "timezone": zone, "start_at": anchor(task, now)}


def anchor(task: Any, now: datetime) -> datetime:
    """From when Beat counts a periodic task's interval: its last run, or else its start. In whole seconds."""
    start = task.start_time
    moment = task.last_run_at or start or task.date_changed or now
    if start and start > now:
        moment = max(start, task.last_run_at + task.interval.schedule.run_every) if task.last_run_at else start
    return moment.replace(microsecond=0)


def _crontab(task: Any) -> dict[str, Any]:
    try:
        theirs = task.crontab.schedule
    except (ValueError, schedules.ParseException) as error:
        raise Refused(f"Celery cannot read its crontab ({error}), so Beat does not run it either.") from error
    parts = [_part(task.crontab, theirs, name) for name in _COLUMNS]
    parts[2], parts[4] = _days(parts[2], parts[4], theirs)
    return {"cron": " ".join(parts), "timezone": str(theirs.tz)}


def _part(row: Any, theirs: schedules.crontab, name: str) -> str:
    """A column as it was written, where it means the same here; else its values, written out."""
    (column, size), text, values = _COLUMNS[name], getattr(row, name), getattr(theirs, name)
    if len(values) == size:
        return "*"
    with contextlib.suppress(CronSimError):
        ours = column.parse(text.upper())
        if values == (ours - {7} if column == Field.DOW else ours):  # 7 comes of */7, and is 0
            return text
    return _written_out(values)


def _written_out(values: Iterable[int]) -> str:
    spans: list[list[int]] = []
    for value in sorted(values):
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _days(day: str, weekday: str, theirs: schedules.crontab) -> tuple[str, str]:
    """Both day fields must match with Celery; here only where one of them starts with *, else either is enough."""
    if day.startswith("*") or weekday.startswith("*"):
        return day, weekday
    numbers = [number for number, days in _WEEKS.items() if days <= theirs.day_of_month]
    if theirs.day_of_month == set().union(*(_WEEKS[number] for number in numbers)):
        return "*", ",".join(f"{each}#{number}" for number in numbers for each in sorted(theirs.day_of_week))
    raise Refused(
        f"Celery runs it on days that match both {day!r} and {weekday!r}; in a crontab expression either is enough. "
        "Keep one of them, and let the task see to the other."
    )
