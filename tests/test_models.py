"""The moves of a task's state: each wins only where its guard holds."""

import threading
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from tasks_app import states
from tasks_app.models import TaskRecord, printable
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
    assert claim() == 1
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
    assert objects.mark_retry("t", 1, None, "", "", "") is None
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


def test_a_retry_waits_again_under_a_new_generation():
    record = insert()
    claim()
    later = TaskRecord(args=[2], eta=timezone.now() + timedelta(minutes=1), retries=1)
    later.publish_at = later.eta
    moved = objects.mark_retry("t", 1, later, "ValueError", "no", "Traceback")
    assert (moved.state, moved.gen, moved.args, moved.retries, moved.publish_at) == ("RETRY", 2, [2], 1, later.eta)
    assert record.attempts.get().exc_message == "no"
    assert claim(gen=1) is None, "the message of the first run is void"
    assert claim(gen=2) == 2


def test_a_retry_expires_when_the_task_does():
    expires = timezone.now() + timedelta(hours=1)
    insert(expires=expires)
    claim()
    assert objects.mark_retry("t", 1, TaskRecord(retries=1), "", "", "").expires == expires


def test_what_expired_is_revoked_with_the_reason():
    insert("old", expires=timezone.now() - timedelta(seconds=1))
    insert("new", expires=timezone.now() + timedelta(hours=1))
    assert objects.mark_expired() == ["old"]
    assert objects.get(task_id="old").exc_message == "expired"


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "DONE"},
        {"state": states.SUCCESS, "finished_at": None},
        {"state": states.STARTED, "finished_at": timezone.now()},
    ],
)
def test_postgres_refuses_a_state_that_cannot_be(fields):
    insert()
    with pytest.raises(IntegrityError), transaction.atomic():
        objects.update(**fields)


@pytest.mark.parametrize(
    ("queryset", "index"),
    [
        (lambda: objects.due_for_publishing(10), "task_publish_due"),
        (lambda: objects.filter(state="FAILURE").order_by("-pk")[:10], "task_state"),
        (lambda: objects.filter(name="sample.fail").order_by("-pk")[:10], "task_name"),
        (lambda: objects.unfinished()[:10], "task_state"),
        (lambda: objects.in_workflow("7")[:10], "task_root"),
    ],
)
def test_each_index_is_used_by_the_query_that_it_is_for(queryset, index):
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tasks_app_taskrecord "
            "(task_id, name, args, kwargs, options, queue, root_id, state, finished_at) "
            "SELECT n, 'sample.' || n % 50, '[]', '{}', '{}', 'q', n, 'SUCCESS', now() FROM generate_series(1, 20000) n"
        )
        cursor.execute("ANALYZE tasks_app_taskrecord")
    assert index in queryset().explain()


def test_text_that_postgres_cannot_hold_is_escaped():
    assert printable("a\x00b\ud800ü") == "a\\x00b\\ud800ü"


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
