"""The relay: whatever is due and unpublished goes out, shared among any number of relays."""

import threading
from datetime import timedelta

import pytest
from celery import current_app as app
from django.db import connection, transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from tasks_app import maintenance, states
from tasks_app.models import TaskRecord

objects = TaskRecord.objects


@pytest.fixture
def published(monkeypatch):
    ids = []
    monkeypatch.setattr(app, "publish", lambda records: ids.extend(record.task_id for record in records))
    return ids


def insert(task_id, due_in: float = -1) -> None:
    publish_at = timezone.now() + timedelta(seconds=due_in)
    objects.insert(
        [TaskRecord(task_id=task_id, name="sample.echo", queue="celery_queue", root_id=task_id, publish_at=publish_at)]
    )


@pytest.mark.django_db
def test_what_is_due_is_published_once_oldest_first(published):
    insert("second")
    insert("first", due_in=-60)
    insert("later", due_in=60)
    assert maintenance.publish_due() == 2
    assert maintenance.publish_due() == 0
    assert published == ["first", "second"]
    assert objects.get(task_id="first").published_at is not None


@pytest.mark.django_db
def test_an_outage_of_the_broker_costs_a_row_nothing(monkeypatch):
    insert("t")

    def away(records):
        raise OperationalError("away")

    monkeypatch.setattr(app, "publish", away)
    before = objects.values().get()
    with pytest.raises(OperationalError):
        maintenance.publish_due()
    assert objects.values().get() == before


@pytest.mark.django_db
def test_a_row_of_which_no_message_can_be_made_fails_alone(monkeypatch):
    out = []

    def publish(records):
        if any(record.task_id == "bad" for record in records):
            raise TypeError("cannot be encoded")
        out.extend(record.task_id for record in records)

    monkeypatch.setattr(app, "publish", publish)
    for task_id in ("a", "bad", "b"):
        insert(task_id)
    maintenance.publish_due()
    assert out == ["a", "b"]
    bad = objects.get(task_id="bad")
    assert (bad.state, bad.exc_type) == (states.FAILURE, "TypeError")
    assert maintenance.publish_due() == 0


@pytest.mark.django_db
def test_the_next_due_time_is_the_earliest():
    assert maintenance.next_due_at() is None
    insert("later", due_in=60)
    insert("sooner", due_in=30)
    assert maintenance.next_due_at() == objects.get(task_id="sooner").publish_at


@pytest.mark.django_db(transaction=True)
def test_rows_that_another_relay_holds_are_left_to_it(published):
    insert("held")
    insert("free", due_in=-0.5)
    held, done = threading.Event(), threading.Event()

    def other_relay():
        with transaction.atomic():
            list(objects.filter(task_id="held").select_for_update())
            held.set()
            done.wait(10)
        connection.close()

    thread = threading.Thread(target=other_relay)
    thread.start()
    held.wait(10)
    try:
        assert maintenance.publish_due() == 1
        assert published == ["free"]
    finally:
        done.set()
        thread.join()
