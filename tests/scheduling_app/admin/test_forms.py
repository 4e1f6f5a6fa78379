"""The form of a schedule: what could not run is refused, with the field named and nothing stored."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import current_app
from django.utils import timezone

from scheduling_app.admin.forms import PlanForm, ScheduleForm
from scheduling_app.models import Calendar, Schedule

pytestmark = pytest.mark.django_db

VECTORS = json.loads((Path(__file__).parents[2] / "data/cron_vectors.json").read_text())


def filled(**changes) -> dict:
    """What a browser sends for a valid schedule."""
    return {
        "name": "Nightly", "task": "sample.echo", "args": '["hello"]', "kwargs": "{}", "enabled": "on", "kind": "cron",
        "cron": "0 3 * * *", "unit": "minutes", "timezone": "UTC", "jitter": "0", "catch_up": "latest",
        "misfire_grace_time": "3600", "overlap": "allow", "max_instances": "1", "blackout_action": "skip",
        "headers": "{}", "initial-enabled": "True",
    } | changes  # fmt: skip


def errors(schedule: Schedule | None = None, **changes) -> dict[str, list[str]]:
    return ScheduleForm(filled(**changes), instance=schedule).errors


def saved(schedule: Schedule | None = None, **changes) -> Schedule:
    form = ScheduleForm(filled(**changes), instance=schedule)
    assert form.is_valid(), form.errors
    return Schedule.objects.get(pk=form.save().pk)


def edited(schedule: Schedule, **changes) -> Schedule:
    """The form opened and sent back, with these changes."""
    form = ScheduleForm(instance=schedule)
    shown = {name: form[name].value() for name in form.fields}
    sent = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in shown.items()}
    return saved(schedule, **{name: value for name, value in sent.items() if value not in (None, False)} | changes)


def test_a_valid_form_is_stored_as_typed():
    schedule = saved(name="Nächtlicher Lauf ☾", args='[["北京", 1.5]]', priority="0", queue="cron_queue")
    assert (schedule.name, schedule.args, schedule.kwargs) == ("Nächtlicher Lauf ☾", [["北京", 1.5]], {})
    assert (schedule.priority, schedule.queue, schedule.cron) == (0, "cron_queue", "0 3 * * *")


@pytest.mark.parametrize("expression", [each["expr"] for each in VECTORS["invalid"]])
def test_an_invalid_expression_is_refused_at_the_cron_field(expression):
    assert list(errors(cron=expression)) == ["cron"]


@pytest.mark.parametrize("expression", sorted({each["expr"] for each in VECTORS["vectors"]}))
def test_a_valid_expression_is_taken(expression):
    assert errors(cron=expression) == {}


def test_the_error_names_the_part_of_the_expression():
    assert errors(cron="60 * * * *")["cron"] == ["minute: 60 is not between 0 and 59"]
    assert "day of month" in errors(cron="0 0 30 2 *")["cron"][0]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("{'a': 1}", "line 1, column 2: text stands in double quotes"),
        ("[1,2", "line 1, column 5: expecting ',' delimiter, but it ends here"),
        ('[\n "a",\n tru]', "line 3, column 2"),
        ('{"a": 1}', "Write a JSON list"),
        ("NaN", "line 1, column 1: NaN is no JSON"),
        ('["NaN", -Infinity]', "line 1, column 9: -Infinity is no JSON"),
        ("[True]", "line 1, column 2: write true, not True"),
        ("[1] [2]", "line 1, column 5"),
        ("[1e999]", "too large"),
        (f"[{'9' * 5000}]", "too long"),
        ("[" * 100_000, "line 1, column 51: nested more than 50 deep"),
        (f'["{"x" * 600_000}"]', "at most 500000 characters"),
        ('["\x00"]', "Null characters"),
    ],
)
def test_arguments_that_are_no_list_are_refused_with_the_position(args, says):
    found = errors(args=args)
    assert list(found) == ["args"]
    assert says in found["args"][0]


def test_keyword_arguments_must_be_an_object():
    assert "Write a JSON object" in errors(kwargs="[1]")["kwargs"][0]
    assert "not null" in errors(kwargs="null")["kwargs"][0]


def test_braces_within_a_text_do_not_count_as_nesting():
    text = "[{" * 200 + '\\" NaN'
    assert saved(args=f'["{text}"]').args == ["[{" * 200 + '" NaN']


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"args": "[]"}, "args", "Missing a required argument: 'value': sample.echo takes (value)."),
        ({"args": "[1, 2]"}, "args", "Too many positional arguments"),
        ({"kwargs": '{"value": 1}'}, "kwargs", "Multiple values for argument 'value'"),
        ({"args": "[]", "kwargs": '{"valeu": 1}'}, "args", "Missing a required argument: 'value'"),
        ({"kwargs": '{"more": 1}'}, "kwargs", "Got an unexpected keyword argument 'more'"),
        ({"task": "sample.flaky", "args": "[1, 2, 3]"}, "args", "sample.flaky takes (failures, delay=0.1)."),
    ],
)
def test_arguments_must_fit_the_task(changes, field, says):
    found = errors(**changes)
    assert list(found) == [field]
    assert says in found[field][0]


def test_a_task_without_typing_takes_anything(monkeypatch):
    monkeypatch.setattr(current_app.tasks["sample.echo"], "typing", False)
    assert errors(args="[1, 2, 3]") == {}


def test_only_registered_tasks_are_offered_sorted_and_with_what_they_take():
    choices = dict(ScheduleForm().fields["task"].choices)
    names = [name for name in choices if name]
    assert names == sorted(names)
    assert choices["sample.flaky"] == "sample.flaky(failures, delay=0.1)"
    assert not any(name.startswith("celery.") for name in names)
    assert list(errors(task="no.such.task")) == ["task"]


def test_a_task_that_is_gone_stays_with_a_warning():
    schedule = Schedule.objects.create(name="old", task="gone.task", args=[1], cron="0 3 * * *")
    form = ScheduleForm(instance=schedule)
    assert "gone.task is registered now" in form.fields["task"].help_text
    assert edited(schedule, cron="0 4 * * *").task == "gone.task"


@pytest.mark.parametrize("name", ["x" * 201, "x" * 1000, "   ", "", "a\x00b"])
def test_a_name_must_be_one(name):
    assert list(errors(name=name)) == ["name"]


def test_names_are_unique_and_may_be_200_long():
    saved(name="x" * 200)
    assert "already exists" in errors(name="x" * 200)["name"][0]


@pytest.mark.parametrize(
    "field", ["description", "task", "kwargs", "queue", "kind", "cron", "timezone", "catch_up", "unit"]
)
def test_nul_is_refused_in_every_text(field):
    assert field in errors(**{"kind": "interval" if field == "unit" else "cron", "every": "1"} | {field: "a\x00b"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", "-1"), ("priority", "10"), ("priority", "high"), ("queue", "no-such-queue"), ("jitter", "-1"),
        ("jitter", "86401"), ("misfire_grace_time", "0"), ("misfire_grace_time", "99999999999"), ("expires_after", "0"),
        ("soft_time_limit", "0"), ("time_limit", "99999999999"), ("max_runs", "0"), ("max_retries", "0"),
        ("max_retries", "99999"), ("pause_after_failures", "0"), ("overlap", "sometimes"), ("blackout", "99"),
        ("catch_up", "sometimes"), ("timezone", "Europe/Berln"),
        ("timezone", "../../etc/passwd"), ("timezone", ""), ("kind", "monthly"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_at_its_field(field, value):
    assert list(errors(**{field: value})) == [field]


@pytest.mark.parametrize("value", ["0", "99999", "many"])
def test_a_number_of_unfinished_runs_must_be_one(value):
    assert list(errors(overlap="skip", max_instances=value)) == ["max_instances"]


@pytest.mark.parametrize("value", ["-1", "3601"])
def test_a_wait_before_a_retry_is_an_hour_at_most(value):
    assert list(errors(max_retries="3", retry_backoff=value)) == ["retry_backoff"]


def test_a_misspelt_zone_is_answered_with_a_near_one():
    assert "Europe/Berlin" in errors(timezone="Europe/Berln")["timezone"][0]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": "cron", "cron": ""}, "cron"),
        ({"kind": "interval", "every": ""}, "every"),
        ({"kind": "interval", "every": "0"}, "every"),
        ({"kind": "interval", "every": "99999999999"}, "every"),
        ({"kind": "interval", "every": "1000", "unit": "weeks"}, "every"),
        ({"kind": "interval", "every": "5", "unit": ""}, "unit"),
        ({"kind": "date", "run_at": ""}, "run_at"),
        ({"kind": "date", "run_at": "tomorrow"}, "run_at"),
        ({"kind": "date", "run_at": "0001-01-01T00:00"}, "run_at"),
        ({"kind": "date", "run_at": "9999-12-31T23:59"}, "run_at"),
        ({"start_at": "2031-01-02T00:00", "end_at": "2031-01-01T00:00"}, "end_at"),
        ({"end_at": "2021-01-01T00:00"}, "end_at"),
    ],
)
def test_each_kind_says_what_it_lacks(changes, field):
    assert list(errors(**changes)) == [field]


def test_the_fields_of_other_kinds_are_cleared_whatever_they_hold():
    schedule = saved(kind="interval", every="5", cron="nonsense", run_at="never")
    assert (schedule.cron, schedule.every, schedule.unit, schedule.run_at) == ("", 5, "minutes", None)
    schedule = edited(schedule, kind="date", run_at="2031-01-01T00:00", every="x", start_at="x", end_at="x")
    assert (schedule.every, schedule.start_at, schedule.end_at) == (None, None, None)


def test_all_policies_are_stored_as_typed():
    calendar = Calendar.objects.create(name="Holidays")
    sent = {
        "headers": '{"tenant": "北京"}', "max_runs": 5, "expires_after": 60, "soft_time_limit": 10, "time_limit": 20,
        "catch_up": "all", "overlap": "queue_one", "max_instances": 2, "max_retries": 3, "retry_backoff": 4,
        "pause_after_failures": 6, "blackout": calendar.pk, "blackout_action": "defer",
    }  # fmt: skip
    schedule = saved(**{name: str(value) for name, value in sent.items()})
    stored = {name: getattr(schedule, name) for name in sent}
    assert stored == sent | {"headers": {"tenant": "北京"}, "blackout": calendar}


def test_policies_that_do_not_apply_are_cleared_whatever_they_hold():
    schedule = saved(max_instances="x", retry_backoff="x", blackout_action="x")
    assert (schedule.max_instances, schedule.retry_backoff, schedule.blackout_action) == (1, None, "skip")
    once = saved(name="Once", kind="date", run_at="2031-01-01T00:00", max_runs="x")
    assert once.max_runs is None


def test_blanks_mean_none():
    schedule = saved(misfire_grace_time="", overlap="skip", max_instances="", jitter="", blackout_action="")
    assert (schedule.misfire_grace_time, schedule.max_instances, schedule.jitter) == (None, 1, 0)
    assert schedule.blackout_action == "skip"


def test_the_soft_time_limit_must_be_below_the_hard_one():
    assert "below the time limit, 10 s" in errors(soft_time_limit="10", time_limit="10")["soft_time_limit"][0]
    assert errors(soft_time_limit="9", time_limit="10") == {}


def test_the_due_time_must_fit_the_task_too():
    assert saved(args="[]", due_kwarg="value").due_kwarg == "value"
    found = errors(name="Another", due_kwarg="at")
    assert list(found) == ["due_kwarg"]
    assert "Got an unexpected keyword argument 'at': sample.echo takes (value)." in found["due_kwarg"][0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"due_kwarg": "due time"}, "Write the name of an argument"),
        (
            {"args": "[]", "kwargs": '{"value": 1}', "due_kwarg": "value"},
            "value is one of the keyword arguments already.",
        ),
        ({"due_kwarg": "value"}, "Multiple values for argument 'value'"),
    ],
)
def test_a_due_time_that_cannot_be_handed_over_is_refused(changes, says):
    found = errors(**changes)
    assert list(found) == ["due_kwarg"]
    assert says in found["due_kwarg"][0]


@pytest.mark.parametrize(
    "name", ["id", "task", "retries", "gen", "retry_policy", "scheduled_for", "periodic_task_name"]
)
def test_headers_that_are_set_anyway_are_refused(name):
    message = errors(headers=json.dumps({name: 1}))["headers"][0]
    assert name in message
    assert "set by Celery or the console" in message


def test_headers_must_be_an_object():
    assert "Write a JSON object" in errors(headers="[1]")["headers"][0]


def test_a_schedule_that_is_declared_in_code_can_be_switched_off_and_no_more():
    second_pass = datetime(2031, 10, 26, 1, 30, 0, 123456, tzinfo=UTC)
    calendar = Calendar.objects.create(name="Holidays")
    schedule = Schedule.objects.create(
        name="declared", owner="shop", task="sample.echo", args=[1, 2], kwargs={"a": 1}, headers={"x": 1}, kind="date",
        run_at=second_pass, timezone="Europe/Berlin", misfire_grace_time=None, blackout=calendar,
    )  # fmt: skip
    before = Schedule.objects.values().get()
    sent = filled(name="mine", task="sample.noop", cron="* * * * *")
    form = ScheduleForm({name: value for name, value in sent.items() if name != "enabled"}, instance=schedule)
    assert form.is_valid(), form.errors
    assert form.changed_data == ["enabled"]
    form.save()
    changed = {"enabled", "next_fire_at", "changed_at", "switched_at"}
    after = Schedule.objects.values().get()
    assert {name for name in after if after[name] != before[name]} - changed == set()
    assert after["enabled"] is False


def test_a_date_in_the_past_is_refused_unless_it_was_there():
    past = timezone.now() - timedelta(minutes=10)
    assert errors(kind="date", run_at=past.isoformat()) == {"run_at": ["past: it would not run"]}
    done = Schedule.objects.create(name="done", task="sample.echo", args=[1], kind="date", run_at=past)
    assert edited(done, description="It was fired.").run_at == past


def test_times_are_those_of_the_schedules_own_zone():
    schedule = saved(kind="date", run_at="2031-07-01T09:00", timezone="Asia/Shanghai")
    assert schedule.run_at == datetime(2031, 7, 1, 1, tzinfo=UTC)
    assert "2031-07-01T09:00:00" in str(ScheduleForm(instance=schedule)["run_at"])
    assert edited(schedule, timezone="UTC").run_at == datetime(2031, 7, 1, 9, tzinfo=UTC)


def test_a_time_sent_with_an_offset_keeps_it():
    schedule = saved(kind="date", run_at="2031-07-01T09:00:00+02:00", timezone="Asia/Shanghai")
    assert schedule.run_at == datetime(2031, 7, 1, 7, tzinfo=UTC)


def test_a_time_that_the_clocks_skip_is_refused():
    found = errors(kind="date", run_at="2031-03-30T02:30", timezone="Europe/Berlin")
    assert "02:30 does not exist on that day in Europe/Berlin" in found["run_at"][0]


def test_an_edit_of_something_else_leaves_times_exact():
    second_pass = datetime(2031, 10, 26, 1, 30, 0, 123456, tzinfo=UTC)
    schedule = Schedule.objects.create(
        name="exact", task="sample.echo", args=[1], kind="date", run_at=second_pass, timezone="Europe/Berlin"
    )
    assert edited(schedule, description="changed").run_at == second_pass


def test_an_edited_schedule_is_found_unchanged_by_the_database():
    """No trigger fires: neither its next time nor its anchor moves."""
    schedule = saved(kind="interval", every="90")
    Schedule.objects.filter(pk=schedule.pk).update(changed_at=None)
    assert edited(schedule, args='["other"]').changed_at is None
    assert edited(schedule, every="91").changed_at is not None


def test_surrogates_and_nul_in_stored_arguments_survive_an_edit():
    schedule = Schedule.objects.create(name="odd", task="sample.echo", args=["\ud800\x00☾"], cron="0 3 * * *")
    text = ScheduleForm(instance=schedule)["args"].value()
    assert text == '["\\ud800\\u0000☾"]'
    assert edited(schedule, description="x").args == ["\ud800\x00☾"]


def test_an_interval_counts_from_the_schedules_creation():
    schedule = saved(kind="interval", every="7", unit="hours")
    form = PlanForm(filled(kind="interval", every="7", unit="hours"), instance=schedule)
    assert form.is_valid()
    assert form.timing == schedule.timing()


def test_an_empty_form_shows_what_nothing_is():
    form = ScheduleForm()
    assert (form["args"].value(), form["kwargs"].value()) == ("[]", "{}")


def test_true_is_not_one():
    schedule = saved(args="[1]")
    assert ScheduleForm(filled(args="[true]"), instance=schedule).changed_data == ["args"]
