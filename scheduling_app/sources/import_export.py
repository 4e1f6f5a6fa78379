"""Schedules and their calendars as a JSON text for review in version control, and back.

A list of objects, in the order of their names; in each its fields in the order of the model, without those that hold
what they hold anyway. What an app's code declares is not among them. An import makes what it names as the text says, so
a field that is left out goes back to its default; export, import and export again give the same bytes.
"""

import difflib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.utils.dateparse import parse_datetime

from scheduling_app.json_text import DEEPEST, JSONTextError, read_json
from scheduling_app.models import Calendar, Schedule, Window
from scheduling_app.sources.rules import BLANK, UNSTORABLE, Complaint, complaints, text_complaint, type_complaint
from scheduling_app.timing import blackout, clocks
from scheduling_app.timing.clocks import TimingError
from tasks_app import moments
from tasks_app.history import AnyUser, log
from tasks_app.json_field import JSONText

Entry = dict[str, Any]

CALENDAR, SCHEDULE = Calendar._meta.label_lower, Schedule._meta.label_lower


class ExchangeError(ValueError):
    """Why nothing is imported: each problem names the schedule and the field."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Change:
    """What an import does to a schedule or a calendar: add, change, remove or keep it."""

    what: str
    model: str
    name: str
    #: Of a change: each field's value before and after.
    fields: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    #: Of a removal: how many runs go with it.
    runs: int = 0

    @property
    def called(self) -> str:
        return f"{self.model.rpartition('.')[2]} {self.name}"


# Out


def dump(schedules: models.QuerySet[Schedule], calendars: models.QuerySet[Calendar]) -> str:
    """The text of these; in the same order whatever the collation of the database is."""
    entries: list[Entry] = sorted(map(_calendar_entry, calendars), key=_name)
    entries += sorted(map(_schedule_entry, schedules.filter(owner="").select_related("blackout")), key=_name)
    text = json.dumps(entries, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"  # half a surrogate pair, as JSON escapes it


def _name(entry: Entry) -> str:
    return entry["name"]


def _schedule_entry(row: Schedule) -> Entry:
    row, always = copy(row), {"timezone"}
    if row.kind == Schedule.Kind.INTERVAL:
        row.start_at = row.start_at or row.created_at  # from which it counts, and elsewhere would not
        always.add("unit")
    return {"model": SCHEDULE, "name": row.name} | _values(row, row.timezone, always)


def _calendar_entry(row: Calendar, windows: Iterable[Window] | None = None) -> Entry:
    found = row.windows.all() if windows is None else windows
    values = {"model": CALENDAR, "name": row.name} | _values(row, row.timezone, {"timezone"})
    return values | {"windows": [_values(window, row.timezone) for window in found]}


def _fields(row: models.Model) -> "dict[str, models.Field[Any, Any]]":
    """Those that people define, besides the name."""
    own = {"name", "calendar"}
    return {
        each.name: each
        for each in row._meta.concrete_fields
        if each.editable and not each.primary_key and each.name not in own
    }


def _values(row: models.Model, zone: str, always: Collection[str] = ()) -> Entry:
    """The values that are not the default, and those that are always told: the zone's default is the site's own."""
    values = {name: (each, _plain(getattr(row, name), _zone(zone))) for name, each in _fields(row).items()}
    return {name: value for name, (each, value) in values.items() if name in always or value != each.get_default()}


def _plain(value: Any, zone: tzinfo) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(zone).isoformat()
    return value.name if isinstance(value, Calendar) else value


def _zone(name: Any) -> tzinfo:
    try:
        return clocks.zone(name)
    except TimingError:  # written by SQL
        return UTC


# In


def load(text: str) -> list[Entry]:
    """The entries of a text. Raises ExchangeError."""
    try:
        entries = read_json(text, DEEPEST + 3)  # a list of objects, and their windows
    except JSONTextError as error:
        raise ExchangeError([f"It is no JSON: {error}."]) from error
    if not isinstance(entries, list):
        raise ExchangeError(["It is not a list of objects, as an export is."])
    problems, seen = list[str](), set[tuple[str, str]]()
    for number, entry in enumerate(entries, 1):
        model, name = (entry.get("model"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if model not in (CALENDAR, SCHEDULE) or not isinstance(name, str) or not name:
            problems.append(f'Entry {number}: it needs a "name", and as its "model" {SCHEDULE} or {CALENDAR}.')
        elif not name.strip():
            problems.append(f"Entry {number}: name: {BLANK}")
        elif text_complaint(name):
            problems.append(f"Entry {number}: name: {UNSTORABLE}")
        elif (model, name) in seen:
            problems.append(f"Entry {number}: name: {name!r} is there twice.")
        else:
            seen.add((model, name))
    if problems:
        raise ExchangeError(problems)
    return entries


@transaction.atomic
def bring(entries: Sequence[Entry], user: AnyUser, prune: bool = False) -> list[Change]:
    """Make schedules and calendars what `entries` say, and `prune` the others. What that changes.

    All or nothing: raises ExchangeError with all that is wrong. For a dry run, roll back the transaction around it.
    """
    changes, problems = list[Change](), list[str]()
    for model, bring_one in ((CALENDAR, _bring_calendar), (SCHEDULE, _bring_schedule)):
        for entry in entries:
            if entry["model"] == model:
                try:
                    changes.append(bring_one(entry, user))
                except ExchangeError as error:
                    problems += error.problems
    if prune:
        for row in _others(entries):
            try:
                changes.append(_remove(row, user))
            except ExchangeError as error:
                problems += error.problems
    if problems:
        raise ExchangeError(problems)
    return changes


def _bring_schedule(entry: Entry, user: AnyUser) -> Change:
    row = Schedule.objects.select_related("blackout").filter(name=entry["name"]).first()
    old = _schedule_entry(row) if row else None
    if row is None:
        row = Schedule(name=entry["name"], created_at=moments.now())
    if row.owner:
        _refuse(entry, [("name", f"app {row.owner} declares it. Change it there, and take it out of this text.")])
    _refuse(entry, _fill(row, {name: value for name, value in entry.items() if name not in ("model", "name")}))
    change = _change(entry, old, _schedule_entry(row), row)
    if change.what != "keep":
        _refuse(entry, complaints(row, stored_task=old["task"] if old else ""))
        row.save(update_fields=list(change.fields) or None)
        log(user, [row], _words(change))
    return change


def _bring_calendar(entry: Entry, user: AnyUser) -> Change:
    row = Calendar.objects.filter(name=entry["name"]).first()
    old = _calendar_entry(row) if row else None
    row = row or Calendar(name=entry["name"])
    given = {name: value for name, value in entry.items() if name not in ("model", "name", "windows")}
    _refuse(entry, _fill(row, given))
    windows = _windows(row, entry)
    change = _change(entry, old, _calendar_entry(row, windows), row)
    if change.what != "keep":
        row.save()
        row.windows.all().delete()
        Window.objects.bulk_create(windows)
        log(user, [row], _words(change))
    return change


def _fill(row: models.Model, given: Mapping[str, Any]) -> list[Complaint]:
    """Set each field to what is given, or to its default; what is wrong with what is given."""
    fields, found = _fields(row), list[Complaint]()
    for name in given.keys() - fields.keys():
        close = difflib.get_close_matches(name, fields, 1)
        found.append((name, "there is no such field" + (f": did you mean {close[0]}?" if close else ".")))
    for name, each in fields.items():
        try:
            setattr(row, name, _read(each, given[name]) if name in given else each.get_default())
        except ValueError as error:
            found.append((name, str(error)))
    return found


def _read(each: "models.Field[Any, Any]", value: Any) -> Any:
    """A value in JSON as the field's own. Raises ValueError."""
    if value is None or isinstance(each, JSONText):
        return value
    if said := text_complaint(value):
        raise ValueError(said)
    if isinstance(each, models.ForeignKey):
        if found := Calendar.objects.filter(name=str(value)).first():
            return found
        raise ValueError(f"There is no calendar {value!r}, here or in the text.")
    if isinstance(each, models.DateTimeField):
        moment = parse_datetime(value) if isinstance(value, str) else None
        if moment is None or moment.tzinfo is None or not 1970 <= moment.year < 9999:
            raise ValueError(f"{value!r} is not a time such as 2026-03-01T09:00:00+01:00, with its offset.")
        return moment
    if said := type_complaint(each, value):
        raise ValueError(said)
    return value


def _windows(calendar: Calendar, entry: Entry) -> list[Window]:
    """A calendar's windows, not saved, once they and it are right. Raises ExchangeError."""
    _refuse(entry, _complaints(calendar) or _timing_complaints(clocks.zone, calendar.timezone))
    given, windows = entry.get("windows", []), []
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        _refuse(entry, [("windows", "Write a JSON list of objects.")])
    for number, each in enumerate(given, 1):
        window = Window(calendar=calendar)
        found = _fill(window, each) or _complaints(window)
        times = (window.cron, window.minutes, window.start_at, window.end_at)
        found = found or _timing_complaints(blackout.window, calendar.timezone, *times)
        _refuse(entry, [(f"windows {number}: {name}", said) for name, said in found])
        windows.append(window)
    told = [(each.cron, each.minutes, each.start_at, each.end_at) for each in windows]
    _refuse(entry, _timing_complaints(blackout.check_number, told))
    return windows


def _complaints(row: Calendar | Window) -> list[Complaint]:
    try:
        row.clean_fields(exclude=["calendar"])
    except ValidationError as error:
        return [(name, " ".join(said)) for name, said in error.message_dict.items()]
    return []


def _timing_complaints(check: Callable[..., Any], *arguments: Any) -> list[Complaint]:
    try:
        check(*arguments)
    except TimingError as error:
        return [(error.field, str(error))]
    return []


def _change(entry: Entry, old: Entry | None, new: Entry, row: models.Model) -> Change:
    what = {"model": entry["model"], "name": entry["name"]}
    if old is None:
        return Change("add", **what)
    fields, changed = _fields(row), dict[str, tuple[Any, Any]]()
    for name in {**old, **new}:
        before, after = (each[name] if name in each else fields[name].get_default() for each in (old, new))
        if json.dumps(before) != json.dumps(after):  # where 1, 1.0 and true are not equal
            changed[name] = (before, after)
    return Change("change" if changed else "keep", **what, fields=changed)


def _others(entries: Sequence[Entry]) -> Iterator[Schedule | Calendar]:
    """What is there, and not in the text; schedules first, as they name calendars."""
    names = {model: [entry["name"] for entry in entries if entry["model"] == model] for model in (CALENDAR, SCHEDULE)}
    yield from Schedule.objects.filter(owner="").exclude(name__in=names[SCHEDULE])
    yield from Calendar.objects.exclude(name__in=names[CALENDAR])


def _remove(row: Schedule | Calendar, user: AnyUser) -> Change:
    runs = row.runs.count() if isinstance(row, Schedule) else 0
    change = Change("remove", row._meta.label_lower, row.name, runs=runs)
    if isinstance(row, Calendar) and (schedule := row.schedules.first()):
        raise ExchangeError([f"calendar {row.name}: schedule {schedule.name} still names it, so it cannot be removed."])
    log(user, [row], "Removed by an import.")
    row.delete()
    return change


def _words(change: Change) -> str:
    return f"Imported: {', '.join(change.fields)}." if change.fields else "Imported."


def _refuse(entry: Entry, found: Sequence[Complaint]) -> None:
    if found:
        called = f"{entry['model'].rpartition('.')[2]} {entry['name']}"
        raise ExchangeError([f"{called}: {name}: {said}" for name, said in found])
