"""`manage.py importbeat`: Beat's periodic tasks as schedules, and what Beat itself would do with them."""

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
import time_machine
from celery import current_app
from celery.app import routes
from django.contrib.admin.models import LogEntry
from django.core.management import CommandError, call_command
from django.utils import timezone
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    PeriodicTasks,
    SolarSchedule,
)
from django_celery_beat.schedulers import ModelEntry

from scheduling_app.models import Schedule
from scheduling_app.sources.beat import from_periodic_task
from scheduling_app.sources.beat_times import beat_times, compare, notes_on
from scheduling_app.sources.found import Over, Refused

#: Two days before the clocks of Berlin go forward.
NOW = datetime(2026, 3, 27, 12, tzinfo=UTC)
ECHO = {"task": "sample.echo", "args": "[1]"}


def beats(**fields) -> PeriodicTask:
    return PeriodicTask(name="t", date_changed=NOW - timedelta(minutes=1), **ECHO | fields)


def crontab(text: str, zone="Europe/Berlin", **fields) -> PeriodicTask:
    columns = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
    return beats(crontab=CrontabSchedule(**dict(zip(columns, text.split(), strict=True)), timezone=zone), **fields)


def interval(every: int, period: str, **fields) -> PeriodicTask:
    return beats(interval=IntervalSchedule(every=every, period=period), **fields)


def clocked(at: datetime, **fields) -> PeriodicTask:
    return beats(clocked=ClockedSchedule(clocked_time=at), one_off=True, **fields)


def imported(task: PeriodicTask) -> Schedule:
    return from_periodic_task(task, NOW).schedule


# What becomes of a periodic task


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("*/5 9-17 * * mon-fri", "*/5 9-17 * * mon-fri"),
        ("0 9 * * 0,6", "0 9 * * 0,6"),
        ("0 9 * january monday", "0 9 * 1 1"),
        ("0 22-4 * * sat-mon", "0 0-4,22-23 * * 0-1,6"),
        ("5-5/10 0-23 1-31 1-12 0-6", "5 * * * *"),
        ("0 9 1-7 * mon", "0 9 * * 1#1"),
        ("0 9 8-14,22-28 * 1,2", "0 9 * * 1#2,2#2,1#4,2#4"),
        ("0 9 */2 * mon", "0 9 */2 * mon"),
        ("0 9 13 * */2", "0 9 13 * */2"),
        ("0 9 13 * */7", "0 9 13 * */7"),
    ],
)
def test_a_crontab_is_written_so_that_it_means_the_same(theirs, ours):
    task = crontab(theirs, "UTC")
    assert imported(task).cron == ours
    times = list(islice(imported(task).timing().times_after(NOW), 40))
    assert times == list(islice(beat_times(task, NOW), 40))


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (crontab("0 9 13 * fri"), "match both '13' and 'fri'"),
        (crontab("0 9 1-10 * fri"), "match both '1-10' and 'fri'"),
        (crontab("0 9 * * 7"), "Celery cannot read"),
        (crontab("0 9 * * *", "Factory"), "timezone"),
        (interval(1_500_000, "microseconds"), "whole seconds"),
        (interval(0, "seconds"), "every"),
        (beats(solar=SolarSchedule(event="sunset", latitude=1, longitude=2)), "the sun"),
        (beats(), "no interval"),
        (interval(1, "hours", exchange="x"), "exchange"),
        (interval(1, "hours", routing_key="x"), "exchange"),
        (interval(1, "hours", args="[1"), "args: no JSON"),
        (interval(1, "hours", args="{}"), "args: a list"),
        (interval(1, "hours", args="[]"), "args: Missing"),
        (interval(1, "hours", task="sample.gone"), "No task sample.gone"),
        (interval(1, "hours", task="celery.ping", args="[]"), "No task"),
        (interval(1, "hours", priority=10), "priority"),
        (clocked(NOW - timedelta(hours=1)), "past"),
    ],
)
def test_what_a_schedule_cannot_say_is_refused(task, says):
    with pytest.raises(Refused, match=says) as refusal:
        imported(task)
    assert not isinstance(refusal.value, Over)


@pytest.mark.parametrize(
    "task",
    [
        clocked(NOW - timedelta(hours=1), enabled=False),
        interval(1, "hours", one_off=True, total_run_count=1),
        interval(1, "hours", expires=NOW),
        interval(1, "hours", task="celery.backend_cleanup", args="[]"),
        clocked(NOW + timedelta(hours=2), expires=NOW + timedelta(hours=1)),
    ],
)
def test_what_is_over_is_left_out(task):
    with pytest.raises(Over):
        imported(task)


def test_all_that_beat_sends_is_taken_over():
    task = interval(
        *(90, "seconds"),
        args='[{"b": 1}]',
        queue="slow",
        priority=3,
        headers='{"trace": "x"}',
        expire_seconds=60,
        description="why",
        enabled=False,
    )
    found = from_periodic_task(task, NOW)
    schedule = found.schedule
    assert (schedule.args, schedule.queue, schedule.priority) == ([{"b": 1}], "slow", 3)
    assert (schedule.headers, schedule.expires_after) == ({"trace": "x"}, 60)
    assert (schedule.description, schedule.enabled, schedule.max_runs) == ("why", False, None)
    assert "EXTRA_QUEUES" in found.notes[0]


def test_missed_runs_and_waiting_ones_are_treated_as_by_beat():
    schedule = imported(interval(1, "hours"))
    assert (schedule.catch_up, schedule.misfire_grace_time, schedule.expires_after) == ("latest", None, None)


def test_one_off_tasks_run_once():
    task = interval(1, "hours", one_off=True)
    assert imported(task).max_runs == 1
    assert len(list(beat_times(task, NOW))) == 1
    once = imported(clocked(NOW + timedelta(hours=1)))
    assert (once.kind, once.run_at, once.max_runs) == ("date", NOW + timedelta(hours=1), None)


def test_an_interval_goes_on_from_its_last_run():
    last = NOW - timedelta(minutes=50, microseconds=5)
    task = interval(20, "minutes", last_run_at=last)
    assert next(imported(task).timing().times_after(NOW)) == NOW + timedelta(minutes=9, seconds=59)
    assert compare(task, from_periodic_task(task, NOW), NOW).differs is False


def test_a_day_of_beats_has_24_hours(settings):
    settings.TIME_ZONE = "Europe/Berlin"
    task = interval(1, "days", last_run_at=NOW - timedelta(hours=1))
    found = from_periodic_task(task, NOW)
    schedule = found.schedule
    assert (schedule.every, schedule.unit, schedule.timezone) == (1, "days", "UTC")
    assert "24 hours" in found.notes[0]
    assert imported(interval(1, "hours")).timezone == "Europe/Berlin"


def test_nothing_runs_from_the_moment_that_it_expires():
    task = crontab("0 * * * *", "UTC", expires=NOW + timedelta(hours=2))
    assert list(imported(task).timing().times_after(NOW)) == [NOW + timedelta(hours=1)] == list(beat_times(task, NOW))


# What Beat does


def asked(task: PeriodicTask, now: datetime, count: int) -> list[datetime]:
    """The same as beat_times from Beat's own entry, asked again and again while the clock is moved ahead."""
    times: list[datetime] = []
    while len(times) < count:
        with time_machine.travel(now, tick=False):
            entry = ModelEntry(task, app=current_app)
            is_due, wait = entry.is_due()
            if is_due:
                times.append(now.replace(microsecond=0))
                next(entry)
        now += timedelta(seconds=wait)
    return times


@pytest.mark.parametrize(
    "task",
    [
        crontab("30 2 * * *", last_run_at=NOW),
        crontab("*/20 2,3 * * *", last_run_at=NOW),
        crontab("0 9 1-7 * 1,4", "America/New_York", last_run_at=NOW),
        crontab("0 9 * * *", start_time=datetime(2026, 3, 28, 8, tzinfo=UTC)),
        interval(7, "hours", last_run_at=NOW - timedelta(hours=3)),
        interval(1, "days", start_time=NOW + timedelta(hours=3)),
    ],
)
def test_beats_times_are_those_of_its_own_entries(task):
    computed = list(islice(beat_times(task, NOW), 6))
    assert asked(task, NOW, 6) == computed


def test_the_report_tells_where_the_clocks_make_a_difference():
    task = crontab("30 2 * * *")
    rows = [row for row in compare(task, from_periodic_task(task, NOW), NOW).next if row.why]
    assert [(row.at, row.in_beat, row.here) for row in rows] == [
        (datetime(2026, 3, 29, 1, 0, tzinfo=UTC), False, True),
        (datetime(2026, 3, 29, 1, 30, tzinfo=UTC), True, False),
    ]
    assert "clocks change" in rows[0].why


def test_it_looks_ahead_to_the_next_changes_of_the_clocks():
    task = crontab("0 * * * *")
    compared = compare(task, from_periodic_task(task, NOW), NOW)
    assert not any(row.why for row in compared.next)
    assert [(row.at, row.here) for row in compared.at_changes] == [(datetime(2026, 10, 25, 1, 0, tzinfo=UTC), True)]


def test_it_tells_of_a_start_time_at_which_only_a_schedule_fires():
    task = crontab("0 9 * * *", start_time=datetime(2026, 4, 1, 7, tzinfo=UTC))
    first = compare(task, from_periodic_task(task, NOW), NOW).next[0]
    assert (first.at, first.in_beat, first.here) == (datetime(2026, 4, 1, 7, tzinfo=UTC), False, True)
    assert "start time" in first.why
    assert "five minutes of its start" in notes_on(task, NOW)[0]


def test_what_beat_takes_for_overdue_is_told():
    assert (
        "Overdue since 2026-03-27 11:00" in notes_on(interval(1, "hours", last_run_at=NOW - timedelta(hours=2)), NOW)[0]
    )
    assert notes_on(interval(1, "hours", last_run_at=NOW), NOW) == []


# The command


def row(name: str, **fields) -> PeriodicTask:
    timing = fields or {"interval": IntervalSchedule.objects.create(every=5, period="minutes")}
    return PeriodicTask.objects.create(name=name, **ECHO, **timing)


def run(capsys, *options: str) -> str:
    call_command("importbeat", *options, "--no-color")
    return capsys.readouterr().out


@pytest.mark.django_db
def test_without_apply_nothing_is_written(capsys):
    row("a")
    said = run(capsys, "--disable-imported")
    assert "new: a: every 5 minutes" in said
    assert "Nothing was written" in said
    assert not Schedule.objects.exists()
    assert PeriodicTask.objects.get().enabled


@pytest.mark.django_db
def test_apply_writes_schedules_and_the_history(capsys):
    row("a")
    call_command("importbeat", "--apply")
    assert "Beat fires these tasks too" in capsys.readouterr().err
    schedule = Schedule.objects.get(name="a")
    assert (schedule.task, schedule.args, schedule.every) == ("sample.echo", [1], 5)
    entry = LogEntry.objects.get(object_id=schedule.pk)
    assert entry.change_message == "Imported from Celery Beat."
    assert entry.user.username.endswith("@terminal")
    assert not entry.user.is_active


@pytest.mark.django_db
def test_imported_tasks_are_switched_off_in_beat_and_others_are_not(capsys):
    row("a")
    row("refused", solar=SolarSchedule.objects.create(event="sunset", latitude=1, longitude=2))
    row("taken")
    Schedule.objects.create(name="taken", task="sample.noop", cron="0 0 * * *")
    PeriodicTasks.objects.update(last_update=timezone.now() - timedelta(days=1))
    with pytest.raises(CommandError, match="1 refused") as refusal:
        run(capsys, "--apply", "--disable-imported")
    assert refusal.value.returncode == 1
    captured = capsys.readouterr()
    assert "refused: refused: It follows the sun" in captured.out
    assert "there already: taken" in captured.out
    assert "Beat fires" not in captured.err
    assert list(PeriodicTask.objects.filter(enabled=True).values_list("name", flat=True)) == ["refused", "taken"]
    assert PeriodicTasks.last_change() > timezone.now() - timedelta(minutes=1)
    assert Schedule.objects.get(name="taken").task == "sample.noop"


@pytest.mark.django_db
def test_update_overwrites_what_beat_says_and_nothing_else(capsys):
    row("a")
    Schedule.objects.create(name="a", task="sample.noop", cron="0 0 * * *", enabled=False, overlap="skip")
    assert "updated: a" in run(capsys, "--apply", "--update")
    schedule = Schedule.objects.get()
    assert (schedule.task, schedule.kind, schedule.enabled, schedule.overlap) == (
        "sample.echo",
        "interval",
        False,
        "skip",
    )


@pytest.mark.django_db
def test_a_schedule_that_code_declares_is_left_to_it():
    row("a")
    Schedule.objects.create(name="a", task="sample.noop", cron="0 0 * * *", owner="sample")
    with pytest.raises(CommandError):
        call_command("importbeat", "--apply", "--update")
    assert Schedule.objects.get().task == "sample.noop"


@pytest.mark.django_db
def test_both_systems_times_are_printed_side_by_side(capsys):
    zone = "Europe/Berlin"
    row("a", crontab=CrontabSchedule.objects.create(minute="30", hour="2", timezone=zone))
    with time_machine.travel(NOW, tick=False):
        said = run(capsys)
    assert "    2026-03-28 02:30:00+01:00  2026-03-28 02:30:00+01:00\n" in said
    assert f"    {'-':<25}  2026-03-29 03:00:00+02:00  differs\n" in said
    assert "    2026-03-29 03:30:00+02:00  -                          differs\n" in said
    assert "a time that they skip" in said


@pytest.mark.django_db
def test_a_row_that_celery_itself_cannot_read_is_refused_and_the_others_are_shown(capsys):
    for name, fields in (
        ("good", {}),
        ("huge", {"interval": IntervalSchedule.objects.create(every=2**31 - 1, period="days")}),
        ("twice", {"kwargs": '{"a": 1, "a": 2}'}),
        ("no number", {"args": "[NaN]"}),
    ):
        timing = {"interval": IntervalSchedule.objects.create(every=5, period="minutes")}
        PeriodicTask.objects.create(name=name, **ECHO | timing | fields)
    with pytest.raises(CommandError, match="3 refused"):
        call_command("importbeat", "--no-color")
    said = capsys.readouterr().out
    assert "new: good: " in said
    assert "refused: huge: " in said
    assert (
        'refused: twice: kwargs: no JSON that means one thing: line 1, column 10: the key "a" is there twice.' in said
    )
    assert "refused: no number: args: " in said


# Queues


@pytest.fixture
def beats_queue(monkeypatch):
    """Beat's tasks go by the routes, which know nothing of CRON_QUEUE; a schedule's go there."""
    monkeypatch.setattr(current_app.amqp, "router", routes.Router(queues=current_app.amqp.queues, app=current_app))
    task = interval(1, "hours")
    task.interval.save()
    task.save()
    return "celery_queue"


@pytest.mark.django_db
def test_a_queue_is_not_moved_without_a_word(beats_queue, capsys):
    with pytest.raises(CommandError, match=r"1 would move from celery_queue to cron_queue\. Add --keep-queues"):
        call_command("importbeat", "--apply")
    assert "Beat sends it to the queue celery_queue; as a schedule it goes to cron_queue." in capsys.readouterr().out
    assert not Schedule.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize(("option", "queue"), [("--keep-queues", "celery_queue"), ("--move-queues", "")])
def test_a_queue_is_kept_or_moved_as_it_is_said(beats_queue, option, queue):
    call_command("importbeat", "--apply", option)
    assert Schedule.objects.get().queue == queue


@pytest.mark.django_db
@pytest.mark.parametrize(("answer", "is_written"), [("y", True), ("", False)])
def test_at_a_terminal_it_asks(beats_queue, monkeypatch, answer, is_written):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda asked: answer)
    if is_written:
        call_command("importbeat", "--apply")
    else:
        with pytest.raises(CommandError, match="Nothing was written"):
            call_command("importbeat", "--apply")
    assert Schedule.objects.exists() is is_written
