"""A real scheduler beside rows that no one should have written: the healthy ones fire on time all the same."""

from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from scheduling_app.models import Calendar, Schedule
from tests.acceptance.processes import Manage, eventually
from tests.acceptance.test_scheduler import assert_each_second_once, every_second, fired, schedule

__all__ = ["schedule"]  # a fixture

OLDEST = """
SELECT coalesce(max(clock_timestamp() - xact_start), '0') FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
REFUSING = """
CREATE FUNCTION refuse_sample() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;
CREATE TRIGGER refuse_sample BEFORE INSERT ON scheduling_app_schedule FOR EACH ROW
WHEN (NEW.name = 'sample yearly') EXECUTE FUNCTION refuse_sample();
"""


def execute(sql: str, *params):
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone() if cursor.description else None


@pytest.fixture
def always_closed(committed):
    """Calendars that leave no time, of windows of all kinds."""
    made = []
    for number, windows in enumerate(
        [[("0 0 * * *", 1440)], [("* * * * *", 1)], [("*/2 * * * *", 1), ("1-59/2 * * * *", 1)]]
    ):
        made.append(Calendar.objects.create(name=f"closed {number}", timezone="UTC"))
        for cron, minutes in windows:
            made[-1].windows.create(cron=cron, minutes=minutes)
    yield made
    Schedule.objects.filter(blackout__in=made).delete()
    Calendar.objects.filter(pk__in=[each.pk for each in made]).delete()


def test_healthy_schedules_fire_on_time_beside_closed_calendars_that_missed_much(schedule, always_closed):
    missed = timezone.now() - timedelta(hours=20)
    closed = [
        schedule(kind="cron", cron="* * * * *", blackout=calendar, catch_up=catch_up, blackout_action=action)
        for calendar in always_closed
        for catch_up, action in (("all", "skip"), ("latest", "skip"), ("all", "defer"))
    ]
    good = schedule(**every_second())
    with Manage("runscheduler") as process:
        process.wait_for("Scheduler started.")
        eventually(lambda: fired(good), 15)
        Schedule.objects.filter(pk__in=[each.pk for each in closed]).update(next_fire_at=missed)
        before, oldest = len(fired(good)), timedelta(0)

        def three_more() -> bool:
            nonlocal oldest
            oldest = max(oldest, execute(OLDEST)[0])
            return len(fired(good)) >= before + 3

        eventually(three_more, 15)
        eventually(lambda: all(each.runs.filter(outcome="skipped").count() >= 990 for each in closed), 20)
        assert_each_second_once(fired(good)[before - 1 :])
    late = [run.fired_at - run.scheduled_for for run in good.runs.order_by("scheduled_for")[before:]]
    assert max(late) < timedelta(seconds=3)
    assert oldest < timedelta(seconds=3), "one second, on a machine that has time"


def test_healthy_schedules_fire_beside_rows_that_sql_has_spoilt(schedule):
    spoilt = [
        "fired_count = 2147483647",
        "headers = '[]'",
        "headers = '{\"id\": 1}'",
        "args = 'nonsense'",
        "last_fire_at = '0001-01-03'",
        "priority = 32767",
        "jitter = 2147483647",
        "next_fire_at = '0001-01-03'",
    ]
    bad = [schedule(**every_second()) for _ in spoilt]
    good = schedule(**every_second())
    with Manage("runscheduler") as process:
        process.wait_for("Scheduler started.")
        eventually(lambda: all(fired(each) for each in bad), 20)
        for each, what in zip(bad, spoilt, strict=True):
            execute(f"UPDATE scheduling_app_schedule SET {what} WHERE id = {each.pk}")
        since = timezone.now()
        eventually(lambda: len([at for at in fired(good) if at > since]) >= 3, 15)
        eventually(lambda: all(each.runs.filter(scheduled_for__gt=since).exists() for each in bad), 15)
        assert "waits for the database" not in process.said()
        assert "Traceback" not in process.said()
    assert_each_second_once([at for at in fired(good) if at > since])


@contextmanager
def refused():
    execute(REFUSING)
    try:
        yield
    finally:
        execute("DROP TRIGGER refuse_sample ON scheduling_app_schedule; DROP FUNCTION refuse_sample()")


@contextmanager
def nobody_may_sync():
    """The lock that a sync takes is held, as by a process that is stuck."""
    execute("SELECT pg_advisory_lock(5170239841)")
    try:
        yield
    finally:
        execute("SELECT pg_advisory_unlock_all()")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (refused, "Schedule 'sample yearly' of app sample is as it was: not this one"),
        (nobody_may_sync, "Schedules in code are as they were: canceling statement due to lock timeout"),
    ],
)
def test_a_sync_that_the_database_refuses_is_named_and_the_others_fire(schedule, fault, says):
    good = schedule(**every_second())
    with fault(), Manage("runscheduler", SAMPLE_SCHEDULES="1") as process:
        try:
            process.wait_for(says)
            process.wait_for("Scheduler started.")
            since = timezone.now()
            eventually(lambda: [at for at in fired(good) if at > since], 15)
            assert not Schedule.objects.filter(name="sample yearly").exists()
            if fault is refused:
                assert Schedule.objects.filter(name="sample each second").exists()
        finally:
            process.stop()
            Schedule.objects.filter(name__startswith="sample ").delete()
