"""The ways back to waiting, under a new generation."""

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from tasks_app.models import TaskRecord
from tasks_app.retries import keep_attempt, wait_again

pytestmark = pytest.mark.django_db
objects = TaskRecord.objects


def insert(task_id="t", **fields) -> TaskRecord:
    record = TaskRecord(task_id=task_id, name="sample.echo", queue="celery_queue", root_id=task_id, **fields)
    objects.insert([record])
    return objects.get(task_id=task_id)


def claim(task_id="t", gen=1):
    return objects.claim(task_id, gen, "worker@host", 42)


def lose(task_id: str = "t", max_lost: int = 3) -> bool:
    objects.claim(task_id, objects.get(task_id=task_id).gen, "worker@host", 42, max_lost)
    with transaction.atomic():
        run = objects.get(task_id=task_id)
        return objects.mark_lost(run, "lost")


def test_a_lost_run_is_repeated_as_often_as_its_task_allows():
    record = insert()
    assert lose()
    assert lose()
    assert not lose(), "the third lost run is its last"
    assert list(record.attempts.values_list("attempt", "exc_type")) == [(1, "WorkerLostError"), (2, "WorkerLostError")]
    assert objects.get().gen == 3


def test_a_lost_run_that_was_asked_to_stop_or_that_may_not_be_repeated_is_not():
    insert("once")
    insert("stopped")
    assert not lose("once", max_lost=1)
    objects.claim("stopped", 1, "worker@host", 42, max_lost=3)
    objects.filter(task_id="stopped").stop("")
    assert not objects.mark_lost(objects.get(task_id="stopped"), "lost")


def test_a_retry_waits_again_under_a_new_generation():
    record = insert()
    claim()
    later = TaskRecord(args=[2], eta=timezone.now() + timedelta(minutes=1), retries=1)
    later.publish_at = later.eta
    run = objects.run_of("t", 1)
    keep_attempt(run, "ValueError", "no", "Traceback")
    moved = wait_again(run, later)
    assert (moved.state, moved.gen, moved.args, moved.retries, moved.publish_at) == ("RETRY", 2, [2], 1, later.eta)
    assert record.attempts.get().exc_message == "no"
    assert claim(gen=1) is None, "the message of the first run is void"
    assert claim(gen=2).attempt == 2


def test_a_retry_expires_when_the_task_does():
    expires = timezone.now() + timedelta(hours=1)
    insert(expires=expires)
    claim()
    assert wait_again(objects.run_of("t", 1), TaskRecord(retries=1)).expires == expires


def test_a_message_that_no_worker_knows_makes_its_task_wait_only_if_it_is_in_force():
    for task_id in ("sent", "unmarked", "later", "replaced"):
        insert(task_id)
    objects.mark_published([("sent", 1), ("replaced", 1)])
    objects.filter(task_id="later").update(publish_at=timezone.now() + timedelta(hours=1))
    objects.filter(task_id="replaced").update(published_at=None)
    assert [objects.mark_unregistered(id_, "unknown", 600) for id_ in ("sent", "unmarked", "later", "replaced")] == [
        True,
        True,
        False,
        False,
    ]
    assert [objects.is_to_come(id_) for id_ in ("later", "replaced", "nobody")] == [True, True, False]
    insert("old", eta=timezone.now() - timedelta(seconds=601))
    assert not objects.mark_unregistered("old", "unknown", 600)
    assert not objects.is_to_come("old"), "it has failed"
