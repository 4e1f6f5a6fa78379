import json

import pytest

from scheduling_app import declared, manager
from scheduling_app.admin.forms import PlanForm, ScheduleForm
from scheduling_app.admin.schedules import ScheduleAdmin
from scheduling_app.models import Schedule
from scheduling_app.sources.beat import BEAT_FIELDS
from scheduling_app.sources.fields import COLUMNS, FIELDS, OnlyIf, Part, label_of, names
from scheduling_app.sources.rules import complaints

TIMING = {"kind", "cron", "every", "unit", "run_at", "timezone", "start_at", "end_at"}


def test_the_table_has_each_column_that_people_define_and_no_other():
    defined = [column.name for column in Schedule._meta.concrete_fields if column.editable and not column.primary_key]
    assert list(COLUMNS) == defined
    assert set(FIELDS) == set(defined)


def test_the_form_and_the_admin_have_all_of_them():
    shown = [name for _, options in ScheduleAdmin.fieldsets for name in options["fields"]]
    assert sorted(shown) == sorted(FIELDS)
    assert set(ScheduleForm.base_fields) == set(FIELDS)
    assert set(PlanForm.base_fields) == set(names(Part.TIMING, Part.POLICY))


def test_whatever_people_define_can_be_said_in_code_too():
    when = {"kind", "unit", "cron", "every", "run_at"}
    assert FIELDS.keys() - when - {"name", "task", "enabled"} == declared.OPTIONS
    calendar, coalesce = {"blackout", "blackout_action"}, {"catch_up"}
    assert FIELDS.keys() - TIMING - calendar - coalesce - {"name", "task"} == manager._OPTIONS


def test_an_import_from_beat_leaves_policies_as_they_are_but_for_two():
    policies = set(names(Part.POLICY)) - {"expires_after", "max_runs"}
    assert set(BEAT_FIELDS) == FIELDS.keys() - policies - {"name", "enabled"}


def test_the_times_depend_on_the_fields_that_the_trigger_knows():
    assert set(names(Part.TIMING)) == TIMING


@pytest.mark.parametrize("field", FIELDS.values(), ids=lambda field: field.name)
def test_what_an_entry_names_is_there(field):
    assert label_of(field.name)
    if field.only_if:
        assert field.only_if.field in FIELDS
    if field.told:
        assert set(field.told.by) < FIELDS.keys()
    assert field.least is None or field.column.get_internal_type().startswith("Positive")


def test_sentences_have_places_of_their_own():
    places = [field.told.place for field in FIELDS.values() if field.told]
    assert sorted(places) == list(range(1, len(places) + 1))


def test_a_field_applies_by_what_another_holds_or_where_that_is_not_known():
    kept, dropped = OnlyIf("kind", ("cron", "interval")), OnlyIf("max_retries", (None, 0), negated=True)
    assert [kept.holds({"kind": kind}) for kind in ("cron", "date")] == [True, False]
    assert [dropped.holds({"max_retries": number}) for number in (None, 0, 1)] == [False, False, True]
    assert kept.holds({})
    assert dropped.holds({})
    told = {"field": "max_retries", "values": ["", "0"], "negated": True}
    assert json.loads(dropped.as_json()) == told, "a browser's fields hold texts"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"soft_time_limit": 5, "time_limit": 5}, "soft_time_limit"),
        ({"jitter": 86_401}, "jitter"),
        ({"max_retries": 1, "retry_backoff": 10**6}, "retry_backoff"),
        ({"headers": {"scheduled_for": "now"}}, "headers"),
    ],
)
def test_each_rule_complains_at_its_field(values, field):
    schedule = Schedule(name="x", task="sample.noop", cron="0 9 * * *", **values)
    assert [name for name, _ in complaints(schedule)] == [field]
    assert FIELDS[field].rule
