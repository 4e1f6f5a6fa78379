"""Late, missed, edited and switched off: what people expect of a schedule while a scheduler runs (behaviours 7 to 14).

What takes minutes there takes none here: rows are moved back as if the time had passed.
"""

import signal
import socket
import time
from datetime import timedelta
from urllib.request import urlopen
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.utils import timezone

from scheduling_app.models import Schedule
from scheduling_app.states import FINISHED, PAUSED, ScheduleRow
from tasks_app.models import TaskRecord
from tests.acceptance.processes import Manage, eventually
from tests.acceptance.test_scheduler import (
    assert_each_second_once,
    every_second,
    fired,
    in_seconds,
    next_is_planned,
    schedule,
)

__all__ = ["schedule"]  # a fixture
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


def again(schedule: Schedule) -> Schedule:
    return Schedule.objects.get(pk=schedule.pk)


def came_due(schedule: Schedule, at) -> None:
    """As if it had been planned for then, and no scheduler had run since."""
    Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=at, changed_at=None)


# 7: a little late


def test_a_scheduler_that_was_stopped_fires_what_came_due_meanwhile_at_once_and_once(schedule, scheduler):
    each = schedule(kind="interval", every=1, unit="minutes", start_at=in_seconds(2.5))
    eventually(lambda: next_is_planned(each))
    scheduler.process.send_signal(signal.SIGSTOP)
    time.sleep(max((each.start_at - timezone.now()).total_seconds(), 0) + 0.5)
    assert fired(each) == []
    scheduler.process.send_signal(signal.SIGCONT)
    eventually(lambda: fired(each), 2)
    assert fired(each) == [each.start_at]
    assert again(each).next_fire_at == each.start_at + MINUTE


# 8: no burst after a downtime


def test_after_a_downtime_one_run_stands_for_the_missed_ones(schedule, committed):
    now = timezone.now()
    last_hour = now.replace(minute=0, second=0, microsecond=0)
    hourly = schedule(kind="cron", cron="0 * * * *")
    minutely = schedule(kind="interval", every=1, unit="minutes", start_at=now - HOUR + timedelta(seconds=30))
    first_missed = now - 10 * MINUTE - timedelta(seconds=30)
    came_due(hourly, last_hour)
    came_due(minutely, first_missed)
    with Manage("runscheduler"):
        eventually(lambda: fired(hourly) and fired(minutely), 15)
    assert fired(hourly) == [last_hour], "the record says which slot it stands for"
    assert again(hourly).next_fire_at == last_hour + HOUR
    runs = list(minutely.runs.order_by("scheduled_for").values_list("scheduled_for", "outcome", "reason"))
    times = [first_missed + number * MINUTE for number in range(11)]
    assert runs == [(at, "skipped", "misfire") for at in times[:-1]] + [(times[-1], "fired", "caught up")]
    assert again(minutely).next_fire_at == times[-1] + MINUTE > timezone.now()


# 9: pages fire nothing


def test_a_web_server_fires_nothing(schedule, committed):
    each = schedule(**every_second())
    came_due(each, each.start_at)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Manage("runserver", "--noreload", "--skip-checks", f"127.0.0.1:{port}") as web:
        web.wait_for("Quit the server")
        address = f"http://127.0.0.1:{port}/admin/login/"
        for _ in range(5):
            assert urlopen(address, timeout=10).status == 200
            time.sleep(0.3)
    assert not each.runs.exists()


# 10: dates


def test_dates_run_once_and_disturb_nobody_though_the_scheduler_is_killed(schedule, executions, worker):
    every_time = schedule(**every_second(catch_up="all"))
    tags = [str(uuid4()) for _ in range(2)]
    with Manage("runscheduler") as killed:
        killed.wait_for("Scheduler started.")
        at = in_seconds(1.5)
        dates = [schedule(kind="date", run_at=at, task="sample.count", args=[tag]) for tag in tags]
        eventually(lambda: [executions(tag) for tag in tags] == [1, 1], 15)
        killed.kill()
    with Manage("runscheduler"):
        since = timezone.now()
        eventually(lambda: fired(every_time)[-1] > since + timedelta(seconds=2), 20)
    assert [executions(tag) for tag in tags] == [1, 1]
    for each in dates:
        assert fired(each) == [at]
        assert (ScheduleRow(again(each)).state, ScheduleRow(again(each)).next_run_at) == (FINISHED, None)
        assert again(each).last_fire_at >= at
    assert_each_second_once(fired(every_time))


# 13: what is saved does not run for that


def by_save(schedule, **fields):
    for name, value in fields.items():
        setattr(schedule, name, value)
    schedule.save()


def by_update(schedule, **fields):
    Schedule.objects.filter(pk=schedule.pk).update(**fields)


def daily(at) -> str:
    return f"{at.minute} {at.hour} * * *"


@pytest.mark.parametrize("edit", [by_save, by_update])
@pytest.mark.parametrize("hours", [3, -2], ids=["later", "earlier"])
def test_a_daily_schedule_that_is_moved_fires_at_its_new_time_and_not_before(schedule, scheduler, edit, hours):
    """Also where the new time has passed today, and the old one had not come."""
    slot = timezone.now().replace(second=0, microsecond=0) + HOUR
    each = schedule(kind="cron", cron=daily(slot))
    eventually(lambda: next_is_planned(each))
    new = slot + hours * HOUR
    edit(each, cron=daily(new))
    eventually(lambda: next_is_planned(each))
    assert again(each).next_fire_at == (new if hours > 0 else new + timedelta(days=1))
    time.sleep(0.5)  # nothing is to happen
    assert not each.runs.exists()


def test_a_schedule_that_was_off_for_minutes_fires_at_the_next_full_one(schedule, scheduler):
    each = schedule(kind="cron", cron="* * * * *", enabled=False)
    eventually(lambda: next_is_planned(each))
    by_update(each, next_fire_at=timezone.now() - 3 * MINUTE)
    since = timezone.now()
    Schedule.objects.filter(pk=each.pk).set_enabled(True)
    eventually(lambda: next_is_planned(each))
    times = [since.replace(second=0, microsecond=0) + n * MINUTE for n in (1, 2)]
    assert again(each).next_fire_at in times
    assert set(fired(each)) <= {times[0]}, "only if that minute is just over"


def test_a_paused_schedule_stays_so_when_it_is_edited_and_tells_when_it_last_ran(schedule, scheduler):
    each = schedule(**every_second(task="sample.echo", args=[1]))
    eventually(lambda: fired(each))
    Schedule.objects.filter(pk=each.pk).set_enabled(False)
    eventually(lambda: next_is_planned(each))
    before, last = fired(each), again(each).last_fire_at
    by_save(again(each), args=[2])
    time.sleep(1.2)  # nothing is to happen
    shown = ScheduleRow(again(each))
    assert (shown.state, shown.next_run_at, shown.last_run_at) == (PAUSED, None, last)
    assert fired(each) == before


# 14: many at once, and by SQL


def test_changes_of_many_and_by_sql_are_seen(schedule, scheduler):
    tags = [str(uuid4()) for _ in range(6)]
    *paused, deleted, slower, deleted_by_sql = made = [
        schedule(**every_second(task="sample.echo", args=[tag])) for tag in tags
    ]
    eventually(lambda: all(fired(each) for each in made), 15)
    Schedule.objects.filter(pk__in=[each.pk for each in paused]).set_enabled(False)
    Schedule.objects.filter(pk=deleted.pk).delete()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE scheduling_app_schedule SET every = 2 WHERE id = %s", [slower.pk])
        cursor.execute("DELETE FROM scheduling_app_schedule WHERE id = %s", [deleted_by_sql.pk])
        cursor.execute("DELETE FROM scheduling_app_schedulerun WHERE schedule_id = %s", [deleted_by_sql.pk])
    changed_at, before = timezone.now(), [tasks_with(tag) for tag in tags]
    eventually(lambda: len([at for at in fired(slower) if at > changed_at]) >= 2, 10)
    after = [tasks_with(tag) for tag in tags]
    assert after[:4] + after[5:] == before[:4] + before[5:]
    assert {(at - slower.start_at) % timedelta(seconds=2) for at in fired(slower) if at > changed_at} == {timedelta(0)}


def tasks_with(tag: str) -> int:
    return TaskRecord.objects.filter(args__contains=tag).count()
