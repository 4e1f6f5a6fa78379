"""Bringing the table of schedules in line with what code declares (`declared`), when a scheduler starts.

A renamed one keeps its row, with its runs and its pause. One that is no longer declared is paused with a note, never
deleted, and comes back with its declaration, unless it had been paused before. A name that people made stays theirs. Of
several versions of the code, as a deploy has them for a while, the last to start wins; what it changes is logged.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.db import Error, IntegrityError, connection, transaction
from django.db.models import Q, QuerySet

from scheduling_app.declared import DECLARED, Declared
from scheduling_app.models import Calendar, Schedule
from scheduling_app.outages import is_away
from scheduling_app.sources.rules import past_complaint
from tasks_app import moments

logger = logging.getLogger(__name__)

#: Of two schedulers that start at once, one waits here for the other. Any number that nothing else locks by.
_LOCK = 5_170_239_841


@dataclass
class Report:
    """The names of schedules by what a sync did to them; false where it did nothing."""

    created: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    #: Declared again, and on again.
    returned: list[str] = field(default_factory=list)
    #: No longer declared, and paused.
    removed: list[str] = field(default_factory=list)
    #: Declared, but left alone: the log says why.
    conflicts: list[str] = field(default_factory=list)
    #: Those that the database refused to write, with its words in the log.
    failed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def __str__(self) -> str:
        words = {
            "new": self.created,
            "renamed": self.renamed,
            "changed": self.updated,
            "declared again": self.returned,
            "no longer declared, paused": self.removed,
            "in conflict, left alone": self.conflicts,
            "refused by the database": self.failed,
        }
        said = "; ".join(f"{word}: {', '.join(names)}" for word, names in words.items() if names)
        return f"Schedules in code: {said or 'nothing has changed'}."


@transaction.atomic
def sync(declared: Iterable[Declared] | None = None) -> Report:
    """Bring the table in line with what is declared (in this process), and tell in the log what that changed."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '3s'")  # what is due waits for the end of this
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    declared, report = list(DECLARED.values() if declared is None else declared), Report()
    names = {name for each in declared for name in (each.name, *each.renamed_from)}
    rows = {row.name: row for row in owned_or_named(names)}
    calendars = dict(Calendar.objects.filter(name__in={each.blackout for each in declared}).values_list("name", "pk"))
    for each, row in _matched(declared, rows):
        with _told(each.name, each.owner, report):
            _bring(each, row, calendars, report)
    for row in rows.values():
        if row.owner:
            with _told(row.name, row.owner, report):
                _retire(row, report)
    return report


@contextmanager
def _told(name: str, owner: str, report: Report) -> Iterator[None]:
    """An error of the database is that of this one schedule, as long as there is a database."""
    try:
        with transaction.atomic():
            yield
    except Error as error:
        if is_away(error):
            raise
        report.failed.append(name)
        said = str(error).strip().splitlines()[0]
        logger.error("Schedule %r of app %s is as it was: %s", name, owner, said)


def owned_or_named(names: Collection[str]) -> QuerySet[Schedule]:
    """Those of any code, and whatever has these names."""
    return Schedule.objects.filter(~Q(owner="") | Q(name__in=names))


def _matched(declared: Sequence[Declared], rows: dict[str, Schedule]) -> list[tuple[Declared, Schedule | None]]:
    """Each with its row, which is taken out of `rows`.

    Renamed ones come first, the last of a chain before the others: its old name may be another's new one.
    """
    left, matched = {each.name: each for each in declared}, []
    while renamed := [
        (each, old) for each in left.values() if each.name not in rows for old in each.renamed_from if old in rows
    ]:
        each, old = renamed[0]
        matched.append((left.pop(each.name), rows.pop(old)))
    return matched + [(each, rows.pop(each.name, None)) for each in left.values()]


def _bring(each: Declared, row: Schedule | None, calendars: Mapping[str, int], report: Report) -> None:
    if row is not None and not row.owner:
        return _left_alone(each, f"people made one named {row.name!r}. Delete or rename that, or rename this.", report)
    if each.blackout and each.blackout not in calendars:
        return _left_alone(each, f"there is no calendar {each.blackout!r}. Make it in the admin.", report)
    columns = {**each.columns, "owner": each.owner, "blackout_id": calendars.get(each.blackout)}
    now = moments.now()
    wanted = Schedule(**columns, created_at=row.created_at if row else now)
    if past := past_complaint(wanted, row, now):  # not refused: code goes on to say what has been, and is over
        logger.warning("Schedule %r of app %s: %s.", each.name, each.owner, ": ".join(past))
    try:
        with transaction.atomic():
            if row is None:
                _create(columns, report)
            else:
                _follow(row, columns, report)
    except IntegrityError as error:  # people made one of that name just now
        _left_alone(each, str(error).splitlines()[0], report)


def _create(columns: Mapping[str, Any], report: Report) -> None:
    Schedule.objects.create(**columns)
    report.created.append(columns["name"])
    logger.info("Schedule %r of app %s is new.", columns["name"], columns["owner"])


def _follow(row: Schedule, columns: Mapping[str, Any], report: Report) -> None:
    name, owner, changes = columns["name"], columns["owner"], _changes(row, columns)
    if changes:
        Schedule.objects.filter(pk=row.pk).update(**changes)
    if "name" in changes:
        report.renamed.append(f"{row.name} → {name}")
        logger.info("Schedule %r of app %s is now named %r.", row.name, owner, name)
    if others := changes.keys() - {"name"}:
        report.updated.append(name)
        logger.info("Schedule %r of app %s has changed: %s.", name, owner, ", ".join(sorted(others)))
    if _bring_back(row):
        report.returned.append(name)
        logger.info("Schedule %r is declared again by app %s, and on.", name, owner)


def _changes(row: Schedule, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Those that differ from the row's: a write of what is the same would wake each scheduler for nothing."""
    fields = {each.attname: each for each in row._meta.concrete_fields}
    return {
        name: value
        for name, value in columns.items()
        if fields[name].get_prep_value(value) != fields[name].get_prep_value(getattr(row, name))
    }


def _left_alone(each: Declared, why: str, report: Report) -> None:
    report.conflicts.append(each.name)
    logger.warning("Schedule %r of app %s is left alone: %s", each.name, each.owner, why)


def _retire(row: Schedule, report: Report) -> None:
    schedules, note = Schedule.objects.filter(pk=row.pk), _retired(row)
    if row.enabled:
        schedules.set_enabled(False, note)
    elif not row.note.endswith(note):
        schedules.update(note=f"{row.note or 'Paused by hand.'} {note}"[-500:])
    else:
        return
    report.removed.append(row.name)
    logger.warning("Schedule %r is paused: app %s no longer declares it. Delete it if it is over.", row.name, row.owner)


def _bring_back(row: Schedule) -> bool:
    """Undo what _retire did; whether it is on again for that."""
    schedules, note = Schedule.objects.filter(pk=row.pk), _retired(row)
    if row.enabled or not row.note.endswith(note):
        return False
    if row.note == note:
        return bool(schedules.set_enabled(True))
    schedules.update(note=row.note.removesuffix(note).strip())
    return False


def _retired(row: Schedule) -> str:
    return f"No longer declared by app {row.owner}."
