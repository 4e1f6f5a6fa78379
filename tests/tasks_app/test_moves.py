"""The moves of a task's state: each wins only where its guard holds."""

import threading
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from tasks_app import states
from tasks_app.models import TaskRecord
from tests.acceptance.processes import eventually

pytestmark = pytest.mark.django_db
objects = TaskRecord.objects


def insert(task_id="t", **fields) -> TaskRecord:
    record = TaskRecord(task_id=task_id, name="sample.echo", queue="celery_queue", root_id=task_id, **fields)
    objects.insert([record])
    return objects.get(task_id=task_id)


def claim(task_id="t", gen=1):
    return objects.claim(task_id, gen, "worker@host", 42)


def test_a_claim_wins_once():
    insert()
    assert claim().attempt == 1
    assert claim() is None
    record = objects.get()
    assert (record.state, record.attempt, record.worker, record.worker_pid) == ("STARTED", 1, "worker@host", 42)
    assert record.publish_at is None
    assert record.published_at is not None


@pytest.mark.parametrize("gen", [1, 3])
def test_a_claim_by_another_generations_message_loses(gen):
    insert()
    objects.update(gen=2)
    assert claim(gen=gen) is None
    assert objects.get().state == states.PENDING


def test_a_claim_of_an_expired_task_loses():
    insert(expires=timezone.now() - timedelta(seconds=1))
    assert claim() is None


@pytest.mark.parametrize("state", states.READY_STATES)
def test_nothing_moves_out_of_a_terminal_state(state):
    insert()
    objects.update(state=state, finished_at=timezone.now())
    assert claim() is None
    assert objects.all().mark_revoked("late") == []
    assert objects.run_of("t", 1) is None
    assert objects.filter(task_id="t").stop("late", "SIGTERM") == {}
    assert objects.mark_handed_back([("t", 1)]) == 0
    assert objects.renew([("t", 1)]) == {}
    assert not objects.mark_replaced("t", 1)
    assert objects.take_over(TaskRecord(task_id="t", name="other")) is None
    assert objects.mark_dropped("t", 1, states.IGNORED) == 0
    assert objects.get(task_id="t").state == state


def test_revoking_takes_what_waits_and_leaves_what_runs():
    insert("waits")
    insert("runs")
    claim("runs")
    assert objects.all().mark_revoked("not needed") == ["waits"]
    revoked = objects.get(task_id="waits")
    assert (revoked.state, revoked.exc_message, revoked.publish_at) == ("REVOKED", "not needed", None)
    assert objects.get(task_id="runs").state == states.STARTED
    assert claim("waits") is None


def test_one_statement_revokes_what_waits_and_asks_what_runs_to_stop():
    insert("waits")
    insert("runs")
    claim("runs")
    assert objects.all().stop("not needed", "SIGTERM") == {"waits": "REVOKED", "runs": "STARTED"}
    runs = objects.get(task_id="runs")
    assert (runs.state, runs.cancel_signal, objects.get(task_id="waits").exc_message) == (
        "STARTED",
        "SIGTERM",
        "not needed",
    )
    assert objects.all().stop("again") == {"runs": "STARTED"}
    assert objects.get(task_id="runs").cancel_signal == "SIGTERM", "a signal asked for stands"


def test_a_lease_is_renewed_for_what_is_still_held_only():
    for task_id in ("runs", "waits", "went", "done"):
        insert(task_id)
    for task_id in ("runs", "went", "done"):
        claim(task_id)
    objects.filter(task_id="went").update(gen=2)
    objects.filter(task_id="done").update(state="SUCCESS", finished_at=timezone.now())
    objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    objects.filter(task_id="runs").stop("", "SIGTERM")
    assert objects.renew([(id_, 1) for id_ in ("runs", "waits", "went", "done")]) == {
        "runs": (True, "SIGTERM"),
        "waits": (False, ""),
    }
    assert [run.task_id for run in objects.lost()] == ["went"]
    assert objects.get(task_id="runs").lease_until > timezone.now()


def test_what_is_published_unclaimed_and_held_by_no_worker_is_to_be_looked_for():
    for task_id in ("lost", "held", "claimed", "fresh", "unpublished"):
        insert(task_id)
    objects.mark_published([(id_, 1) for id_ in ("lost", "held", "claimed", "fresh")])
    objects.exclude(task_id="fresh").update(published_at=timezone.now() - timedelta(minutes=2))
    objects.filter(task_id="unpublished").update(published_at=None)
    objects.renew([("held", 1)])
    claim("claimed")
    assert [record.task_id for record in objects.unclaimed(60)] == ["lost"]
    assert objects.mark_handed_back([("lost", 1), ("claimed", 1)]) == 1
    again = objects.get(task_id="lost")
    assert (again.gen, again.published_at) == (2, None)
    assert claim("lost", gen=1) is None, "the old message, should it turn up, is void"


def test_what_expired_is_revoked_with_the_reason():
    insert("old", expires=timezone.now() - timedelta(seconds=1))
    insert("new", expires=timezone.now() + timedelta(hours=1))
    assert objects.mark_expired(10) == ["old"]
    assert objects.get(task_id="old").exc_message == "expired"


@pytest.mark.django_db(transaction=True)
def test_a_claim_that_commits_first_wins_over_a_revoke_that_waits_for_it():
    insert()
    revoked: list = []

    def revoke():
        revoked.extend(objects.all().mark_revoked("late"))
        connection.close()

    thread = threading.Thread(target=revoke)
    with transaction.atomic():
        claim()
        thread.start()
        eventually(waits_for_a_lock, what="the revoke waits for the row")
    thread.join()
    assert revoked == []
    assert objects.get().state == states.STARTED


def waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return cursor.fetchone()[0] > 0
