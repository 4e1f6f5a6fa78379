"""Schedules and calendars as JSON and back: for review, so the same text for the same rows, and all or nothing."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext

from scheduling_app.models import Calendar, Schedule, ScheduleRun, Window
from scheduling_app.sources import import_export
from scheduling_app.sources.import_export import CALENDAR, SCHEDULE, ExchangeError

pytestmark = pytest.mark.django_db

ECHO = {"task": "sample.echo", "args": [1]}


@pytest.fixture
def user():
    return User.objects.create(username="u")


def make(name: str, **fields) -> Schedule:
    return Schedule.objects.create(name=name, **{**ECHO, "cron": "0 9 * * *", **fields})


def calendar(name: str) -> Calendar:
    made = Calendar.objects.create(name=name, timezone="Europe/Berlin", description="closed")
    Window.objects.create(calendar=made, cron="0 22 * * *", minutes=60)
    start = datetime(2026, 12, 24, tzinfo=UTC)
    Window.objects.create(calendar=made, start_at=start, end_at=start + timedelta(days=2))
    return made


def text() -> str:
    return import_export.dump(Schedule.objects.all(), Calendar.objects.all())


def entry(name: str, **fields) -> dict:
    return {"model": SCHEDULE, "name": name, "cron": "0 9 * * *", "timezone": "UTC", **ECHO, **fields}


def bring(*entries: dict, user, **options) -> list[tuple[str, str, dict]]:
    changes = import_export.bring(import_export.load(json.dumps(entries)), user, **options)
    return [(change.what, change.name, dict(change.fields)) for change in changes]


def problems(*entries: dict, user, **options) -> list[str]:
    with pytest.raises(ExchangeError) as refusal:
        bring(*entries, user=user, **options)
    return list(refusal.value.problems)


def rich_rows() -> None:
    """Of each kind, with what is awkward in JSON."""
    make(
        "zwölf",
        kwargs={"value": {"b": "é\x00\ud800", "a": [1.0, 1, True, None, 10**30, {"__type__": "datetime"}]}},
        args=[],
        blackout=calendar("holidays"),
        blackout_action="defer",
        overlap="queue_one",
        misfire_grace_time=None,
        priority=0,
        enabled=False,
        headers={"x": 1},
    )
    make("Every", kind="interval", cron="", every=3, unit="days", timezone="Asia/Tokyo")
    make("once", kind="date", cron="", run_at=datetime(2020, 1, 1, 12, 0, 0, 5, tzinfo=UTC))
    make("gone", task="sample.gone", start_at=datetime(2026, 1, 1, tzinfo=UTC), max_runs=3)


# Out


def test_only_what_differs_from_the_default_is_written_and_no_ids():
    make("b", blackout=calendar("holidays"), enabled=False)
    make("a", timezone="Europe/Berlin", start_at=datetime(2026, 7, 1, tzinfo=UTC))
    assert json.loads(text()) == [
        {
            "model": "scheduling_app.calendar",
            "name": "holidays",
            "description": "closed",
            "timezone": "Europe/Berlin",
            "windows": [
                {"cron": "0 22 * * *", "minutes": 60},
                {"start_at": "2026-12-24T01:00:00+01:00", "end_at": "2026-12-26T01:00:00+01:00"},
            ],
        },
        {
            "model": "scheduling_app.schedule",
            "name": "a",
            "task": "sample.echo",
            "args": [1],
            "cron": "0 9 * * *",
            "timezone": "Europe/Berlin",
            "start_at": "2026-07-01T02:00:00+02:00",
        },
        {
            "model": "scheduling_app.schedule",
            "name": "b",
            "task": "sample.echo",
            "args": [1],
            "enabled": False,
            "cron": "0 9 * * *",
            "timezone": "UTC",
            "blackout": "holidays",
        },
    ]


def test_an_interval_takes_along_from_when_it_counts():
    made = make("i", kind="interval", cron="", every=1, unit="minutes", jitter=2)
    written = json.loads(text())[0]
    assert list(written) == ["model", "name", "task", "args", "kind", "every", "unit", "timezone", "start_at", "jitter"]
    assert (written["unit"], written["start_at"]) == ("minutes", made.created_at.isoformat())


def test_what_code_declares_is_left_out():
    make("coded", owner="sample")
    assert json.loads(text()) == []


# There and back


def test_export_import_export_gives_the_same_bytes(user):
    rich_rows()
    before = text()
    assert "\\ud800" in before.encode().decode()
    kept = import_export.bring(import_export.load(before), user)
    assert {change.what for change in kept} == {"keep"}
    assert not LogEntry.objects.exists()
    Schedule.objects.exclude(name="gone").delete()
    Calendar.objects.all().delete()
    import_export.bring(import_export.load(before), user)
    assert text() == before


def test_the_order_is_that_of_the_names_whatever_the_database_sorts_by():
    for name in ("b", "B", "a", "Z"):
        make(name)
    exported = import_export.dump(Schedule.objects.order_by("-name"), Calendar.objects.all())
    assert [each["name"] for each in json.loads(exported)] == ["B", "Z", "a", "b"]


# In


def test_a_change_is_told_field_by_field_and_only_that_is_written(user):
    made = make("s", queue="slow", jitter=5)
    Schedule.objects.filter(pk=made.pk).update(next_fire_at=datetime(2026, 1, 1, tzinfo=UTC), problem="x")
    with CaptureQueriesContext(connection) as queries:
        assert bring(entry("s", cron="0 10 * * *", jitter=5), user=user) == [
            ("change", "s", {"queue": ("slow", ""), "cron": ("0 9 * * *", "0 10 * * *")})
        ]
    (update,) = (query["sql"] for query in queries if query["sql"].startswith("UPDATE"))
    assert '"jitter"' not in update
    again = Schedule.objects.get()
    assert (again.cron, again.queue, again.jitter, again.created_at) == ("0 10 * * *", "", 5, made.created_at)
    assert LogEntry.objects.get(object_id=made.pk).change_message == "Imported: queue, cron."


def test_true_is_not_one_and_one_is_not_a_float(user):
    make("s", args=[1])
    assert bring(entry("s", args=[True]), user=user) == [("change", "s", {"args": ([1], [True])})]
    assert bring(entry("s", args=[1.0]), user=user) == [("change", "s", {"args": ([True], [1.0])})]


def test_times_may_have_any_offset(user):
    make("s", start_at=datetime(2026, 7, 1, tzinfo=UTC))
    assert bring(entry("s", start_at="2026-07-01T02:00:00+02:00"), user=user) == [("keep", "s", {})]


def test_a_calendar_and_what_names_it_come_together(user):
    windows = [{"cron": "0 22 * * *", "minutes": 60}]
    both = [entry("s", blackout="c"), {"model": CALENDAR, "name": "c", "timezone": "UTC", "windows": windows}]
    assert bring(*both, user=user) == [("add", "c", {}), ("add", "s", {})]
    assert Schedule.objects.get().blackout.windows.get().minutes == 60
    both[1]["windows"] = []
    assert bring(*both, user=user) == [("change", "c", {"windows": (windows, [])}), ("keep", "s", {})]
    assert not Window.objects.exists()


def test_prune_removes_what_is_not_in_the_text_and_says_how_many_runs_go(user):
    old = make("old", blackout=calendar("c"))
    ScheduleRun.objects.create(
        schedule=old, scheduled_for=datetime(2026, 1, 1, tzinfo=UTC), outcome="fired", reason="due"
    )
    make("coded", owner="sample")
    changes = import_export.bring([entry("s")], user, prune=True)
    assert [(change.what, change.name, change.runs) for change in changes] == [
        ("add", "s", 0),
        ("remove", "old", 1),
        ("remove", "c", 0),
    ]
    assert set(Schedule.objects.values_list("name", flat=True)) == {"s", "coded"}
    assert not Calendar.objects.exists()


def test_a_calendar_in_use_is_not_pruned(user):
    make("coded", owner="sample", blackout=calendar("c"))
    assert problems(user=user, prune=True) == ["calendar c: schedule coded still names it, so it cannot be removed."]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"cron": "61 * * * *"}, "cron: minute: 61"),
        ({"timezone": "Mars/Olympus"}, "timezone: 'Mars/Olympus'"),
        ({"task": "sample.gone"}, "task: No task sample.gone"),
        ({"args": [1, 2]}, "args: Too many"),
        ({"args": "1"}, "args: Write a JSON list"),
        ({"args": json.loads("[" * 51 + "]" * 51)}, "args: Nested more than 50 deep"),
        ({"headers": []}, "headers: Write a JSON object"),
        ({"headers": {"scheduled_for": 1}}, "headers: scheduled_for"),
        ({"due_kwarg": "a b"}, "due_kwarg: Write the name"),
        ({"priority": 10}, "priority: "),
        ({"priority": "1"}, 'priority: Write a whole number, not "1"'),
        ({"priority": True}, "priority: Write a whole number, not true"),
        ({"args": [], "kwargs": {"value": 1}, "due_kwarg": "value"}, "due_kwarg: value is one"),
        ({"retry_backoff": 3601}, "retry_backoff: "),
        ({"enabled": 1}, "enabled: Write true or false, not 1"),
        ({"queue": 1}, "queue: Write a text"),
        ({"queue": "a\0"}, "queue: It has a character"),
        ({"jitter": None}, "jitter: This field cannot be null"),
        ({"jitter": 86_401}, "jitter: "),
        ({"overlap": "never"}, "overlap: "),
        ({"time_limit": 5, "soft_time_limit": 5}, "soft_time_limit: "),
        ({"kind": "date"}, "run_at: "),
        ({"kind": "interval"}, "every: "),
        ({"start_at": "2026-07-01T02:00:00"}, "start_at: '2026-07-01T02:00:00' is not a time"),
        ({"start_at": "0001-01-01T00:00:00+01:00"}, "start_at: '0001"),
        ({"blackout": "a\0"}, "blackout: It has a character"),
        ({"blackout": "gone"}, "blackout: There is no calendar 'gone'"),
        ({"que": "x"}, "que: there is no such field: did you mean queue?"),
        ({"next_fire_at": None}, "next_fire_at: there is no such field"),
    ],
)
def test_a_problem_names_the_schedule_and_the_field_and_nothing_is_written(fields, says, user):
    (problem,) = problems(entry("good"), entry("bad", **fields), user=user)
    assert problem.startswith(f"schedule bad: {says}")
    assert not Schedule.objects.exists()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"timezone": "Mars/Olympus"}, "timezone: "),
        ({"windows": {}}, "windows: Write a JSON list"),
        ({"windows": [{}]}, "windows 1: cron: "),
        ({"windows": [{"cron": "61 * * * *", "minutes": 1}]}, "windows 1: cron: minute"),
        ({"windows": [{"cron": "0 0 * * *", "minutes": 0}]}, "windows 1: minutes: "),
        ({"windows": [{"cron": "0 0 * * *", "minutes": 5, "end_at": "2026-07-01T02:00:00Z"}]}, "windows 1: cron: "),
    ],
)
def test_a_calendar_at_fault_is_refused(fields, says, user):
    (problem,) = problems({"model": CALENDAR, "name": "c", **fields}, user=user)
    assert problem.startswith(f"calendar c: {says}")
    assert not Calendar.objects.exists()


def test_all_problems_are_named_at_once(user):
    said = problems(entry("a", cron="x"), entry("b", task="gone", jitter=-1), user=user)
    assert [each.partition(": ")[0] for each in said] == ["schedule a", "schedule b"]


def test_what_code_declares_is_refused(user):
    make("s", owner="sample")
    assert problems(entry("s"), user=user)[0].startswith("schedule s: name: app sample declares it.")


def test_a_task_that_is_gone_may_stay_where_it_is_named_already(user):
    make("s", task="sample.gone")
    assert bring(entry("s", task="sample.gone", jitter=1), user=user) == [("change", "s", {"jitter": (0, 1)})]


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("[", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("{}", "not a list"),
        ("[1]", "Entry 1"),
        ('[{"name": "x"}]', "Entry 1"),
        (f'[{{"model": "{SCHEDULE}"}}]', "Entry 1"),
        (f'[{{"model": "{SCHEDULE}", "name": "a\\ud800"}}]', "Entry 1: name: It has a character"),
        (f'[{{"model": "{SCHEDULE}", "name": "x"}}, {{"model": "{SCHEDULE}", "name": "x"}}]', "Entry 2: name: 'x' is"),
    ],
)
def test_a_text_that_is_no_export_is_refused(written, says):
    with pytest.raises(ExchangeError, match=says):
        import_export.load(written)
