"""Firing and planning: what becomes of each due time. Time passes by moving rows back, not by waiting."""

from datetime import UTC, datetime, timedelta

import pytest
from celery import current_app as app
from celery.app import routes
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from scheduling_app.conf import conf
from scheduling_app.ledger import firing, planning
from scheduling_app.models import Backfill, Schedule, ScheduleRun
from scheduling_app.signatures import queue_of
from tasks_app.models import TaskRecord

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("published")]


def make(name="s", **fields) -> Schedule:
    fields = {"task": "sample.echo", "args": [1], "kind": "interval", "every": 1, "unit": "minutes"} | fields
    return Schedule.objects.create(name=name, **fields)


def due(late: timedelta, **fields) -> Schedule:
    """A schedule of whole minutes whose next time was `late` ago, as if no scheduler had run since."""
    anchor = timezone.now().replace(microsecond=0) - late
    schedule = make(start_at=anchor, **fields)
    planning.plan_changed()
    Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=anchor)
    return schedule


def runs(schedule) -> list[tuple[str, str]]:
    return list(schedule.runs.order_by("scheduled_for").values_list("outcome", "reason"))


def again(schedule) -> Schedule:
    return Schedule.objects.get(pk=schedule.pk)


# Planning


def test_a_new_schedule_is_planned_from_the_moment_it_was_saved():
    schedule = make()
    assert again(schedule).next_fire_at is None
    assert planning.plan_changed() == 1
    assert again(schedule).next_fire_at == schedule.created_at + timedelta(minutes=1)
    assert again(schedule).changed_at is None
    assert planning.plan_changed() == 0


@pytest.mark.parametrize("change", [{"every": 5}, {"enabled": False}, {"timezone": "Asia/Tokyo"}])
def test_a_change_of_the_timing_is_planned_anew(change):
    schedule = make()
    planning.plan_changed()
    Schedule.objects.filter(pk=schedule.pk).update(**change)
    assert again(schedule).changed_at is not None
    assert again(schedule).next_fire_at is None


@pytest.mark.parametrize("change", [{"args": [2]}, {"queue": "q"}, {"description": "words"}, {"enabled": True}])
def test_a_change_of_anything_else_leaves_the_next_time(change):
    schedule = make()
    planning.plan_changed()
    before = again(schedule).next_fire_at
    Schedule.objects.filter(pk=schedule.pk).update(**change)
    assert again(schedule).next_fire_at == before
    assert again(schedule).changed_at is None


def test_a_save_of_a_row_that_was_read_before_it_fired_does_not_move_it_back():
    schedule = due(timedelta(seconds=1))
    stale = again(schedule)
    firing.fire_due()
    Schedule.objects.filter(pk=schedule.pk).set_enabled(False, "It failed.")
    moved = Schedule.objects.filter(pk=schedule.pk).values("next_fire_at", "fired_count", "switched_at", "note").get()
    stale.description, stale.enabled = "edited meanwhile", False
    stale.save()
    assert Schedule.objects.filter(pk=schedule.pk).values(*moved).get() == moved
    assert (moved["fired_count"], moved["note"]) == (1, "It failed.")


def passed_date() -> Schedule:
    """A date that came before any scheduler had planned it."""
    schedule = make(kind="date", run_at=timezone.now() - timedelta(minutes=1))
    Schedule.objects.filter(pk=schedule.pk).update(changed_at=timezone.now() - timedelta(minutes=2))
    planning.plan_changed()
    return schedule


def test_a_date_that_passed_before_it_was_planned_still_fires():
    schedule = passed_date()
    firing.fire_due()
    assert runs(schedule) == [("fired", "late")]


def test_a_timing_that_cannot_be_stops_its_own_schedule_and_says_why():
    bad, good = make("bad", kind="cron", cron="61 * * * *"), make("good")
    planning.plan_changed()
    assert "minute" in again(bad).problem
    assert again(bad).next_fire_at is None
    assert again(good).next_fire_at is not None
    Schedule.objects.filter(pk=bad.pk).update(cron="1 * * * *")
    planning.plan_changed()
    assert again(bad).problem == ""
    assert again(bad).next_fire_at is not None


# Firing


def test_a_due_schedule_makes_a_run_and_a_task_and_moves_on(published, commits):
    schedule = due(timedelta(seconds=1), queue="celery_queue", priority=2, expires_after=60)
    with commits():
        assert firing.fire_due() == 1
    run = schedule.runs.get()
    assert (run.outcome, run.reason) == ("fired", "due")
    record = run.record
    assert (record.name, record.args, record.queue, record.priority) == ("sample.echo", [1], "celery_queue", 2)
    assert timedelta(seconds=55) < record.expires - timezone.now() <= timedelta(seconds=60)
    assert record.options["headers"] == {"periodic_task_name": "s", "scheduled_for": run.scheduled_for.isoformat()}
    assert published == [record.task_id]
    assert again(schedule).next_fire_at == run.scheduled_for + timedelta(minutes=1)
    assert firing.fire_due() == 0


def test_the_cron_queue_is_where_it_goes_unless_told():
    schedule = due(timedelta(seconds=1))
    firing.fire_due()
    assert schedule.runs.get().record.queue == "cron_queue"


def test_without_one_it_goes_where_its_task_goes(settings, monkeypatch):
    settings.CRON_QUEUE = None
    by_route = [routes.MapRoute({"sample.noop": {"queue": "routed"}})]
    monkeypatch.setattr(app.amqp, "router", routes.Router(by_route, app.amqp.queues, True, app))
    monkeypatch.setattr(app.tasks["sample.pid"], "queue", "its_own", raising=False)
    expected = {"sample.noop": "routed", "sample.pid": "its_own", "sample.ignored": "celery_queue"}
    for task in expected:
        due(timedelta(seconds=1), name=task, task=task, args=[])
    firing.fire_due()
    assert dict(ScheduleRun.objects.values_list("schedule__task", "record__queue")) == expected
    assert {schedule.task: queue_of(schedule) for schedule in Schedule.objects.all()} == expected


def test_a_time_that_fired_already_does_not_fire_again(published, commits):
    """As a scheduler does that was paused with the row in hand, and woke up stale."""
    schedule = due(timedelta(seconds=1))
    first = again(schedule).next_fire_at
    with commits():
        firing.fire_due()
        Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=first)
        firing.fire_due()
    assert len(runs(schedule)) == TaskRecord.objects.count() == len(published) == 1
    assert again(schedule).problem == ""


def test_a_time_whose_row_was_deleted_has_its_task_again(published, commits):
    schedule = due(timedelta(seconds=1))
    first = again(schedule).next_fire_at
    with commits():
        firing.fire_due()
        task = schedule.runs.get().record
        schedule.runs.all().delete()
        Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=first)
        firing.fire_due()
    assert schedule.runs.get().record == task
    assert TaskRecord.objects.count() == len(published) == 1
    assert again(schedule).problem == ""


def break_timing_of(bad: Schedule, monkeypatch) -> None:
    timing = Schedule.timing

    def raises(schedule):
        if schedule.pk == bad.pk:
            raise KeyError("a bug")
        return timing(schedule)

    monkeypatch.setattr(Schedule, "timing", raises)


def test_a_schedule_that_cannot_be_planned_at_all_stops_alone(monkeypatch):
    bad, good = make("bad"), make("good")
    break_timing_of(bad, monkeypatch)
    planning.plan_changed()
    assert "a bug" in again(bad).problem
    assert again(good).next_fire_at is not None


def test_a_schedule_whose_timing_has_a_bug_stops_alone(monkeypatch):
    bad, good = due(timedelta(0), name="bad"), due(timedelta(0), name="good")
    break_timing_of(bad, monkeypatch)
    firing.fire_due()
    assert runs(good) == [("fired", "due")]
    assert runs(bad) == [("skipped", "invalid")]
    assert (again(bad).next_fire_at, again(bad).problem) == (None, "KeyError: 'a bug'")


@pytest.mark.parametrize("column", ["run_at", "start_at", "end_at"])
def test_a_time_that_python_cannot_hold_is_refused_also_by_sql(column):
    schedule = make()
    with connection.cursor() as cursor, pytest.raises(IntegrityError, match="schedule_times_in_range"):
        cursor.execute(f"UPDATE scheduling_app_schedule SET {column} = 'infinity' WHERE id = %s", [schedule.pk])


def test_a_schedule_deleted_by_sql_takes_its_runs_along():
    schedule = due(timedelta(0))
    firing.fire_due()
    backfill = Backfill.objects.create(schedule=schedule, start_at=timezone.now(), end_at=timezone.now())
    schedule.runs.update(backfill=backfill)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM scheduling_app_schedule WHERE id = %s", [schedule.pk])
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    assert not ScheduleRun.objects.exists()
    assert not Backfill.objects.exists()
    assert TaskRecord.objects.count() == 1


def test_a_paused_schedule_does_not_fire():
    schedule = due(timedelta(seconds=1))
    Schedule.objects.filter(pk=schedule.pk).set_enabled(False)
    planning.plan_changed()
    assert firing.fire_due() == 0
    assert TaskRecord.objects.count() == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"every": 7}, "Its timing was changed before it fired."),
        ({"enabled": False}, "It was paused before it fired."),
    ],
)
def test_a_time_that_was_due_has_its_row_where_an_edit_comes_before_it_fires(change, says):
    schedule, other = due(timedelta(seconds=1)), due(timedelta(seconds=-30), name="not due yet")
    for each in (schedule, other):
        Schedule.objects.filter(pk=each.pk).update(**change)
    planning.plan_changed()
    assert firing.fire_due() == 0
    run = schedule.runs.get()
    assert (run.scheduled_for, run.outcome, run.reason, run.detail) == (schedule.start_at, "skipped", "misfire", says)
    assert runs(other) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [({"enabled": False}, "It was paused before it fired."), ({"every": 1, "unit": "hours"}, "Its timing was changed")],
)
def test_each_time_that_was_missed_by_then_has_its_row_when_a_schedule_is_paused_or_edited(change, says):
    late = timedelta(minutes=13)
    schedule = due(late, every=10, unit="seconds")
    anchor = again(schedule).next_fire_at
    Schedule.objects.filter(pk=schedule.pk).update(**change)
    planning.plan_changed()
    times = list(schedule.runs.order_by("scheduled_for").values_list("scheduled_for", flat=True))
    assert times == [anchor + number * timedelta(seconds=10) for number in range(len(times))]
    assert 79 <= len(times) <= 85
    assert set(runs(schedule)) == {("skipped", "misfire")}
    assert all(says in detail for detail in schedule.runs.values_list("detail", flat=True))
    assert again(schedule).missed is None
    assert not TaskRecord.objects.exists()


def test_edits_one_after_the_other_lose_none_of_what_was_missed_before_the_first():
    schedule = due(timedelta(minutes=3, seconds=30))
    for change in ({"every": 5}, {"enabled": False}, {"cron": "0 0 1 1 *", "kind": "cron"}):
        Schedule.objects.filter(pk=schedule.pk).update(**change)
    planning.plan_changed()
    assert runs(schedule) == [("skipped", "misfire")] * 4


def test_of_more_missed_times_than_the_ledger_keeps_the_first_row_stands_for_the_others(settings):
    settings.SCHEDULE_RUNS_KEPT = 10
    schedule = due(timedelta(hours=1))
    Schedule.objects.filter(pk=schedule.pk).set_enabled(False)
    planning.plan_changed()
    rows = list(schedule.runs.order_by("scheduled_for"))
    assert len(rows) == 10
    assert "Stands for the times missed since" in rows[0].detail


def test_a_pause_of_one_that_has_missed_nothing_records_nothing():
    schedule = make()
    planning.plan_changed()
    Schedule.objects.filter(pk=schedule.pk).set_enabled(False)
    planning.plan_changed()
    assert runs(schedule) == []


def test_a_batch_ends_when_its_judging_has_taken_long_enough(monkeypatch):
    monkeypatch.setattr(firing, "STEPPING", 0)
    for number in range(3):
        due(timedelta(0), name=f"s{number}")
    assert firing.fire_due() == 1, "one at least"
    assert firing.fire_due() + firing.fire_due() == 2


def test_a_time_that_has_a_row_makes_no_task():
    """As where somebody moved `next_fire_at` back by SQL."""
    schedule, other = due(timedelta(seconds=1)), due(timedelta(seconds=1), name="other")
    schedule.runs.create(scheduled_for=schedule.start_at, outcome="skipped", reason="overlap")
    assert firing.fire_due() == 2
    assert runs(schedule) == [("skipped", "overlap")]
    assert TaskRecord.objects.get() == other.runs.get().record
    assert again(schedule).fired_count == 0
    Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=schedule.start_at)
    Schedule.objects.filter(pk=schedule.pk).update(every=7)
    assert runs(schedule) == [("skipped", "overlap")], "nor another row, where it is edited instead"


def test_a_finished_schedule_stays_and_has_no_next_time():
    schedule = passed_date()
    firing.fire_due()
    assert again(schedule).next_fire_at is None
    assert again(schedule).changed_at is None
    assert again(schedule).last_fire_at is not None


def test_ten_minutes_of_downtime_are_made_up_for_once():
    schedule = due(timedelta(minutes=10, seconds=20))
    firing.fire_due()
    assert runs(schedule) == [("skipped", "misfire")] * 10 + [("fired", "caught up")]
    assert timezone.now() - schedule.runs.first().scheduled_for < timedelta(minutes=1), "the latest of them"
    assert again(schedule).next_fire_at > timezone.now()


def test_three_days_of_downtime_cost_no_walk_through_them():
    schedule = due(timedelta(days=3), every=1, unit="seconds")
    firing.fire_due()
    *missed, last = schedule.runs.order_by("scheduled_for")
    assert timezone.now() - last.scheduled_for < timedelta(seconds=5)
    assert [last.outcome, {run.outcome for run in missed}, len(missed)] == [
        "fired",
        {"skipped"},
        conf.SCHEDULE_RUNS_KEPT - 1,
    ]
    assert "missed since" in missed[0].detail


def test_a_batch_whose_schedules_missed_much_leaves_the_rest_for_the_next(monkeypatch):
    monkeypatch.setattr(firing, "MOST_RUNS", 5)
    two = [due(timedelta(minutes=10), name=name) for name in "ab"]
    assert [firing.fire_due(), firing.fire_due(), firing.fire_due()] == [1, 1, 0]
    assert [len(runs(each)) for each in two] == [11, 11]


def test_each_missed_time_is_made_up_for_where_that_is_wanted():
    schedule = due(timedelta(minutes=3, seconds=20), catch_up="all")
    firing.fire_due()
    assert runs(schedule) == [("fired", "caught up")] * 4
    assert again(schedule).next_fire_at > timezone.now()


def test_making_up_for_each_is_bounded_and_the_rest_is_recorded():
    schedule = due(timedelta(minutes=150, seconds=20), catch_up="all", misfire_grace_time=None)
    firing.fire_due()
    assert runs(schedule) == [("skipped", "limit")] * 51 + [("fired", "caught up")] * Schedule.MAX_CATCH_UP


def test_missed_times_are_not_made_up_for_where_that_is_not_wanted():
    schedule = due(timedelta(minutes=3, seconds=20), catch_up="none")
    firing.fire_due()
    assert runs(schedule) == [("skipped", "misfire")] * 4
    Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=timezone.now())
    firing.fire_due()
    assert runs(schedule)[-1] == ("fired", "due")


def test_a_time_past_its_grace_is_recorded_as_missed():
    schedule = due(timedelta(hours=2), misfire_grace_time=3600, every=1, unit="days")
    firing.fire_due()
    assert runs(schedule) == [("skipped", "misfire")]
    assert not TaskRecord.objects.exists()


def test_a_run_is_skipped_while_as_many_as_allowed_are_unfinished():
    schedule = due(timedelta(seconds=1), overlap="skip")
    firing.fire_due()
    Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=timezone.now())
    firing.fire_due()
    assert runs(schedule) == [("fired", "due"), ("skipped", "overlap")]
    TaskRecord.objects.update(state="SUCCESS", finished_at=timezone.now())
    Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=timezone.now())
    firing.fire_due()
    assert runs(schedule)[-1] == ("fired", "due")


def test_a_task_that_is_to_be_there_once_is_skipped_while_it_is(published, commits):
    task = {"task": "sample.once_while_unfinished", "args": ["key"]}
    with commits():
        first = app.send_task(task["task"], task["args"])
        schedule, other = due(timedelta(0), **task), due(timedelta(0), name="other")
        firing.fire_due()
        by_hand = firing.run_now(schedule)
    assert runs(schedule) == [("skipped", "overlap")] * 2
    assert first.id in schedule.runs.first().detail
    assert (by_hand.outcome, by_hand.record_id) == ("skipped", None)
    assert runs(other) == [("fired", "due")]
    assert len(published) == 2


def test_a_task_that_is_unique_for_a_time_fires_again_after_it():
    schedule = due(timedelta(0), task="sample.once_a_minute", args=["key"])
    firing.fire_due()
    TaskRecord.objects.update(unique_until=timezone.now() - timedelta(seconds=1))
    Schedule.objects.update(next_fire_at=timezone.now())
    firing.fire_due()
    assert [outcome for outcome, _ in runs(schedule)] == ["fired", "fired"]


def test_arguments_that_make_no_task_are_an_outcome_too():
    schedule = due(timedelta(seconds=1))
    Schedule.objects.filter(pk=schedule.pk).update(args={"not": "a list"})
    other = due(timedelta(seconds=1), name="other")
    firing.fire_due()
    assert runs(schedule) == [("skipped", "invalid")]
    assert runs(other) == [("fired", "due")]


@pytest.mark.parametrize("error", [KeyError("a router's own bug"), ValueError("bug \x00"), RuntimeError("bug \ud800")])
def test_a_schedule_that_cannot_be_fired_at_all_stops_alone(monkeypatch, error):
    bad, good = due(timedelta(0), name="bad", task="sample.noop", args=[]), due(timedelta(0), name="good")
    build = app.build_record

    def build_record(name, *args, **kwargs):
        if name == "sample.noop":
            raise error
        return build(name, *args, **kwargs)

    monkeypatch.setattr(app, "build_record", build_record)
    firing.fire_due()
    assert runs(good) == [("fired", "due")]
    assert runs(bad) == [("skipped", "invalid")]
    assert "bug" in bad.runs.get().detail
    assert again(bad).next_fire_at > timezone.now(), "it goes on, and may be mended by then"
    assert firing.fire_due() == 0


def test_arguments_that_are_too_long_are_an_outcome_too(settings):
    settings.TASK_ARGS_MAX_BYTES = 50
    bad, good = due(timedelta(0), name="bad", args=["x" * 100]), due(timedelta(0), name="good")
    firing.fire_due()
    assert runs(bad) == [("skipped", "invalid")]
    assert "TASK_ARGS_MAX_BYTES" in bad.runs.get().detail
    assert runs(good) == [("fired", "due")]
    assert again(bad).next_fire_at > timezone.now()


def test_jitter_shifts_the_task_and_not_the_due_time():
    schedule = due(timedelta(seconds=1), jitter=30)
    firing.fire_due()
    run = schedule.runs.get()
    assert timedelta(0) <= run.record.eta - run.scheduled_for < timedelta(seconds=30)


def test_run_now_uses_the_schedules_settings_and_changes_nothing_else(published, commits):
    schedule = make(queue="celery_queue", enabled=False)
    planning.plan_changed()
    before = Schedule.objects.filter(pk=schedule.pk).values().get()
    with commits(), transaction.atomic():
        first, second = firing.run_now(schedule, by="ada"), firing.run_now(schedule)
    assert Schedule.objects.filter(pk=schedule.pk).values().get() == before
    assert runs(schedule) == [("fired", "manual")] * 2
    assert first.detail == "by ada"
    assert published == [first.record_id, second.record_id]


def test_the_next_wake_up_is_the_earliest_of_what_is_due_and_what_changed():
    assert planning.next_wake_up() is None
    make("later", kind="date", run_at=datetime(2050, 1, 1, tzinfo=UTC))
    planning.plan_changed()
    assert planning.next_wake_up() == datetime(2050, 1, 1, tzinfo=UTC)
    changed = make("changed")
    assert planning.next_wake_up() == again(changed).changed_at


@pytest.mark.parametrize(
    ("queryset", "index"),
    [(lambda: Schedule.objects.due(10), "schedule_due"), (lambda: Schedule.objects.changed(10), "schedule_changed")],
)
def test_each_queue_is_read_by_its_index(queryset, index):
    from django.db import connection

    Schedule.objects.bulk_create(
        [Schedule(name=str(n), task="t", kind="cron", cron="0 0 1 1 *") for n in range(3000)], batch_size=1000
    )
    while planning.plan_changed(1000):
        pass
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE scheduling_app_schedule")
    assert index in queryset().explain()
