"""One table of rules: what cannot be is refused by every road into the schedules, with the same words, at its field."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from django.utils import timezone

from scheduling_app import declared
from scheduling_app.admin.forms import ScheduleForm
from scheduling_app.form_fields import ArgumentsField
from scheduling_app.json_text import JSONTextError, read_json
from scheduling_app.manager import ApsSchedulerManager
from scheduling_app.models import Schedule
from scheduling_app.sources import beat, import_export
from scheduling_app.sources.rules import complaints, past_complaint
from scheduling_app.timing.clocks import ScheduleError
from tests.sample.schedules import declare

pytestmark = pytest.mark.django_db

CRON = "0 0 1 1 *"
NAN, DEEP = float("nan"), json.loads("[" * 51 + "]" * 51)
#: What is wrong, by its field.
WRONG = [
    ("priority", 99),
    ("priority", -1),
    ("priority", True),
    ("priority", 2.5),
    ("priority", "1"),
    ("args", "abc"),
    ("args", {"a": 1}),
    ("args", [NAN]),
    ("args", [float("inf")]),
    ("args", DEEP),
    ("args", [1, 2, 3]),
    ("args", ["x" * 500_001]),
    ("kwargs", [1]),
    ("kwargs", {"value": NAN}),
    ("kwargs", {"value": 1, "nobody": 1}),
    ("headers", ["x"]),
    ("headers", {"id": "x"}),
    ("headers", {"expires": "junk"}),
    ("headers", {"compression": "application/x-gzip"}),
    ("headers", {"scheduled_for": "now"}),
    ("headers", {"x": NAN}),
    ("overlap", "bogus"),
    ("catch_up", "bogus"),
    ("blackout_action", "bogus"),
    ("task", "sample.gone"),
    ("task", ""),
    ("name", " "),
    ("name", ""),
    ("name", "a\0"),
    ("name", "a\ud800"),
    ("name", "x" * 201),
    ("queue", "a\0"),
    ("queue", 1),
    ("description", "a\0"),
    ("due_kwarg", "a b"),
    ("max_instances", 0),
    ("max_instances", 40_000),
    ("max_runs", 0),
    ("max_runs", 2**31),
    ("misfire_grace_time", 0),
    ("jitter", 86_401),
    ("jitter", -1),
    ("retry_backoff", 3601),
    ("soft_time_limit", 0),
    ("pause_after_failures", 0),
    ("timezone", "Mars/Olympus"),
    ("start_at", datetime(2031, 1, 1)),
    ("start_at", datetime(2031, 3, 30, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))),
    ("end_at", datetime(9999, 12, 31, tzinfo=UTC)),
]
IDS = [f"{field} {str(value)[:20]!r}" for field, value in WRONG]


def row(field: str, value) -> Schedule:
    fields = {"name": "x", "task": "sample.echo", "args": [1], "cron": CRON, "created_at": timezone.now()}
    return Schedule(**fields | ({"args": []} if field == "kwargs" else {}) | {field: value})


def words(field: str, value) -> str:
    """What the rules say of it, at its field."""
    ((at, said), *_) = complaints(row(field, value))
    assert at == field
    return said


@pytest.mark.parametrize(("field", "value"), WRONG, ids=IDS)
def test_it_is_refused_at_its_field(field, value):
    assert words(field, value)


@pytest.mark.parametrize(("field", "value"), WRONG, ids=IDS)
def test_the_manager_says_so(field, value):
    given = {"args": [1]} if field != "kwargs" else {}
    options = given | {field: value}
    task, name = options.pop("task", "sample.echo"), options.pop("name", "x")
    if {"catch_up", "blackout_action"} & options.keys():
        with pytest.raises(TypeError, match=field):
            ApsSchedulerManager().register_cron(task, CRON, id=name, **options)
        return
    with pytest.raises(ScheduleError) as refused:
        ApsSchedulerManager().register_cron(task, CRON, id=name, **options)
    assert refused.value.field == field
    assert words(field, value) in str(refused.value)


@pytest.mark.parametrize(("field", "value"), WRONG, ids=IDS)
def test_a_declaration_says_so(field, value, monkeypatch):
    monkeypatch.setattr(declared, "DECLARED", {})
    given = {"name": "x", "task": "sample.echo", "cron": CRON} | ({} if field == "kwargs" else {"args": [1]})
    with pytest.raises(ScheduleError) as refused:
        declare(**given | {field: value})
    assert refused.value.field == field
    assert words(field, value) in str(refused.value)
    assert not declared.DECLARED


IN_JSON = [(field, value) for field, value in WRONG if not isinstance(value, datetime)]


@pytest.mark.parametrize(("field", "value"), IN_JSON)
def test_an_import_says_so(field, value, admin_user):
    entry = {"model": import_export.SCHEDULE, "name": "x", "task": "sample.echo", "cron": CRON, "timezone": "UTC"}
    entry |= {} if field == "kwargs" else {"args": [1]}
    with pytest.raises(import_export.ExchangeError) as refused:
        import_export.bring(import_export.load(json.dumps([entry | {field: value}])), admin_user)
    (said,) = refused.value.problems
    if "NaN" in json.dumps(value) or "Infinity" in json.dumps(value):
        assert "is no JSON: write a number or null" in said
    elif field == "name" and value == "":
        assert 'it needs a "name"' in said
    else:
        assert f"{field}: {words(field, value)}" in said
    assert not Schedule.objects.exists()


@pytest.mark.parametrize(
    ("field", "value"), [each for each in WRONG if each[0] in ("priority", "overlap", "catch_up", "jitter", "name")]
)
def test_a_save_says_so(field, value):
    if field == "jitter" and value > 0:
        return  # a policy: for what fires
    with pytest.raises(ScheduleError) as refused:
        row(field, value).save()
    assert refused.value.field == field
    assert words(field, value) in str(refused.value)


def test_arguments_may_be_a_tuple_where_code_gives_them():
    assert complaints(row("args", (1,))) == []
    Schedule.objects.create(name="saved", task="sample.echo", cron=CRON, args=(1,))
    ApsSchedulerManager().register_cron("sample.echo", CRON, id="registered", args=(1,))
    assert Schedule.objects.get().args == [1]


def test_a_save_of_some_fields_is_asked_about_those_alone():
    schedule = Schedule.objects.create(name="s", task="sample.noop", cron=CRON)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE scheduling_app_schedule SET args = 'nonsense'")
    schedule.refresh_from_db()
    schedule.description = "new"
    schedule.save(update_fields=["description"])
    with pytest.raises(ScheduleError, match="args"):
        schedule.save()


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", " "), ("priority", "99"), ("overlap", "bogus"), ("args", '"abc"'), ("args", "[NaN]"), ("task", "gone")],
)
def test_the_form_says_so_at_the_field(field, value):
    form = ScheduleForm({"name": "x", "task": "sample.echo", "args": "[1]", "kind": "cron", "cron": CRON, field: value})
    assert field in form.errors


def test_a_blank_name_has_the_same_words_in_the_form():
    assert ScheduleForm({"name": " "}).errors["name"] == [words("name", " ")]


def test_what_beat_has_is_asked_the_same():
    task = SimpleNamespace(
        **dict.fromkeys(("exchange", "routing_key", "queue", "expire_seconds", "expires", "start_time", "clocked")),
        **{"task": "sample.echo", "one_off": False, "description": "", "args": "[1]", "kwargs": "{}", "headers": "{}"},
        **{"enabled": True, "priority": 99, "name": "x", "interval": None, "solar": None, "last_run_at": None},
        crontab=SimpleNamespace(
            **{"minute": "0", "hour": "0", "day_of_month": "1", "month_of_year": "1", "day_of_week": "*"},
        ),
    )
    from celery.schedules import crontab

    task.crontab.schedule = crontab(minute=0, hour=0, day_of_month=1, month_of_year=1)
    task.crontab.schedule.tz = UTC
    with pytest.raises(beat.Refused) as refused:
        beat.from_periodic_task(task, timezone.now())
    assert refused.value.field == "priority"
    assert words("priority", 99) in str(refused.value)
    task.priority, task.args = 1, "[1, NaN]"
    with pytest.raises(beat.Refused, match=r"args: .*NaN is no JSON"):
        beat.from_periodic_task(task, timezone.now())
    task.args, task.kwargs = "[]", '{"value": 1, "value": 2}'
    with pytest.raises(beat.Refused, match=r'kwargs: .*the key "value" is there twice'):
        beat.from_periodic_task(task, timezone.now())


# What is past


def test_a_past_date_is_refused_where_it_is_new_and_left_where_it_is_known():
    past, manager = timezone.now() - timedelta(days=1), ApsSchedulerManager()
    with pytest.raises(ScheduleError, match="run_at: past: it would not run") as refused:
        manager.register_date("sample.noop", past, id="once")
    assert refused.value.field == "run_at"
    Schedule.objects.create(name="once", task="sample.noop", kind="date", run_at=past, timezone="UTC")
    manager.register_date("sample.noop", past, id="once")
    with pytest.raises(ScheduleError, match="end_at: past"):
        manager.register_cron("sample.noop", CRON, id="ended", end_at=past)


def test_a_timing_that_is_the_same_is_not_asked_whether_it_is_past():
    old = row("cron", CRON)
    old.end_at = timezone.now() - timedelta(days=1)
    assert past_complaint(old, None, timezone.now()) == ("end_at", "past: it would not run")
    assert past_complaint(old, old, timezone.now()) is None


@pytest.mark.parametrize("changes", [{"priority": 99}, {"cron": "61 * * * *"}, {"args": "abc"}, {"overlap": "bogus"}])
def test_a_job_is_not_modified_into_what_cannot_be(changes):
    Schedule.objects.create(name="x", task="sample.noop", cron=CRON)
    manager = ApsSchedulerManager()
    with pytest.raises(ScheduleError) as refused:
        manager.modify_job("x", **changes)
    assert refused.value.field == next(iter(changes))
    with pytest.raises(TypeError, match="fired_count"):
        manager.modify_job("x", fired_count=1)


# JSON as people write it


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', 'line 1, column 10: the key "a" is there twice'),
        ('{"a": 1,\n "\\u0061": 2}', 'line 2, column 2: the key "\\u0061" is there twice'),
        ('{"x": [{"b": 1, "c": {"b": 2}, "b": 3}]}', 'the key "b" is there twice'),
        ('{"": 1, "": 2}', 'the key "" is there twice'),
        ("[NaN]", "NaN is no JSON: write a number or null"),
        ("[-Infinity]", "-Infinity is no JSON"),
        ("[1e999]", "too large a number"),
        ("[" * 51 + "]" * 51, "nested more than 50 deep"),
        ("[" + "1" * 5000 + "]", "too long"),
        ("{'a': 1}", "double quotes"),
        ("[True]", "write true"),
        ("[1", "ends here"),
        ("", "ends here"),
        ("]", "line 1, column 1"),
    ],
)
def test_what_would_be_lost_without_a_word_is_refused_with_its_place(text, says):
    with pytest.raises(JSONTextError) as refused:
        read_json(text)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}, ['"a": 1, "a": 2', "NaN", '\\"a": '], {"a:": ":", 'b\\": ': 1}, "x"],
)
def test_what_looks_like_it_within_a_text_is_none(value):
    assert read_json(json.dumps(value)) == value
    assert read_json(json.dumps(value, indent=2)) == value


def test_a_key_that_is_there_twice_is_refused_in_the_form_and_in_a_file():
    text = '{"value": 1, "value": 2}'
    with pytest.raises(Exception, match='the key "value" is there twice'):
        ArgumentsField(dict).clean(text)
    for name in ("kwargs", "headers"):
        form = ScheduleForm({"name": "x", "task": "sample.echo", "kind": "cron", "cron": CRON, name: text})
        assert 'the key "value" is there twice' in form.errors[name][0]
    entry = f'[{{"model": "{import_export.SCHEDULE}", "name": "x", "task": "sample.echo", "kwargs": {text}}}]'
    for twice in (entry, entry.replace(text, "{}").replace('"name": "x"', '"name": "x", "name": "y"')):
        with pytest.raises(import_export.ExchangeError, match=r"the key .* is there twice"):
            import_export.load(twice)
