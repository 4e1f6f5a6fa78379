"""The one table of what people define of a schedule: its call, its timing, its policies.

The form, the admin, the script, `declared`, `ApsSchedulerManager`, import and export know the fields from here. A new
policy is a column of the model, an entry here with its sentence and its rule, and what `policies` makes of it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from django.db import models

from scheduling_app.models import Schedule
from scheduling_app.signatures import OWN_HEADERS, header_fault
from scheduling_app.sources import sentences as words
from tasks_app.guard import LONGEST_BACKOFF
from tasks_app.publishing import GEN_HEADER

Kind, Overlap = Schedule.Kind, Schedule.Overlap

#: Seconds in a day: more jitter than that is a mistake.
MOST_JITTER = 86_400


class Part(Enum):
    """What a field decides about."""

    CALL = "which task runs, and with what"
    TIMING = "at which times"
    POLICY = "what becomes of such a time, and of its run"


class OnlyIf(NamedTuple):
    """A condition on what another field holds: one of `values`, or, `negated`, none of them."""

    field: str
    values: tuple[Any, ...]
    negated: bool = False

    def holds(self, given: Mapping[str, Any]) -> bool:
        """Whether it does, or is not known."""
        return self.field not in given or (given[self.field] in self.values) is not self.negated

    def as_json(self) -> str:
        """The same for a browser, where each value is a text."""
        values = ["" if value is None else str(value) for value in self.values]
        return json.dumps({"field": self.field, "values": values, "negated": self.negated})


class Sentence(NamedTuple):
    """What a policy will do, and which of the schedule's fields say so."""

    name: str
    text: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """How a policy is told: its name, its text by the schedule ("" where it has none), its `place` among the others.

    `by`: the fields that have a say in it, besides its own.
    """

    place: int
    name: str
    text: Callable[[Schedule], str]
    by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Field:
    """All that is known of a field besides its column."""

    name: str
    part: Part = Part.POLICY
    #: What people call it, where that is not its own name.
    label: str = ""
    help: str = ""
    #: Where it applies; elsewhere forms hide it, and it holds its default.
    only_if: OnlyIf | None = None
    #: Of a number that forms ask for: what it is at least, and at most.
    least: int | None = None
    most: int | None = None
    told: Told | None = None
    #: What is wrong with it, beside the type of its value; "" mostly.
    rule: Callable[[Schedule], str] | None = None

    @property
    def column(self) -> "models.Field[Any, Any]":
        return Schedule._meta.get_field(self.name)  # type: ignore[return-value]


def _time_limits(schedule: Schedule) -> str:
    soft, hard = schedule.soft_time_limit, schedule.time_limit
    if soft and hard and soft >= hard:
        return f"Must be below the time limit, {hard} s: at that the run is killed."
    return ""


def _jitter(schedule: Schedule) -> str:
    return f"Must be {MOST_JITTER} s at most, which is a day." if schedule.jitter > MOST_JITTER else ""


def _backoff(schedule: Schedule) -> str:
    return f"Must be {LONGEST_BACKOFF} s at most." if (schedule.retry_backoff or 0) > LONGEST_BACKOFF else ""


def _headers(schedule: Schedule) -> str:
    if taken := sorted({*OWN_HEADERS, GEN_HEADER} & schedule.headers.keys()):
        return f"{', '.join(taken)}: set by Celery or the console itself. Use another name."
    return header_fault(schedule.headers)


_REPEATS = OnlyIf("kind", (Kind.CRON, Kind.INTERVAL))

#: The fields under the titles of the form, in its order.
GROUPS: Mapping[str, tuple[Field, ...]] = {
    "What": (
        Field("name", Part.CALL),
        Field("enabled", Part.CALL, "On"),
        Field("description", Part.CALL),
        Field("task", Part.CALL),
        Field("args", Part.CALL, "Arguments", "A JSON list."),
        Field("kwargs", Part.CALL, "Keyword arguments", "A JSON object."),
        Field(
            "due_kwarg",
            label="Due time as",
            help="The argument by which the task is given its due time.",
            told=Told(9, "Due time", words.due_time),
        ),
    ),
    "When": (
        Field("kind", Part.TIMING),
        Field(
            "cron",
            Part.TIMING,
            help="Minute, hour, day of month, month, day of week (0 and 7 are Sunday). Six fields: seconds first.",
            only_if=OnlyIf("kind", (Kind.CRON,)),
        ),
        Field("every", Part.TIMING, only_if=OnlyIf("kind", (Kind.INTERVAL,))),
        Field("unit", Part.TIMING, only_if=OnlyIf("kind", (Kind.INTERVAL,))),
        Field("run_at", Part.TIMING, help="In its time zone.", only_if=OnlyIf("kind", (Kind.DATE,))),
        Field("timezone", Part.TIMING, "Time zone", "Such as Europe/Berlin."),
        Field("jitter", help="Seconds later, at most.", least=0, most=MOST_JITTER, rule=_jitter),
        Field(
            "max_runs",
            label="Runs at most",
            help="Blank: no end.",
            only_if=_REPEATS,
            least=1,
            told=Told(8, "End", words.end),
        ),
        Field("start_at", Part.TIMING, "From", "An interval counts from it.", only_if=_REPEATS),
        Field("end_at", Part.TIMING, "Until", "Both in its time zone.", only_if=_REPEATS),
        Field("blackout", label="Not during", told=Told(7, "Blackout", words.blackout, ("blackout_action",))),
        Field("blackout_action", label="A time within it", only_if=OnlyIf("blackout", (None,), negated=True)),
    ),
    "How it runs": (
        Field("queue", Part.CALL),
        Field("priority", Part.CALL, least=0, most=9),
        Field(
            "expires_after",
            label="Expires after",
            help="Seconds.",
            least=1,
            told=Told(3, "Expiry", words.expiry, ("misfire_grace_time",)),
        ),
        Field(
            "soft_time_limit",
            label="Soft time limit",
            help="Seconds.",
            least=1,
            told=Told(4, "Time limits", words.limits, ("time_limit",)),
            rule=_time_limits,
        ),
        Field("time_limit", label="Time limit", help="Seconds.", least=1),
        Field("headers", Part.CALL, help="A JSON object: headers of the message, besides Celery's own.", rule=_headers),
    ),
    "If something goes wrong": (
        Field(
            "catch_up",
            label="After missed times",
            help="Of those that passed while no scheduler ran.",
            told=Told(1, "Missed times", words.missed, ("misfire_grace_time",)),
        ),
        Field("misfire_grace_time", label="Late by at most", help="Seconds. Blank: any.", least=1),
        Field("overlap", label="If a run is unfinished", told=Told(2, "Overlap", words.overlap, ("max_instances",))),
        Field(
            "max_instances",
            label="Unfinished at most",
            only_if=OnlyIf("overlap", (Overlap.ALLOW,), negated=True),
            least=1,
        ),
        Field(
            "max_retries",
            label="Retries",
            help="Blank: as its task does.",
            least=1,
            told=Told(5, "Retries", words.retries, ("retry_backoff",)),
        ),
        Field(
            "retry_backoff",
            label="Wait before",
            help="Seconds.",
            only_if=OnlyIf("max_retries", (None, 0), negated=True),
            least=0,
            most=LONGEST_BACKOFF,
            rule=_backoff,
        ),
        Field(
            "pause_after_failures",
            label="Pause after failures",
            help="In a row. Blank: never.",
            least=1,
            told=Told(6, "Failures", words.failures),
        ),
    ),
}
FIELDS = {field.name: field for group in GROUPS.values() for field in group}
#: The columns of these, in the model's order.
COLUMNS = {column.name: column for column in Schedule._meta.concrete_fields if column.name in FIELDS}
_TOLD = sorted(((field.told, field.name) for field in FIELDS.values() if field.told), key=lambda each: each[0].place)


def names(*parts: Part) -> tuple[str, ...]:
    """The names of the fields that decide about these."""
    return tuple(field.name for part in parts for field in FIELDS.values() if field.part is part)


def all_but(left_out: Iterable[str]) -> set[str]:
    """The names of all fields but some."""
    return FIELDS.keys() - set(left_out)


def label_of(name: str) -> str:
    """What people call a field; that of the model that is in no table, from its name."""
    field = FIELDS.get(name)
    return (field and field.label) or name.replace("_", " ").capitalize()


def sentences(schedule: Schedule) -> list[Sentence]:
    """Of the policies that always say something, and of those that the schedule has."""
    found = [Sentence(told.name, told.text(schedule), (name, *told.by)) for told, name in _TOLD]
    return [sentence for sentence in found if sentence.text]


def rule_complaints(schedule: Schedule) -> list[tuple[str, str]]:
    """What the rules of its fields have against a schedule, whose values are of their types, as (field, complaint)."""
    ruled = [(field.name, field.rule(schedule)) for field in FIELDS.values() if field.rule]
    return [(name, said) for name, said in ruled if said]
