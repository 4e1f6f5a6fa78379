"""Rows that came by SQL: what no scheduler could read is refused, and any other fault is that row's alone.

Whatever is in one row, the schedulers' functions raise nothing, the others fire, and the pages are there.
"""

import time
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from django.db import DataError, IntegrityError, OperationalError, connection, transaction
from django.urls import reverse
from django.utils import timezone

from scheduling_app import jobstore
from scheduling_app.jobstore import ScheduleJobStore
from scheduling_app.ledger import backfill, firing, waiting
from scheduling_app.models import Backfill, Calendar, Schedule, ScheduleRun
from scheduling_app.outages import is_away
from scheduling_app.sources import drift
from tests.scheduling_app.ledger.test_firing import again, due, make, runs

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("published")]

MOST, SMALL_MOST = 2**31 - 1, 2**15 - 1
TIMES = (
    "infinity",
    "-infinity",
    "0001-01-01 00:00+00",
    "0001-01-03",
    "9999-12-29",
    "9999-12-31 23:59",
    "4000-01-01 BC",
)
JSON = ("", "nonsense", "[1", "null", "1", "[]", "{}", '"text"', "[NaN]", '{"a": Infinity}', "[" * 90_000, "[1e999]")
VALUES = {
    **dict.fromkeys(
        ("next_fire_at", "last_fire_at", "changed_at", "switched_at", "created_at", "run_at", "start_at", "end_at"),
        TIMES,
    ),
    **dict.fromkeys(("args", "kwargs", "headers"), JSON),
    **dict.fromkeys(
        (
            *("fired_count", "max_runs", "jitter", "misfire_grace_time", "expires_after", "soft_time_limit"),
            *("time_limit", "retry_backoff", "every"),
        ),
        ("0", "-1", str(MOST)),
    ),
    **dict.fromkeys(
        ("priority", "max_retries", "max_instances", "pause_after_failures"), ("0", "-1", "99", str(SMALL_MOST))
    ),
    **dict.fromkeys(("catch_up", "overlap", "blackout_action", "kind", "unit", "timezone", "cron"), ("", "bogus")),
    **dict.fromkeys(("task", "queue", "due_kwarg", "name", "owner", "note", "problem"), ("", " ", "bogus\n\x7f\u2028")),
    "missed": ("1", "{}", '{"is_paused": 1, "first": "x"}', "null"),
}
TIMING = ("run_at", "start_at", "end_at", "every", "unit", "timezone", "cron")
KINDS = ("interval", "cron", "date")


def by_sql(table: str, column: str, value: str, pk: int) -> bool:
    """Write it; whether it was not refused."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"UPDATE scheduling_app_{table} SET {column} = %s WHERE id = %s", [value, pk])
    except (IntegrityError, DataError):
        return False
    return True


def a_pass() -> None:
    """What a scheduler does; it must not take a fault of a row for a lost database."""
    store = ScheduleJobStore()
    store.get_due_jobs(timezone.now())
    store.get_next_run_time()
    assert not store._away
    assert not store._has_failed


@pytest.mark.parametrize("column", VALUES)
def test_whatever_a_column_holds_the_others_fire_and_the_pages_are_there(admin_client, column):
    good, bad = due(timedelta(0), name="good"), []
    for number, (kind, value) in enumerate(product(KINDS if column in TIMING else KINDS[:1], VALUES[column])):
        row = due(timedelta(0), name=f"{number}", kind=kind, cron="* * * * *", run_at=timezone.now(), overlap="skip")
        before = Schedule.objects.filter(pk=row.pk).values("next_fire_at", "changed_at").get()
        if by_sql("schedule", column, value, row.pk):
            bad.append(row)
            if column != "next_fire_at":  # due, where the trigger has not said otherwise
                Schedule.objects.filter(pk=row.pk, changed_at=None).update(**before)
    a_pass()
    a_pass()
    assert runs(good) == [("fired", "due")]
    addresses = [reverse("schedules:list"), reverse("admin:scheduling_app_schedule_changelist")]
    for row in bad:
        stored = again(row)
        settled = stored.runs.exists() or stored.problem or stored.next_fire_at is None
        assert settled or max(stored.next_fire_at, stored.changed_at or stored.next_fire_at) > timezone.now(), (
            stored.name
        )
        addresses.append(reverse("schedules:detail", args=[row.pk]))
        addresses.append(reverse("admin:scheduling_app_schedule_change", args=[row.pk]))
    for address in addresses:
        assert admin_client.get(address).status_code == 200, address


@pytest.mark.parametrize(
    ("table", "column", "values"),
    [
        ("schedule", "next_fire_at", ("infinity", "-infinity", "4000-01-01 BC")),
        ("schedule", "last_fire_at", ("infinity", "-infinity")),
        ("schedule", "changed_at", ("infinity", "-infinity")),
        ("schedule", "switched_at", ("infinity", "-infinity")),
        ("schedule", "created_at", ("infinity", "-infinity")),
        ("schedule", "catch_up", ("bogus", "")),
        ("schedule", "overlap", ("bogus", "")),
        ("schedule", "blackout_action", ("bogus", "")),
        ("schedulerun", "scheduled_for", ("infinity", "-infinity")),
        ("schedulerun", "fired_at", ("infinity", "-infinity")),
        ("schedulerun", "outcome", ("bogus", "")),
        ("schedulerun", "reason", ("bogus", "")),
        ("backfill", "start_at", ("infinity",)),
        ("backfill", "end_at", ("infinity",)),
        ("backfill", "created_at", ("-infinity",)),
        ("backfill", "finished_at", ("infinity",)),
        ("backfill", "state", ("bogus",)),
        ("backfill", "which", ("bogus",)),
        ("window", "start_at", ("-infinity",)),
    ],
)
def test_what_nobody_could_read_is_refused_by_the_table(table, column, values):
    schedule = due(timedelta(minutes=3))
    firing.fire_due()
    begun = backfill.start(schedule, backfill.due_times(schedule, schedule.start_at, timezone.now()), which="all")
    calendar = Calendar.objects.create(name="c")
    window = calendar.windows.create(start_at=timezone.now(), end_at=timezone.now() + timedelta(1))
    pks = {"schedule": schedule.pk, "schedulerun": schedule.runs.first().pk, "backfill": begun.pk, "window": window.pk}
    for value in values:
        assert not by_sql(table, column, value, pks[table])


def test_a_count_that_is_full_stays_so_and_the_schedule_fires():
    schedule = due(timedelta(0))
    assert by_sql("schedule", "fired_count", str(MOST), schedule.pk)
    firing.fire_due()
    assert runs(schedule) == [("fired", "due")]
    assert again(schedule).fired_count == MOST


@pytest.mark.parametrize(
    ("column", "value"), [("minutes", str(MOST)), ("cron", "61 * * * *"), ("cron", "bogus"), ("minutes", "527041")]
)
def test_a_calendar_at_fault_is_told_by_the_runs_of_what_goes_by_it(admin_client, column, value):
    calendar = Calendar.objects.create(name="c")
    window = calendar.windows.create(cron="0 0 * * *", minutes=1)
    bad, good = due(timedelta(0), name="bad", blackout=calendar), due(timedelta(0), name="good")
    assert by_sql("window", column, value, window.pk)
    a_pass()
    assert runs(bad) == [("skipped", "invalid")]
    assert f"Calendar c: {column}" in bad.runs.get().detail
    assert runs(good) == [("fired", "due")]
    for address in (
        reverse("schedules:detail", args=[bad.pk]),
        reverse("admin:scheduling_app_calendar_change", args=[calendar.pk]),
        reverse("admin:scheduling_app_calendar_changelist"),
    ):
        assert admin_client.get(address).status_code == 200


def test_the_zone_of_a_calendar_is_its_own_fault_too():
    calendar = Calendar.objects.create(name="c")
    calendar.windows.create(cron="0 0 * * *", minutes=1)
    bad, good = due(timedelta(0), name="bad", blackout=calendar), due(timedelta(0), name="good")
    assert by_sql("calendar", "timezone", "Mars/Olympus", calendar.pk)
    a_pass()
    assert runs(bad) == [("skipped", "invalid")]
    assert runs(good) == [("fired", "due")]


REFUSING = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;
CREATE TRIGGER refuse BEFORE {what} ON scheduling_app_{table} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION refuse();
"""


@pytest.mark.parametrize(
    ("what", "table", "when", "found"),
    [
        ("INSERT", "schedulerun", "NEW.schedule_id = {pk} AND NEW.outcome = 'fired'", [("skipped", "invalid")]),
        ("INSERT", "schedulerun", "NEW.schedule_id = {pk}", []),
        ("UPDATE", "schedule", "NEW.id = {pk}", []),
    ],
)
def test_a_row_that_the_database_refuses_to_write_keeps_no_other_from_firing(what, table, when, found):
    bad, good = due(timedelta(0), name="bad"), due(timedelta(0), name="good")
    with connection.cursor() as cursor:
        cursor.execute(REFUSING.format(what=what, table=table, when=when.format(pk=bad.pk)))
    a_pass()
    assert runs(bad) == found
    assert runs(good) == [("fired", "due")]


def test_one_that_cannot_be_planned_for_an_error_of_the_database_keeps_no_other_from_it():
    bad, good = make("bad"), make("good")
    with connection.cursor() as cursor:
        cursor.execute(REFUSING.format(what="UPDATE", table="schedule", when=f"NEW.id = {bad.pk}"))
    a_pass()
    assert again(bad).next_fire_at is None
    assert again(good).next_fire_at is not None


def test_a_waiting_run_that_the_database_refuses_keeps_no_other_from_its_turn():
    bad, good = make("bad", overlap="queue_all"), make("good", overlap="queue_all")
    for each in (bad, good):
        each.runs.create(scheduled_for=timezone.now(), outcome="waiting", reason="overlap")
    with connection.cursor() as cursor:
        cursor.execute(REFUSING.format(what="UPDATE", table="schedulerun", when=f"NEW.schedule_id = {bad.pk}"))
    a_pass()
    assert runs(bad) == [("waiting", "overlap")]
    assert runs(good) == [("fired", "late")]


def test_a_schedule_whose_key_is_negative_has_its_turn():
    schedule = Schedule.objects.create(pk=-5, name="n", task="sample.noop", cron="0 0 1 1 *", overlap="queue_all")
    schedule.runs.create(scheduled_for=timezone.now(), outcome="waiting", reason="overlap")
    waiting.release_waiting()
    assert runs(schedule) == [("fired", "late")]


@pytest.mark.parametrize(
    ("statement", "away"),
    [
        ("SELECT 1/0", False),
        ("SELECT 'x'::int", False),
        ("SELECT * FROM nothing", False),
        ("SET LOCAL statement_timeout = '1ms'; SELECT pg_sleep(1)", False),
        ("SELECT pg_terminate_backend(pg_backend_pid())", True),
    ],
)
@pytest.mark.django_db(transaction=True)
def test_the_database_is_away_only_where_there_is_none_to_ask(statement, away):
    with pytest.raises(Exception) as raised, transaction.atomic(), connection.cursor() as cursor:  # noqa: PT011
        cursor.execute(statement)
    connection.close()
    assert is_away(raised.value) is away


def test_an_error_without_a_word_from_postgres_is_that_of_the_connection():
    assert is_away(OperationalError("the connection is lost"))
    assert not is_away(KeyError("a bug"))


def test_a_step_of_a_pass_that_fails_keeps_the_others_from_nothing(monkeypatch, caplog):
    schedule = due(timedelta(0))

    def fail(*_):
        raise DataError("not to be planned")

    monkeypatch.setattr(jobstore, "plan_changed", fail)
    monkeypatch.setattr(jobstore.connections, "close_all", lambda: None)  # a test's transaction would be lost
    ScheduleJobStore().get_due_jobs(datetime.now(UTC))
    assert runs(schedule) == [("fired", "due")]
    assert "not to be planned" in caplog.text


def test_pages_of_runs_and_backfills_show_what_there_is(admin_client):
    schedule = due(timedelta(minutes=3))
    firing.fire_due()
    begun = backfill.start(schedule, backfill.due_times(schedule, schedule.start_at, timezone.now()), which="all")
    for table, column, pk, value in (
        ("schedulerun", "scheduled_for", schedule.runs.first().pk, "0001-01-03"),
        ("schedulerun", "fired_at", schedule.runs.first().pk, "9999-12-29"),
        ("backfill", "start_at", begun.pk, "0001-01-03"),
        ("backfill", "total", begun.pk, str(MOST)),
        ("backfill", "concurrency", begun.pk, str(SMALL_MOST)),
    ):
        assert by_sql(table, column, value, pk)
    a_pass()
    assert Backfill.objects.get().state in ("running", "finished")
    assert ScheduleRun.objects.exists()
    for address in (reverse("schedules:detail", args=[schedule.pk]), reverse("schedules:backfill", args=[begun.pk])):
        assert admin_client.get(address).status_code == 200
        for before in ("0001-01-01", "9999-12-31 23:59:59.999999", "0001-01-01 00:00:00+14:00", "infinity"):
            assert admin_client.get(address, {"before": before}).status_code == 200, before


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize(
    ("start", "end"), [("1970-01-01T00:00", "9998-12-31T23:59"), ("0001-01-01T00:00", "9999-12-31T23:59"), ("x", "")]
)
def test_a_range_of_any_length_is_looked_through_or_refused(admin_client, start, end, zone):
    schedule = due(timedelta(0), kind="cron", cron="* * * * * *", timezone=zone)
    address, started_at = reverse("schedules:backfill_choose", args=[schedule.pk]), time.process_time()
    assert admin_client.get(address, {"start_at": start, "end_at": end}).status_code == 200
    assert time.process_time() - started_at < 5


@pytest.mark.parametrize("value", JSON)
@pytest.mark.parametrize("column", ["args", "kwargs"])
def test_the_drift_alarm_names_what_sql_has_spoilt_and_says_what_it_says_of_the_others(column, value):
    bad = due(timedelta(0), name="bad", task="sample.noop", args=[])
    Schedule.objects.bulk_create([Schedule(name="gone", task="sample.gone", cron="0 0 1 1 *")])
    assert by_sql("schedule", column, value, bad.pk)
    assert "No task sample.gone is registered. (gone)" in str(drift.find())
