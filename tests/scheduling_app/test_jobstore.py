"""The job store as APScheduler's loop asks it: what is done in a pass, and when the next one is."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from celery import current_app as app
from django.db import InterfaceError, OperationalError, connection, connections, transaction

from scheduling_app import jobstore
from scheduling_app.jobstore import BACK_OFF, HELD, POLL, ScheduleJobStore
from scheduling_app.ledger import backfill, waiting
from scheduling_app.models import Schedule
from tests.scheduling_app.ledger.test_firing import due, make, runs

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _unpublished(monkeypatch):
    monkeypatch.setattr(app, "publish", lambda records: None)


@pytest.fixture
def store():
    return ScheduleJobStore()


def now() -> datetime:
    return datetime.now(UTC)


def test_it_plans_and_fires_by_itself_and_hands_no_job_out(store):
    schedule, new = due(timedelta(0)), make("new")
    assert store.get_due_jobs(now()) == []
    assert runs(schedule) == [("fired", "due")]
    assert Schedule.objects.get(pk=new.pk).next_fire_at is not None


def test_it_wakes_for_what_is_due_next_and_by_the_poll_at_the_latest(store):
    assert POLL - timedelta(seconds=1) < store.get_next_run_time() - now() <= POLL
    make(every=10, unit="seconds", start_at=now())
    store.get_due_jobs(now())
    assert store.get_next_run_time() == Schedule.objects.get().next_fire_at


def test_what_a_pass_did_not_come_to_is_done_at_once(store, monkeypatch):
    monkeypatch.setattr(jobstore, "PASS", 0)
    monkeypatch.setattr(jobstore, "BATCH", 1)
    for name in "ab":
        due(timedelta(minutes=1), name=name)
    store.get_due_jobs(now())
    assert store.get_next_run_time() < now()


@pytest.mark.django_db(transaction=True)
def test_the_messages_of_a_batch_go_out_while_the_next_one_is_written(store, monkeypatch):
    monkeypatch.setattr(jobstore, "BATCH", 2)
    for name in "abcdef":
        due(timedelta(minutes=1), name=name)
    unfired = []
    monkeypatch.setattr(app, "publish", lambda records: unfired.append((len(records), to_fire())))

    def look() -> int:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '2s'")  # who waits here, waits for whoever waits for this
            return Schedule.objects.due(9).count()
        finally:
            connections.close_all()

    def to_fire() -> int:  # as others see it
        with ThreadPoolExecutor(1) as other:
            return other.submit(look).result()

    store.get_due_jobs(now())
    assert unfired == [(2, 4), (2, 2), (2, 0)]


@pytest.mark.django_db(transaction=True)
def test_it_does_not_spin_while_another_scheduler_holds_what_is_due(store):
    held, done = threading.Event(), threading.Event()
    schedule = due(timedelta(0))

    def hold():
        with transaction.atomic():
            list(Schedule.objects.select_for_update())
            held.set()
            done.wait(10)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    try:
        pauses = []
        for _ in range(20):
            store.get_due_jobs(now())
            at = store.get_next_run_time()
            pauses.append(at - now())
            assert pauses[-1] <= HELD
            done.wait(max(pauses[-1].total_seconds(), 0))
    finally:
        done.set()
        thread.join()
    assert pauses[-1] > HELD / 2
    store.get_due_jobs(now())
    assert runs(schedule) == [("fired", "due")]


def test_while_runs_wait_it_looks_each_second_and_sooner_after_one_had_its_turn(store):
    schedule = make(every=1, unit="hours", start_at=now() - timedelta(hours=3))
    store.get_due_jobs(now())
    backfill.start(schedule, backfill.due_times(schedule, schedule.start_at, now()))
    store.get_due_jobs(now())
    assert schedule.runs.filter(reason="backfill", outcome="fired").count() == 1
    assert store.get_next_run_time() - now() <= waiting.SHORT_PAUSE
    store.get_due_jobs(now())
    assert schedule.runs.filter(reason="backfill", outcome="fired").count() == 1, "that one is unfinished"
    assert waiting.SHORT_PAUSE < store.get_next_run_time() - now() <= waiting.PAUSE


@pytest.mark.parametrize("error", [OperationalError, InterfaceError, KeyError])
@pytest.mark.parametrize("call", ["plan_changed", "fire_due", "release_waiting", "next_wake_up", "next_look"])
def test_whatever_goes_wrong_it_is_asked_again_soon(store, monkeypatch, caplog, call, error):
    """APScheduler would wait ten seconds, or end its loop."""

    def fail(*_):
        raise error("as it happens")

    with monkeypatch.context() as patch:
        patch.setattr(jobstore, call, fail)
        patch.setattr(jobstore.connections, "close_all", lambda: None)  # a test's transaction would be lost
        store.get_due_jobs(now())
        assert timedelta(0) < store.get_next_run_time() - now() <= BACK_OFF
    assert "as it happens" in caplog.text
    schedule = due(timedelta(0))
    store.get_due_jobs(now())
    assert runs(schedule) == [("fired", "due")]


def test_that_the_database_is_away_is_said_once_each_time(store, monkeypatch, caplog):
    def fail():
        raise OperationalError("as it happens")

    monkeypatch.setattr(jobstore.connections, "close_all", lambda: None)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(jobstore, "plan_changed", fail)
            store.get_due_jobs(now())
            store.get_due_jobs(now())
        store.get_due_jobs(now())
    assert len(caplog.records) == 2
