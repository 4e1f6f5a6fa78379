"""Real `runscheduler` processes: each due time fires once, edits are seen, nothing is lost to a kill."""

import os
import time
from datetime import timedelta
from itertools import pairwise
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone

from scheduling_app.models import Schedule, ScheduleRun
from tasks_app.models import TaskRecord
from tests.acceptance.processes import Manage, eventually


@pytest.fixture
def schedule(committed):
    """Makes schedules, of `sample.noop` unless told, which are deleted at the end."""
    made = []

    def make(**fields) -> Schedule:
        made.append(Schedule.objects.create(**{"name": str(uuid4()), "task": "sample.noop"} | fields))
        return made[-1]

    yield make
    Schedule.objects.filter(pk__in=[each.pk for each in made]).delete()


def every_second(**fields) -> dict:
    return {"kind": "interval", "every": 1, "unit": "seconds", "start_at": in_seconds(0, microsecond=0)} | fields


def in_seconds(seconds: float, **replaced):
    return (timezone.now() + timedelta(seconds=seconds)).replace(**replaced)


def fired(schedule: Schedule) -> list:
    """The due times that fired, oldest first."""
    runs = ScheduleRun.objects.filter(schedule=schedule, outcome="fired").order_by("scheduled_for")
    return list(runs.values_list("scheduled_for", flat=True))


def next_is_planned(schedule: Schedule):
    return Schedule.objects.filter(pk=schedule.pk, changed_at=None, next_fire_at__isnull=False).exists()


def assert_each_second_once(times: list) -> None:
    assert {later - earlier for earlier, later in pairwise(times)} == {timedelta(seconds=1)}


def test_each_due_time_fires_once_with_two_schedulers_running(schedule):
    with Manage("runscheduler") as one, Manage("runscheduler") as two:
        one.wait_for("Scheduler started.")
        two.wait_for("Scheduler started.")
        ten = [schedule(**every_second()) for _ in range(10)]
        for each in ten:
            eventually(lambda each=each: len(fired(each)) >= 4, 15)
            assert_each_second_once(fired(each))
        runs = ScheduleRun.objects.filter(schedule__in=ten, outcome="fired")
        task_ids = list(runs.values_list("record_id", flat=True))
        assert len(set(task_ids)) == len(task_ids) == TaskRecord.objects.filter(task_id__in=task_ids).count()


def test_a_date_fires_once_at_its_time(schedule, scheduler):
    once = schedule(kind="date", run_at=in_seconds(1))
    run = eventually(lambda: ScheduleRun.objects.filter(schedule=once).first())
    assert run.scheduled_for == once.run_at
    assert run.fired_at - run.scheduled_for < timedelta(seconds=1)
    once.refresh_from_db()
    assert once.next_fire_at is None
    assert once.last_fire_at is not None


def test_a_scheduled_task_arrives_on_the_cron_queue_and_runs(schedule, scheduler, worker):
    each = schedule(**every_second())
    record = eventually(lambda: TaskRecord.objects.filter(schedule_run__schedule=each, state="SUCCESS").first(), 15)
    assert record.queue == "cron_queue"


def by_the_admins_save(schedule):
    schedule.every, schedule.unit = 1, "seconds"
    schedule.save()


def by_update(schedule):
    Schedule.objects.filter(pk=schedule.pk).update(every=1, unit="seconds")


def by_sql(schedule):
    with connection.cursor() as cursor:
        cursor.execute("UPDATE scheduling_app_schedule SET every = 1, unit = 'seconds' WHERE id = %s", [schedule.pk])


@pytest.mark.parametrize("edit", [by_the_admins_save, by_update, by_sql])
def test_an_edit_by_any_road_is_seen_at_once(schedule, scheduler, edit):
    hourly = schedule(kind="interval", every=1, unit="hours", start_at=in_seconds(-1))
    eventually(lambda: next_is_planned(hourly))
    edit(hourly)
    eventually(lambda: fired(hourly), 2.5, "seen, and fired at the next second")


def test_a_paused_schedule_stops_and_a_resumed_one_does_not_make_up_for_it(schedule, scheduler):
    each = schedule(**every_second())
    eventually(lambda: fired(each))
    Schedule.objects.filter(pk=each.pk).set_enabled(False)
    paused_at, before = timezone.now(), fired(each)
    time.sleep(2.2)  # nothing is to happen: there is no event to wait for
    assert fired(each) == before
    Schedule.objects.filter(pk=each.pk).set_enabled(True)
    resumed_at = timezone.now()
    again = eventually(lambda: [at for at in fired(each) if at > paused_at], 5)
    assert again[0] > resumed_at


def test_a_deleted_schedule_stops(schedule, scheduler):
    each = schedule(**every_second())
    eventually(lambda: fired(each))
    task_ids = set(ScheduleRun.objects.filter(schedule=each).values_list("record_id", flat=True))
    each.delete()
    eventually(lambda: not TaskRecord.objects.filter(task_id__in=task_ids, publish_at__isnull=False).exists())


def test_a_kill_between_two_due_times_loses_none(schedule, committed):
    every_time = schedule(**every_second(catch_up="all"))
    with Manage("runscheduler") as killed:
        eventually(lambda: len(fired(every_time)) >= 2, 15)
        killed.kill()
    before = len(fired(every_time))
    time.sleep(2.2)  # due times pass with nobody there
    with Manage("runscheduler"):
        eventually(lambda: len(fired(every_time)) >= before + 4, 15)
    assert_each_second_once(fired(every_time))


def test_a_date_that_passed_while_no_scheduler_ran_is_made_up_for(schedule, committed):
    once = schedule(kind="date", run_at=in_seconds(0.5))
    time.sleep(1)
    with Manage("runscheduler"):
        run = eventually(lambda: ScheduleRun.objects.filter(schedule=once).first(), 15)
    assert (run.outcome, run.scheduled_for) == ("fired", once.run_at)


def test_sigterm_ends_it_within_two_seconds(scheduler):
    start = time.monotonic()
    assert scheduler.stop() == 0
    assert time.monotonic() - start < 4  # two, and what a busy machine adds
    assert "Scheduler stopped." in scheduler.said()


def test_it_outlives_the_loss_of_its_connections(schedule, scheduler):
    each = schedule(**every_second())
    eventually(lambda: fired(each))
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    lost_at = timezone.now()
    eventually(lambda: [at for at in fired(each) if at > lost_at + timedelta(seconds=2)], 10)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgres://nobody@127.0.0.1:1/nothing", "Waiting for the database"),
        ("{server}/postgres", "Waiting for `manage.py migrate`"),
    ],
)
def test_it_says_in_one_line_what_it_waits_for(committed, url, says):
    url = url.format(server=os.environ["DATABASE_URL"].rpartition("/")[0])
    with Manage("runscheduler", DATABASE_URL=url) as process:
        process.wait_for(says)
        time.sleep(1.5)
        assert process.stop() == 0
        assert len(process.said().strip().splitlines()) == 1


def test_a_bad_row_put_in_by_sql_stops_only_itself(schedule, scheduler):
    good = schedule(**every_second())
    bad = schedule(kind="cron", cron="0 0 31 2 *")
    eventually(lambda: Schedule.objects.get(pk=bad.pk).problem)
    assert "cron" in Schedule.objects.get(pk=bad.pk).problem
    seen = len(fired(good))
    eventually(lambda: len(fired(good)) > seen + 1)
