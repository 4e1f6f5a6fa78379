"""What becomes of due times by each policy. Time passes by moving rows back, not by waiting."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from celery import current_app as app
from celery.exceptions import Retry
from django.db import connection
from django.utils import timezone

from scheduling_app.conf import conf
from scheduling_app.ledger import firing, planning, policies
from scheduling_app.ledger.waiting import next_look, release_waiting
from scheduling_app.models import Backfill, Calendar, Schedule, ScheduleRun, Window
from scheduling_app.timing.kinds import Cron
from tasks_app.models import TaskRecord
from tasks_app.retries import wait_again
from tests.scheduling_app.ledger.test_firing import again, due, make, runs

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("published")]


def fire_again(schedule, late=timedelta(0)) -> None:
    """Have it come due once more, and fire."""
    Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=timezone.now() - late)
    firing.fire_due()


def end(schedule, state="SUCCESS") -> None:
    """End the unfinished tasks of a schedule."""
    tasks = TaskRecord.objects.unfinished().filter(schedule_run__schedule=schedule)
    tasks.update(state=state, finished_at=timezone.now(), publish_at=None)


# Overlap


def test_beside_an_unfinished_run_where_that_is_allowed():
    schedule = due(timedelta(0))
    firing.fire_due()
    fire_again(schedule)
    assert runs(schedule) == [("fired", "due")] * 2


@pytest.mark.parametrize(("overlap", "waits", "third"), [("queue_one", 1, "overlap"), ("queue_all", 2, "overlap")])
def test_a_run_waits_for_an_earlier_one(overlap, waits, third):
    schedule = due(timedelta(0), overlap=overlap)
    firing.fire_due()
    fire_again(schedule)
    fire_again(schedule)
    assert [outcome for outcome, _ in runs(schedule)].count("waiting") == waits
    assert release_waiting() == 0, "the first is unfinished"
    assert next_look() is not None
    end(schedule)
    assert release_waiting() == 1
    assert runs(schedule)[1] == ("fired", "late")
    assert release_waiting() == 0, "one at a time"
    end(schedule)
    assert release_waiting() == waits - 1
    end(schedule)
    assert release_waiting() == 0
    assert next_look() is None
    assert TaskRecord.objects.count() == 1 + waits


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        ("skip", ["fired", "skipped", "skipped"]),
        ("queue_one", ["fired", "waiting", "skipped"]),
        ("queue_all", ["fired", "waiting", "waiting"]),
        ("cancel", ["skipped", "skipped", "fired"]),
    ],
)
def test_times_of_one_pass_overlap_too(overlap, expected):
    schedule = due(timedelta(minutes=2, seconds=20), overlap=overlap, catch_up="all")
    firing.fire_due()
    assert [outcome for outcome, _ in runs(schedule)] == expected


def test_a_run_that_is_due_does_not_overtake_one_that_waits():
    schedule = due(timedelta(0), overlap="queue_all")
    firing.fire_due()
    fire_again(schedule)
    end(schedule)
    fire_again(schedule)
    assert [outcome for outcome, _ in runs(schedule)] == ["fired", "waiting", "waiting"]


def test_a_run_that_has_waited_starts_at_once():
    schedule = due(timedelta(0), overlap="queue_one", jitter=3600, every=1, unit="days")
    firing.fire_due()
    fire_again(schedule)
    end(schedule)
    assert release_waiting() == 1
    first, second = (run.record.eta for run in schedule.runs.order_by("scheduled_for"))
    assert first is not None
    assert second is None


def test_so_many_wait_and_no_more(monkeypatch):
    monkeypatch.setattr(Schedule, "MAX_QUEUED", 2)
    schedule = due(timedelta(0), overlap="queue_all")
    for _ in range(5):
        fire_again(schedule)
    assert runs(schedule)[1:] == [("waiting", "overlap")] * 2 + [("skipped", "limit")] * 2


def test_what_waits_does_not_run_while_its_schedule_is_paused():
    schedule = due(timedelta(0), overlap="queue_all")
    firing.fire_due()
    fire_again(schedule)
    end(schedule)
    Schedule.objects.filter(pk=schedule.pk).set_enabled(False)
    assert release_waiting() == 0
    assert next_look() is None
    Schedule.objects.filter(pk=schedule.pk).set_enabled(True)
    assert release_waiting() == 1


def test_a_run_cancels_the_one_before(monkeypatch):
    told = []
    monkeypatch.setattr(app.control, "_tell_workers", lambda ids, *_, **kwargs: told.append((ids, kwargs["terminate"])))
    schedule = due(timedelta(0), overlap="cancel")
    firing.fire_due()
    first = schedule.runs.get().record
    TaskRecord.objects.filter(pk=first.pk).update(state="STARTED", started_at=timezone.now())
    fire_again(schedule)
    fire_again(schedule)
    states = list(TaskRecord.objects.order_by("pk").values_list("state", "cancel_signal"))
    assert states == [("STARTED", "SIGTERM"), ("REVOKED", "SIGTERM"), ("PENDING", "")]
    assert runs(schedule) == [("fired", "due")] * 3


def test_a_lost_run_blocks_until_it_is_rescued():
    from tasks_app.relay.rescue import rescue_lost

    schedule = due(timedelta(0), overlap="skip")
    firing.fire_due()
    TaskRecord.objects.update(
        state="STARTED", attempt=1, started_at=timezone.now(), lease_until=timezone.now() - timedelta(seconds=1)
    )
    fire_again(schedule)
    assert rescue_lost() == 1
    fire_again(schedule)
    assert runs(schedule) == [("fired", "due"), ("skipped", "overlap"), ("fired", "due")]


def test_a_time_that_is_moved_cancels_nothing_that_runs_before_it(calendar):
    now = timezone.now()
    schedule = due(timedelta(0), overlap="cancel", blackout=calendar, blackout_action="defer")
    firing.fire_due()
    Window.objects.create(calendar=calendar, start_at=now - timedelta(hours=1), end_at=now + timedelta(hours=1))
    fire_again(schedule)
    assert list(TaskRecord.objects.values_list("state", flat=True)) == ["PENDING", "PENDING"]


def test_what_waits_does_not_start_within_a_blackout_window(calendar):
    schedule = due(timedelta(0), overlap="queue_one", blackout=calendar)
    firing.fire_due()
    fire_again(schedule)
    end(schedule)
    now = timezone.now()
    window = Window.objects.create(
        calendar=calendar, start_at=now - timedelta(hours=1), end_at=now + timedelta(hours=1)
    )
    assert release_waiting() == 0
    window.delete()
    assert release_waiting() == 1


def test_a_run_that_cannot_be_made_keeps_no_other_from_its_turn(settings):
    bad, good = (
        due(timedelta(0), name=name, overlap="queue_one", args=[text]) for name, text in (("a", "a" * 100), ("b", "b"))
    )
    firing.fire_due()
    for each in (bad, good):
        fire_again(each)
        end(each)
    settings.TASK_ARGS_MAX_BYTES = 50
    release_waiting()
    assert runs(bad)[-1] == ("skipped", "invalid")
    assert "TASK_ARGS_MAX_BYTES" in bad.runs.first().detail
    assert runs(good)[-1] == ("fired", "late")


def test_what_waited_for_a_backfill_that_was_deleted_by_sql_does_not_run():
    schedule = due(timedelta(0))
    backfill = Backfill.objects.create(schedule=schedule, start_at=timezone.now(), end_at=timezone.now())
    ScheduleRun.objects.create(
        schedule=schedule, scheduled_for=timezone.now(), outcome="waiting", reason="backfill", backfill=backfill
    )
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM scheduling_app_backfill")
    assert next_look() is None
    assert release_waiting() == 0


# Failures


def test_it_pauses_itself_after_failures_in_a_row_and_says_why():
    schedule = due(timedelta(0), pause_after_failures=2)
    for state in ("FAILURE", "SUCCESS", "FAILURE", "FAILURE"):
        fire_again(schedule)
        end(schedule, state)
    assert again(schedule).enabled
    fire_again(schedule)
    assert runs(schedule)[-1] == ("skipped", "paused")
    assert (again(schedule).enabled, again(schedule).note) == (False, "Its last 2 runs failed.")
    Schedule.objects.filter(pk=schedule.pk).update(enabled=True)  # by whatever road
    assert again(schedule).note == ""
    planning.plan_changed()
    fire_again(schedule)
    assert runs(schedule)[-1][0] == "fired", "it starts to count anew"


# Blackout windows


@pytest.fixture
def calendar():
    return Calendar.objects.create(name="maintenance", timezone="UTC")


def test_a_time_within_a_window_is_skipped(calendar):
    now = timezone.now()
    Window.objects.create(calendar=calendar, start_at=now - timedelta(hours=1), end_at=now + timedelta(hours=1))
    schedule, free = due(timedelta(0), blackout=calendar), due(timedelta(0), name="free")
    firing.fire_due()
    assert runs(schedule) == [("skipped", "blackout")]
    assert "maintenance" in schedule.runs.get().detail
    assert runs(free) == [("fired", "due")]


def test_a_time_within_a_window_is_moved_to_its_end(calendar):
    now = timezone.now()
    until = now + timedelta(hours=1)
    Window.objects.create(calendar=calendar, start_at=now - timedelta(hours=1), end_at=until)
    schedule = due(timedelta(0), blackout=calendar, blackout_action="defer", jitter=30)
    firing.fire_due()
    run = schedule.runs.get()
    assert (run.outcome, run.record.eta) == ("fired", until)
    assert run.record.expires == until + timedelta(hours=1), "the grace, from then on"


def test_a_time_that_is_moved_overlaps_as_any_other(calendar):
    now = timezone.now()
    Window.objects.create(calendar=calendar, start_at=now - timedelta(hours=1), end_at=now + timedelta(hours=1))
    schedule = due(timedelta(0), blackout=calendar, blackout_action="defer", overlap="skip")
    firing.fire_due()
    fire_again(schedule)
    assert runs(schedule) == [("fired", "due"), ("skipped", "overlap")]


def test_the_latest_missed_time_is_one_that_may_run(calendar):
    schedule = due(timedelta(minutes=3, seconds=20), blackout=calendar)
    window = {"start_at": timezone.now() - timedelta(minutes=1, seconds=30), "end_at": timezone.now()}
    Window.objects.create(calendar=calendar, **window)
    firing.fire_due()
    assert runs(schedule) == [("skipped", "misfire"), ("fired", "caught up"), *[("skipped", "blackout")] * 2]


def test_windows_that_follow_each_other_are_one(calendar):
    calendar.timezone = "Europe/Berlin"
    Window(calendar=calendar, cron="0 22 * * *", minutes=120).save()
    Window(calendar=calendar, cron="0 0 * * *", minutes=60).save()
    blackout = calendar.blackout()
    at = datetime(2026, 1, 1, 22, 30, tzinfo=UTC)  # 23:30 there
    assert blackout.free_from(at) == datetime(2026, 1, 2, 0, 0, tzinfo=UTC)
    for free in (datetime(2026, 1, 1, 20, 59, tzinfo=UTC), datetime(2026, 1, 2, 0, 0, tzinfo=UTC)):
        assert blackout.free_from(free) == free, "the end is not part of it"


def test_windows_that_leave_no_time_are_no_endless_walk(calendar):
    Window(calendar=calendar, cron="* * * * *", minutes=2).save()
    assert calendar.blackout().free_from(timezone.now()) is None
    schedule = due(timedelta(0), blackout=calendar, blackout_action="defer")
    firing.fire_due()
    assert runs(schedule) == [("skipped", "blackout")]


def test_a_calendar_at_fault_is_an_outcome(calendar):
    Window(calendar=calendar, cron="61 * * * *", minutes=2).save()
    schedule = due(timedelta(0), blackout=calendar)
    firing.fire_due()
    assert runs(schedule) == [("skipped", "invalid")]
    assert "maintenance: cron: minute" in schedule.runs.get().detail


# Number of runs


def test_it_is_finished_after_so_many_runs():
    schedule = due(timedelta(minutes=5), catch_up="all", max_runs=3)
    firing.fire_due()
    assert runs(schedule) == [("fired", "caught up")] * 3
    assert (again(schedule).next_fire_at, again(schedule).changed_at) == (None, None)
    Schedule.objects.filter(pk=schedule.pk).update(every=2)
    planning.plan_changed()
    assert again(schedule).next_fire_at is None, "an edit of its timing does not begin it anew"
    Schedule.objects.filter(pk=schedule.pk).update(max_runs=4)
    planning.plan_changed()
    assert again(schedule).next_fire_at > timezone.now()


def test_a_run_that_was_not_made_does_not_count():
    app.send_task("sample.once_while_unfinished", ["key"])
    schedule = due(timedelta(0), task="sample.once_while_unfinished", args=["key"], max_runs=1)
    firing.fire_due()
    assert runs(schedule) == [("skipped", "overlap")]
    assert again(schedule).fired_count == 0
    assert again(schedule).next_fire_at is not None


def test_runs_by_hand_and_skipped_ones_do_not_count():
    schedule = due(timedelta(minutes=5), max_runs=2)
    firing.run_now(schedule)
    firing.fire_due()
    assert again(schedule).fired_count == 1
    assert again(schedule).next_fire_at is not None


# What a run is given


def test_a_run_has_the_settings_of_its_schedule(commits):
    settings = {"soft_time_limit": 10, "time_limit": 20, "priority": 1, "queue": "celery_queue"}
    retries = {"max_retries": 3, "retry_backoff": 5}
    schedule = due(timedelta(0), args=[], due_kwarg="value", headers={"tenant": "a"}, **retries, **settings)
    firing.fire_due()
    by_hand = firing.run_now(again(schedule))
    assert by_hand.outcome == "fired", by_hand.detail
    for run in schedule.runs.all():
        at, options = run.scheduled_for.isoformat(), run.record.options
        assert run.record.kwargs == {"value": at}
        assert (run.record.priority, run.record.queue) == (1, "celery_queue")
        assert (options["soft_time_limit"], options["time_limit"]) == (10, 20)
        assert options["headers"] == {
            "periodic_task_name": "s",
            "scheduled_for": at,
            "tenant": "a",
            "retry_policy": {"max_retries": 3, "backoff": 5},
        }


@pytest.mark.parametrize(
    ("fields", "after"),
    [
        ({"expires_after": 60}, timedelta(seconds=60)),
        ({"misfire_grace_time": 10}, timedelta(minutes=1)),
        ({"misfire_grace_time": 600}, timedelta(minutes=10)),
        ({"misfire_grace_time": None}, None),
    ],
)
def test_a_run_expires_at_the_next_due_time_or_with_the_grace(fields, after):
    schedule = due(timedelta(0), **fields)
    firing.fire_due()
    record = schedule.runs.get().record
    if after is None:
        assert record.expires is None
    else:
        assert abs(record.expires - timezone.now() - after) < timedelta(seconds=3)


def test_a_header_of_the_consoles_own_put_in_by_sql_is_named():
    schedule = due(timedelta(0), headers={"gen": 5, "tenant": "a"})
    firing.fire_due()
    assert "gen is set by Celery or the console itself" in schedule.runs.get().detail


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"id": "x"}', "id"),
        ('{"expires": "junk"}', "expires"),
        ('{"task": "other"}', "task"),
        ('{"compression": "application/x-gzip"}', "compression"),
        ("[]", "object"),
        ("1", "object"),
        ("nonsense", "object"),
        ("null", "object"),
    ],
)
def test_headers_that_no_message_can_carry_are_the_reason_why_a_due_time_is_invalid(text, says):
    bad, good = due(timedelta(0), name="bad"), due(timedelta(0), name="good")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE scheduling_app_schedule SET headers = %s WHERE id = %s", [text, bad.pk])
    firing.fire_due()
    assert runs(bad) == [("skipped", "invalid")]
    assert says in bad.runs.get().detail
    assert runs(good) == [("fired", "due")]
    run = firing.run_now(again(bad))
    assert (run.outcome, run.reason) == ("skipped", "invalid")
    assert says in run.detail


def test_headers_by_sql_do_not_say_whose_run_it_is():
    schedule = due(timedelta(0))
    Schedule.objects.filter(pk=schedule.pk).update(headers={"scheduled_for": "junk", "periodic_task_name": "other"})
    firing.fire_due()
    headers = schedule.runs.get().record.options["headers"]
    assert headers["periodic_task_name"] == "s"
    assert headers["scheduled_for"] == schedule.runs.get().scheduled_for.isoformat()


def test_an_always_closed_calendar_costs_the_others_nothing(calendar):
    Window(calendar=calendar, cron="0 0 * * *", minutes=1440).save()
    closed = [due(timedelta(hours=20), name=f"closed {n}", blackout=calendar, catch_up="all") for n in range(3)]
    good, started_at = due(timedelta(0), name="good"), time.process_time()
    while firing.fire_due():
        pass
    assert time.process_time() - started_at < 5
    assert runs(good) == [("fired", "due")]
    for each in closed:
        assert (
            each.runs.filter(outcome="skipped", reason__in=["blackout", "misfire", "limit"]).count()
            == conf.SCHEDULE_RUNS_KEPT
        )


def test_schedules_of_one_batch_do_not_share_what_is_their_own():
    one = due(timedelta(0), name="one", args=["one"], priority=1, headers={"of": "one"}, expires_after=60)
    two = due(timedelta(0), name="two", args=["two"], priority=1, headers={"of": "two"}, time_limit=9)
    three = due(timedelta(0), name="three", args=["three"], queue="celery_queue")
    firing.fire_due()
    found = [schedule.runs.get().record for schedule in (one, two, three)]
    assert [record.args for record in found] == [["one"], ["two"], ["three"]]
    assert [record.root_id == record.task_id for record in found] == [True] * 3
    assert [record.options["headers"].get("of") for record in found] == ["one", "two", None]
    assert [record.options.get("time_limit") for record in found] == [None, 9, None]
    assert [record.queue for record in found] == ["cron_queue", "cron_queue", "celery_queue"]
    assert [record.priority for record in found] == [1, 1, app.conf.task_default_priority]


def test_a_unique_task_can_take_its_due_time():
    schedule = due(timedelta(0), task="sample.once_while_unfinished", args=[], due_kwarg="key")
    firing.fire_due()
    fire_again(schedule)
    assert [outcome for outcome, _ in runs(schedule)] == ["fired"] * 2, "by its due time each is another"


def test_a_run_that_has_started_does_not_expire():
    schedule = due(timedelta(0), expires_after=60, max_retries=3)
    firing.fire_due()
    record = schedule.runs.get().record
    assert record.expires is not None
    assert wait_again(record).expires is None


def test_retries_that_a_message_asks_for_leave_no_trace_on_the_task():
    task = app.tasks["sample.fail"]
    asked = {"retry_policy": {"max_retries": 7, "backoff": 60}}
    task.push_request(id="asked", args=["x"], kwargs={}, retries=0, called_directly=False, is_eager=False, **asked)
    try:
        with pytest.raises(Retry):
            task._retry_as_asked(ValueError("x"))
    finally:
        task.pop_request()
    assert "override_max_retries" not in vars(task)
    assert TaskRecord.objects.get(task_id="asked").retries == 1


# Drift


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"task": "gone.task"}, "No task gone.task"),
        ({"args": [1, 2, 3]}, "sample.echo takes"),
        ({"due_kwarg": "when"}, "when"),
    ],
)
def test_a_task_that_is_gone_or_takes_other_arguments_is_not_sent(fields, says):
    schedule, good = due(timedelta(0), **fields), due(timedelta(0), name="good")
    firing.fire_due()
    assert runs(schedule) == [("skipped", "invalid")]
    assert says in schedule.runs.get().detail
    assert says in firing.run_now(schedule).detail
    assert runs(good) == [("fired", "due")]
    assert TaskRecord.objects.count() == 1


@pytest.mark.parametrize("text", ["[1", "nonsense", '{"a": 1}', "[" * 100_000])
def test_arguments_that_are_no_json_stop_no_other_schedule(text):
    bad, good = due(timedelta(0), name="bad"), due(timedelta(0), name="good")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE scheduling_app_schedule SET args = %s WHERE id = %s", [text, bad.pk])
    assert firing.fire_due() == 2
    assert runs(bad) == [("skipped", "invalid")]
    assert runs(good) == [("fired", "due")]


# The ledger


def test_the_ledger_keeps_the_latest_runs_and_what_is_not_settled(settings):
    settings.SCHEDULE_RUNS_KEPT = 5
    schedule, other = make(), make("other")
    now = timezone.now()
    for each in (schedule, other):
        for n in range(10):
            ScheduleRun.objects.create(
                schedule=each, scheduled_for=now - timedelta(minutes=n), outcome="skipped", reason="misfire"
            )
    old = ScheduleRun.objects.filter(schedule=schedule).order_by("scheduled_for")
    waiting, unfinished = old[0], old[1]
    ScheduleRun.objects.filter(pk=waiting.pk).update(outcome="waiting")
    task = app.send_task("sample.noop")
    ScheduleRun.objects.filter(pk=unfinished.pk).update(outcome="fired", record=task.id)
    firing.trim([schedule.pk])
    left = list(schedule.runs.order_by("scheduled_for"))
    assert left[:2] == [waiting, unfinished]
    assert [run.scheduled_for for run in left[2:]] == [now - timedelta(minutes=n) for n in (4, 3, 2, 1, 0)]
    assert other.runs.count() == 10


def test_firing_trims_now_and_then(monkeypatch, settings):
    settings.SCHEDULE_RUNS_KEPT = 2
    monkeypatch.setattr(firing.random, "random", lambda: 0)
    schedule = due(timedelta(minutes=5))
    firing.fire_due()
    assert schedule.runs.count() == 2


# Due times


@pytest.mark.parametrize("kept", [3, 10, 1000])
def test_the_latest_due_times_are_those_of_a_walk_from_the_first(kept, settings):
    settings.SCHEDULE_RUNS_KEPT = kept
    timing = Cron("*/7 3-20 * * mon-fri", "Europe/Berlin")
    first = timing.next_after(datetime(2026, 3, 20, tzinfo=UTC))
    for now in (first, first + timedelta(hours=1), datetime(2026, 4, 8, 9, 30, tzinfo=UTC)):
        walked, at = [], first
        while at <= now:
            walked.append(at)
            at = timing.next_after(at)
        found = policies.due_times(timing, first, now)
        assert list(found.times) == walked[-kept:]
        assert found.following == at
        assert found.left_out_since == (first if len(walked) > kept else None)


@pytest.mark.parametrize("expression", ["* * * * 1 *", "* * * * *", "0 0 1 1 *"])
def test_the_latest_due_times_cost_no_walk_however_they_are_strewn(expression):
    timing, now = Cron(expression, "Europe/Berlin"), datetime(2026, 2, 20, tzinfo=UTC)
    first = timing.next_after(datetime(1990, 1, 1, tzinfo=UTC))
    started_at = time.process_time()
    found = policies.due_times(timing, first, now)
    assert time.process_time() - started_at < 2
    assert len(found.times) == (36 if expression == "0 0 1 1 *" else conf.SCHEDULE_RUNS_KEPT)
    assert found.times[-1] <= now < found.following
