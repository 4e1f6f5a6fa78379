"""The drift alarm: schedules whose tasks are gone, or no longer take their arguments, are found, named and shown."""

import time
from datetime import timedelta

import pytest
from django.core import checks
from django.core.management import call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from scheduling_app.ledger import planning
from scheduling_app.models import Schedule
from scheduling_app.sources import drift
from tests.acceptance.processes import eventually

pytestmark = pytest.mark.django_db

LIST, ADMIN = reverse("schedules:list"), reverse("admin:scheduling_app_schedule_changelist")


def add(name: str, **fields) -> Schedule:
    return Schedule.objects.create(name=name, **{"task": "sample.echo", "args": ["x"], "cron": "@daily"} | fields)


def write(schedule: Schedule, **texts: str) -> None:
    """Put these texts into its row, JSON or not."""
    with connection.cursor() as cursor:
        for column, text in texts.items():
            cursor.execute(f"UPDATE scheduling_app_schedule SET {column} = %s WHERE id = %s", [text, schedule.pk])


def found() -> dict[str, list[str]]:
    """The names that are found, by the complaint about them."""
    return {group.complaint: list(group.names) for group in drift.find().groups}


# What is found


def test_schedules_that_would_run_are_not_found():
    add("positional")
    add("by name", args=[], kwargs={"value": 1})
    add("with the due time", args=[], due_kwarg="value")
    add("odd characters", args=[], kwargs={"value": "\x00 \ud800 \\u0000 ß"})
    assert not drift.find()


@pytest.mark.parametrize(
    ("complaint", "fields"),
    [
        ("No task sample.gone is registered.", {"task": "sample.gone"}),
        ("Too many positional arguments: sample.echo takes (value).", {"args": [1, 2]}),
        ("Missing a required argument: 'value': sample.echo takes (value).", {"args": []}),
        ("Got an unexpected keyword argument 'ü': sample.echo takes (value).", {"kwargs": {"ü": 1}}),
        ("Multiple values for argument 'value': sample.echo takes (value).", {"due_kwarg": "value"}),
    ],
)
def test_one_that_would_not_run_is_found_with_the_reason(complaint, fields):
    add("good")
    add("bad", **fields)
    assert found() == {complaint: ["bad"]}


@pytest.mark.parametrize(
    ("column", "text", "complaint"),
    [
        ("args", '{"value": 1}', "sample.echo: args must be a list, not dict."),
        ("args", "[1", "sample.echo: args must be a list, not str."),
        ("kwargs", "[]", "sample.echo: kwargs must be an object, not list."),
        ("kwargs", "null", "sample.echo: kwargs must be an object, not NoneType."),
        ("kwargs", "", "sample.echo: kwargs must be an object, not str."),
    ],
)
def test_what_sql_put_there_is_found_where_it_is_no_list_or_object(column, text, complaint):
    write(add("bad"), **{column: text})
    add("good")
    assert found() == {complaint: ["bad"]}


def test_what_will_not_fire_anyway_is_not_looked_at():
    add("paused", task="sample.gone", enabled=False)
    add("over", task="sample.gone", cron="", kind="date", run_at=timezone.now() - timedelta(days=1))
    planning.plan_changed()
    assert not drift.find()
    Schedule.objects.filter(name="paused").set_enabled(True)
    assert drift.find().count == 1


def test_the_first_are_named_and_all_are_counted():
    Schedule.objects.bulk_create(
        Schedule(name=f"{n:03}", task="sample.gone", args=[0] * (n % 3), cron="@daily") for n in range(50)
    )
    add("other", args=[])
    gone, other = drift.find().groups
    assert (gone.count, gone.unnamed, list(gone.names)) == (50, 31, [f"{n:03}" for n in range(19)])
    assert (other.count, other.unnamed, list(other.names)) == (1, 0, ["other"])
    text = str(drift.find())
    assert text.startswith("51 schedules would not run:\n  No task sample.gone is registered. (000, 001, ")
    assert "017, 018 and 31 more)\n" in text


def test_of_many_reasons_the_most_frequent_are_told_each_with_a_name():
    for n in range(drift.NAMED + 5):
        add(f"{n:02} once", task=f"sample.gone{n}")
    for n in range(3):
        add(f"often {n}", task="sample.often", args=[0] * n)
    told = drift.find()
    assert (told.count, len(told.groups), told.groups[0].count) == (drift.NAMED + 8, drift.NAMED, 3)
    assert all(len(group.names) == 1 for group in told.groups)


def test_a_million_are_a_few_groups_of_which_one_each_is_tried():
    Schedule.objects.bulk_create(
        Schedule(name=f"{n}", task="sample.echo", kwargs={"value": f"{n}"}, cron="@daily") for n in range(1000)
    )
    with connection.cursor() as cursor:
        cursor.execute(drift._GROUPS)
        assert [count for _, count in cursor.fetchall()] == [1000]
    with CaptureQueriesContext(connection) as queries:
        assert not drift.find()
    assert len(queries) == 2


# The system check


def asked(**options) -> list[checks.CheckMessage]:
    return [message for message in checks.run_checks(**options) if message.id == "scheduling_app.W001"]


def test_the_system_check_names_them_when_it_may_ask_the_database(capsys):
    add("nightly", task="sample.gone")
    (warning,) = asked(tags=["database"], databases=["default"])
    assert warning.msg == "1 schedule would not run:\n  No task sample.gone is registered. (nightly)"
    assert not asked()
    assert not asked(tags=["database"], databases=[])
    call_command("check", databases=["default"])
    assert "nightly" in capsys.readouterr().err


def test_the_system_check_is_silent_where_all_would_run_or_there_are_no_tables():
    add("good")
    assert not asked(tags=["database"], databases=["default"])
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE scheduling_app_schedule RENAME TO not_yet")
    assert not asked(tags=["database"], databases=["default"])


# The banner


@pytest.fixture
def watch(monkeypatch):
    """A watch of this test's own, as a process has it that has just started."""
    watch = drift.Watch()
    monkeypatch.setattr(drift, "watch", watch)
    yield watch
    watch.thread.join(10)
    assert not watch.thread.is_alive()


def look_anew(watch: drift.Watch) -> drift.Drift:
    watch.look_at = 0
    watch.latest()
    watch.thread.join(10)
    return watch.latest()


def connections() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        return cursor.fetchone()[0]


@pytest.mark.django_db(transaction=True)
def test_the_pages_show_what_was_found_soon_after_the_start(watch, client, django_user_model, caplog):
    client.force_login(django_user_model.objects.create(username="admin", is_staff=True, is_superuser=True))
    add("nightly & co", task="sample.gone")
    before = connections()
    client.get(LIST)
    watch.thread.join(10)
    eventually(lambda: connections() <= before, what="its connection is closed")
    assert "nightly & co" in caplog.text
    for address in (LIST, ADMIN, reverse("schedules:next")):
        text = client.get(address).text
        assert "1 schedule would not run" in text
        assert f'No task sample.gone is registered. <a href="{LIST}?q=sample.gone">nightly &amp; co</a>' in text
    shown = client.get(f"{LIST}?q=sample.gone")
    assert [row.schedule.name for row in shown.context["rows"]] == ["nightly & co"]


@pytest.mark.django_db(transaction=True)
def test_the_banner_goes_when_the_schedules_are_mended(watch, caplog):
    add("nightly", task="sample.gone")
    assert look_anew(watch)
    assert look_anew(watch)
    assert len(caplog.messages) == 1  # the same is said once
    Schedule.objects.update(task="sample.echo")
    assert not look_anew(watch)


@pytest.mark.django_db(transaction=True)
def test_nobody_waits_for_a_look_and_a_long_one_is_followed_by_a_longer_pause(watch):
    watch.every = 0
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE scheduling_app_schedule IN ACCESS EXCLUSIVE MODE")
        began_at = time.monotonic()
        assert not watch.latest()
        looking = watch.thread
        eventually(lambda: time.monotonic() > began_at + 0.1)
        assert not watch.latest()
        assert looking.is_alive()
        assert watch.thread is looking
    looking.join(10)
    assert watch.look_at > began_at + 0.1 * drift.SHARE
    watch.latest()
    assert watch.thread is looking


@pytest.mark.django_db(transaction=True)
def test_a_look_that_fails_is_said_and_leaves_what_was_known(watch, caplog):
    add("nightly", task="sample.gone")
    assert look_anew(watch)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE scheduling_app_schedule RENAME TO not_there")
    try:
        assert look_anew(watch)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE not_there RENAME TO scheduling_app_schedule")
    assert "not looked through for drift" in caplog.text


def test_the_overview_shows_it_to_those_who_may_see_schedules(monkeypatch, client, django_user_model):
    group = drift.Group("sample.gone", "No task sample.gone is registered.", ["nightly"], 1)
    monkeypatch.setattr(drift.watch, "_drift", drift.Drift(1, [group]))
    client.force_login(django_user_model.objects.create(username="staff", is_staff=True))
    assert reverse("schedules:next") not in client.get(reverse("tasks:overview")).text
    assert client.get(reverse("schedules:next")).status_code == 403
