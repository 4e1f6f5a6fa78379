"""Backfills: which due times of a range are run, how many at once, and what is left of one that is cancelled."""

import threading
from datetime import timedelta
from uuid import uuid4

import pytest
from celery import current_app as app
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from scheduling_app.ledger import backfill, firing, policies
from scheduling_app.ledger.backfill import BackfillError, due_times
from scheduling_app.ledger.waiting import next_look, release_waiting
from scheduling_app.models import Backfill, Schedule, ScheduleRun
from tasks_app import states
from tasks_app.models import TaskRecord
from tests.scheduling_app.ledger.test_firing import due, make

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("published")]

MINUTE = timedelta(minutes=1)


def passed(*before: str, **fields) -> Schedule:
    """A schedule of whole minutes that came due once for each of `before`, which says what the ledger has for it:
    "" for nothing, "skipped", "waiting", "deleted" for a task that is gone, or the state of its task."""
    first = timezone.now().replace(microsecond=0) - len(before) * MINUTE + MINUTE / 2
    schedule = make(start_at=first, **fields)
    for number, what in enumerate(before):
        if what:
            run = ScheduleRun(schedule=schedule, scheduled_for=schedule.start_at + number * MINUTE)
            run.outcome = what if what in ("skipped", "waiting") else "fired"
            run.reason = {"skipped": "misfire", "waiting": "overlap"}.get(what, "due")
            run.record_id = task_in(what) if what.isupper() else None
            run.save()
    return schedule


def task_in(state: str) -> str:
    task = app.send_task("sample.echo", [1])
    finished_at = timezone.now() if state in states.READY_STATES else None
    TaskRecord.objects.filter(task_id=task.id).update(state=state, finished_at=finished_at)
    return task.id


def range_of(schedule: Schedule) -> list[backfill.DueTime]:
    return due_times(schedule, schedule.start_at, timezone.now())


def start(schedule: Schedule, **options) -> Backfill:
    return backfill.start(schedule, range_of(schedule), **options)


def minutes(schedule: Schedule, runs) -> list[int]:
    """Due times as minutes since the first."""
    return [(run.scheduled_for - schedule.start_at) // MINUTE for run in runs]


def unfinished(schedule: Schedule) -> list[int]:
    """The due times whose tasks are unfinished, in the order in which they were fired."""
    runs = schedule.runs.filter(outcome="fired", record__state__in=states.UNREADY_STATES)
    return minutes(schedule, runs.order_by("record__pk"))


def end_tasks(state: str = "SUCCESS") -> None:
    TaskRecord.objects.unfinished().update(state=state, finished_at=timezone.now(), publish_at=None)


def again(each: Backfill) -> Backfill:
    return Backfill.objects.get(pk=each.pk)


def ledger(schedule: Schedule) -> list[dict]:
    return list(schedule.runs.order_by("scheduled_for").values())


# Which times

BEFORE = ["", "skipped", "waiting", "deleted", "SUCCESS", "FAILURE", "REVOKED", "STARTED", "PENDING"]


def test_a_preview_has_each_due_time_with_what_the_ledger_has_for_it():
    schedule = passed(*BEFORE, overlap="queue_all")
    found = due_times(schedule, schedule.start_at, schedule.start_at + 8 * MINUTE)  # both included
    assert minutes(schedule, [ScheduleRun(scheduled_for=each.at) for each in found]) == list(range(9))
    phases = [each.mark and each.mark.phase for each in found]
    assert phases == [None, "skipped", "waiting", "fired", "succeeded", "failed", "revoked", "running", "queued"]


@pytest.mark.parametrize(("which", "chosen"), [("missing", [0, 1]), ("failed", [5, 6]), ("all", [0, 1, 3, 4, 5, 6])])
def test_what_runs_or_waits_already_is_never_chosen(which, chosen):
    schedule = passed(*BEFORE, overlap="queue_all")
    each = start(schedule, which=which, concurrency=9)
    assert (each.total, minutes(schedule, each.runs.order_by("scheduled_for"))) == (len(chosen), chosen)
    assert release_waiting() == len(chosen)
    assert [run.outcome for run in each.runs.all()] == ["fired"] * len(chosen)


def test_times_that_have_not_come_are_not_part_of_it():
    schedule = passed("", "")
    assert len(due_times(schedule, schedule.start_at, timezone.now() + timedelta(days=1))) == 2
    with pytest.raises(BackfillError, match="in the future"):
        due_times(schedule, timezone.now() + MINUTE, timezone.now() + 2 * MINUTE)


def test_what_is_older_than_the_ledger_may_have_run_and_is_not_missing(settings):
    settings.SCHEDULE_RUNS_KEPT = 2
    schedule = passed("", "", "skipped", "", "SUCCESS")
    found = range_of(schedule)
    assert [each.is_forgotten for each in found] == [True, True, False, False, False]
    assert [each.is_chosen("missing") for each in found] == [False, False, True, True, False]
    assert all(each.is_chosen("all") for each in found)


def test_a_range_of_nothing_is_refused():
    schedule = passed("SUCCESS")
    now = timezone.now()
    with pytest.raises(BackfillError, match="ends before"):
        due_times(schedule, now, now - MINUTE)
    with pytest.raises(BackfillError, match="None of these"):
        backfill.start(schedule, due_times(schedule, schedule.start_at, schedule.start_at))
    with pytest.raises(BackfillError, match="At least one"):
        start(schedule, which="all", concurrency=0)
    assert not Backfill.objects.exists()


def test_a_range_of_too_many_is_refused(monkeypatch):
    monkeypatch.setattr(Backfill, "MOST", 3)
    with pytest.raises(BackfillError, match="More than 3 due times"):
        range_of(passed(*[""] * 4))


def test_what_another_backfill_began_with_since_the_preview_is_left_to_it():
    schedule = passed("FAILURE", "FAILURE")
    times = range_of(schedule)
    first = backfill.start(schedule, times, which="failed")
    assert release_waiting() == 1, "one of them runs, one waits"
    with pytest.raises(BackfillError, match="None of these"):
        backfill.start(schedule, times, which="failed")
    assert first.runs.count() == 2


# Its runs


@pytest.mark.parametrize(("newest_first", "order"), [(False, [[0, 1], [2, 3], [4]]), (True, [[4, 3], [2, 1], [0]])])
def test_it_runs_so_many_at_once_in_the_order_it_was_told(newest_first, order):
    schedule = passed(*[""] * 5)
    each = start(schedule, concurrency=2, newest_first=newest_first)
    for fired in order:
        assert release_waiting() == len(fired)
        assert release_waiting() == 0, "they are unfinished"
        assert unfinished(schedule) == fired
        assert again(each).state == "running"
        end_tasks()
    assert next_look() is not None
    assert release_waiting() == 0
    assert (again(each).state, again(each).total) == ("finished", 5)
    assert again(each).finished_at is not None
    assert next_look() is None


def test_a_run_says_whose_it_is_and_what_was_before_it(commits, published):
    schedule = passed("FAILURE", priority=2, queue="celery_queue", expires_after=20)
    before = schedule.runs.get().record_id
    with commits():
        start(schedule, which="failed", by="ada")
        release_waiting()
    run = schedule.runs.get()
    assert (run.outcome, run.reason, run.detail) == ("fired", "backfill", f"By ada. Before: task {before}.")
    assert (run.record.queue, run.record.priority) == ("celery_queue", 2)
    assert run.record.options["headers"]["scheduled_for"] == run.scheduled_for.isoformat()
    assert published == [before, run.record_id] or published == [run.record_id]
    assert run.fired_at - run.scheduled_for > timedelta(seconds=29)
    assert abs(run.record.expires - run.fired_at - timedelta(seconds=20)) < timedelta(seconds=1), "not of its due time"


def test_a_run_that_cannot_be_made_is_an_outcome_and_its_backfill_goes_on():
    schedule = passed("", "", task="no.such.task")
    each = start(schedule)
    while again(each).state == "running":
        release_waiting()
    assert [run.reason for run in each.runs.all()] == ["invalid"] * 2


def test_its_runs_and_those_of_its_schedule_do_not_count_for_each_other():
    schedule = passed("", "STARTED", overlap="skip")
    start(schedule)
    assert release_waiting() == 1
    assert unfinished(schedule) == [1, 0]
    TaskRecord.objects.filter(schedule_run__backfill=None).update(state="SUCCESS", finished_at=timezone.now())
    Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=timezone.now(), changed_at=None)
    firing.fire_due()
    assert schedule.runs.order_by("scheduled_for").last().outcome == "fired"


def test_each_run_has_an_id_of_its_own_that_any_scheduler_would_give_it():
    schedule = passed("FAILURE")
    ids = set()
    for _ in range(2):
        each = start(schedule, which="failed")
        release_waiting()
        run = schedule.runs.get()
        copy = policies.Run(schedule, run.scheduled_for, "fired", "backfill", backfill_id=each.pk)
        assert [record.task_id for record in firing.make_records([copy]).values()] == [run.record_id]
        ids.add(run.record_id)
        end_tasks("FAILURE")
        release_waiting()
    assert len(ids) == 2


def test_many_that_have_to_wait_keep_none_from_its_turn():
    first, second = passed("", "", name="first"), passed("", "", name="second")
    for schedule in (first, second):
        start(schedule)
    assert release_waiting(limit=1) == 2
    TaskRecord.objects.filter(schedule_run__schedule=second).update(state="SUCCESS", finished_at=timezone.now())
    assert release_waiting(limit=1) == 1
    assert unfinished(second) == [1]


def test_many_that_queue_keep_none_from_its_turn():
    one, two = (passed("STARTED", "waiting", overlap="queue_all", name=name) for name in ("one", "two"))
    TaskRecord.objects.filter(schedule_run__schedule=two).update(state="SUCCESS", finished_at=timezone.now())
    assert release_waiting(limit=1) == 1
    assert (unfinished(one), unfinished(two)) == ([0], [1])


def test_a_look_costs_no_more_where_more_have_to_wait():
    costs = []
    for names in ("a", "bcde"):
        for name in names:
            passed("STARTED", "waiting", overlap="queue_all", name=name)
            start(passed("STARTED", "", name=f"{name} again"))
        release_waiting()
        with CaptureQueriesContext(connection) as queries:
            assert release_waiting() == 0
        costs.append(len(queries))
    assert costs[0] == costs[1]


# Pause, resume, cancel


def test_paused_it_starts_no_more_and_resumed_it_goes_on():
    schedule = passed("", "", "")
    each = start(schedule)
    this, others = Backfill.objects.filter(pk=each.pk), Backfill.objects.exclude(pk=each.pk)
    release_waiting()
    assert (backfill.pause(this), backfill.pause(this), backfill.resume(others)) == (1, 0, 0)
    assert unfinished(schedule) == [0], "what runs goes on"
    end_tasks()
    assert release_waiting() == 0
    assert next_look() is None
    assert (backfill.resume(this), backfill.resume(this)) == (1, 0)
    assert release_waiting() == 1
    assert unfinished(schedule) == [1]


@pytest.mark.parametrize("paused", [False, True])
def test_cancelled_it_leaves_no_trace_of_what_it_did_not_come_to(paused):
    schedule = passed(*BEFORE, overlap="queue_all")
    before = ledger(schedule)
    each = start(schedule, which="all", concurrency=2)
    if paused:
        backfill.pause(Backfill.objects.all())
    assert backfill.cancel(each)
    assert ledger(schedule) == before
    assert (again(each).state, release_waiting(), backfill.cancel(each)) == ("cancelled", 0, False)
    assert again(each).finished_at is not None


def test_cancelled_it_lets_go_on_what_runs():
    schedule = passed("", "FAILURE", "")
    each = start(schedule, which="all")
    release_waiting()
    assert backfill.cancel(each)
    assert [(run.outcome, run.reason) for run in schedule.runs.order_by("scheduled_for")] == [
        ("fired", "backfill"),
        ("fired", "due"),
    ]
    assert unfinished(schedule) == [0]


def test_what_an_earlier_backfill_ran_is_there_after_a_later_one_was_cancelled():
    """Also where its task was deleted since: nothing but its time tells it from a row that the later one made."""
    schedule = passed("")
    start(schedule)
    release_waiting()
    end_tasks()
    TaskRecord.objects.all().delete()
    release_waiting()
    later = start(schedule, which="all")
    backfill.cancel(later)
    assert [(run.outcome, run.reason) for run in schedule.runs.all()] == [("fired", "backfill")]


# The ledger


def test_its_rows_stay_in_the_ledger_as_long_as_it_is_kept(settings):
    settings.SCHEDULE_RUNS_KEPT = 2
    schedule = passed("FAILURE", "SUCCESS", "SUCCESS", "SUCCESS")
    each = start(schedule, which="failed")
    firing.trim([schedule.pk])
    assert minutes(schedule, schedule.runs.order_by("scheduled_for")) == [0, 2, 3]
    release_waiting()
    end_tasks()
    firing.trim([schedule.pk])
    assert minutes(schedule, schedule.runs.order_by("scheduled_for")) == [0, 2, 3]
    each.delete()
    firing.trim([schedule.pk])
    assert minutes(schedule, schedule.runs.order_by("scheduled_for")) == [2, 3]


def test_so_many_backfills_of_a_schedule_are_kept_and_all_that_go_on(monkeypatch):
    monkeypatch.setattr(backfill, "KEPT", 1)
    schedule = passed("")
    made = []
    for state in ("paused", "finished", "cancelled", "finished", "running"):
        each = start(schedule, which="all")
        release_waiting()
        end_tasks()
        Backfill.objects.filter(pk=each.pk).update(state=state)
        made.append(each.pk)
    assert list(Backfill.objects.order_by("pk").values_list("pk", flat=True)) == [made[0], made[3], made[4]]


# Times missed while it was paused


@pytest.mark.parametrize(("only_latest", "chosen"), [(True, [2]), (False, [0, 2])])
def test_what_a_pause_missed_is_made_up_for(only_latest, chosen):
    schedule = passed("", "SUCCESS", "skipped")
    until = schedule.start_at + 2 * MINUTE
    each = backfill.make_up_for(schedule, schedule.start_at, until, only_latest, by="ada")
    assert (minutes(schedule, each.runs.order_by("scheduled_for")), each.created_by) == (chosen, "ada")


def test_a_pause_that_missed_nothing_is_not_made_up_for():
    schedule = passed("SUCCESS")
    assert backfill.make_up_for(schedule, schedule.start_at, schedule.start_at, False, by="") is None
    assert backfill.make_up_for(schedule, schedule.start_at - MINUTE, schedule.start_at - MINUTE, False, by="") is None


def test_a_long_pause_is_made_up_for_by_the_latest_times_alone():
    schedule = make(every=1, unit="seconds", start_at=timezone.now() - timedelta(days=3))
    each = backfill.make_up_for(schedule, schedule.start_at, timezone.now(), False, by="")
    assert each.total == Schedule.MAX_CATCH_UP
    assert timezone.now() - each.runs.earliest("scheduled_for").scheduled_for < timedelta(minutes=2)


# Two schedulers


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", ["backfill", "queue"])
def test_two_schedulers_never_give_the_same_room_twice(kind):
    """The other looks while this one has counted, and has fired, and has not committed."""
    schedule = passed("waiting", "waiting", "waiting", overlap="queue_all", name=str(uuid4()))
    if kind == "backfill":
        schedule.runs.all().delete()
        start(schedule)
    other: list[int] = []

    def look():
        other.append(release_waiting())
        connection.close()

    thread = threading.Thread(target=look)
    with transaction.atomic():
        assert release_waiting() == 1
        thread.start()
        thread.join(5)
        assert other == [0], "it does not wait either"
    assert release_waiting() == 0
    assert len(unfinished(schedule)) == 1


def test_schedulers_are_told_of_a_backfill_that_begins_or_goes_on():
    each = start(passed(""))
    backfill.pause(Backfill.objects.filter(pk=each.pk))
    with CaptureQueriesContext(connection) as queries:
        backfill.resume(Backfill.objects.filter(pk=each.pk))
    assert any("pg_notify" in query["sql"] for query in queries), "a scheduler may sleep for long"


def test_what_is_due_and_not_fired_yet_is_left_to_the_schedulers():
    schedule = due(timedelta(minutes=3, seconds=20))
    now = timezone.now()
    assert due_times(Schedule.objects.get(pk=schedule.pk), now - 3 * MINUTE, now) == []


def test_a_range_ends_right_before_the_first_time_that_the_schedulers_are_to_fire():
    schedule = passed("", "", "", "", "")
    Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=schedule.start_at + 3 * MINUTE, changed_at=None)
    schedule.refresh_from_db()
    assert minutes(schedule, [ScheduleRun(scheduled_for=each.at) for each in range_of(schedule)]) == [0, 1, 2]


def test_one_that_may_run_nothing_is_not_finished_while_something_waits():
    """As SQL may have it; a larger number, by the same road, lets it go on."""
    each = start(passed(""))
    Backfill.objects.filter(pk=each.pk).update(concurrency=0)
    release_waiting()
    assert again(each).state == "running"
    Backfill.objects.filter(pk=each.pk).update(concurrency=1)
    assert release_waiting() == 1
