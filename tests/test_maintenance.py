"""The relay: whatever is due and unpublished goes out, shared among any number of relays."""

import threading
from datetime import timedelta

import pytest
from celery import current_app as app
from django.db import connection, transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from tasks_app import maintenance, states
from tasks_app.broker import Held
from tasks_app.models import Duty, TaskRecord

objects = TaskRecord.objects


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
    monkeypatch.setattr(app.publisher, "ask", lambda: away([]))
    before = objects.values().get()
    with pytest.raises(OperationalError):
        maintenance.publish_due()
    assert objects.values().get() == before


@pytest.mark.django_db
def test_a_message_that_a_broker_fails_which_answers_waits_by_itself(monkeypatch):
    """kombu takes a KeyError of its own for a lost connection."""
    out = []

    def publish(records):
        if any(record.task_id == "bad" for record in records):
            raise OperationalError("'bogus'")
        out.extend(record.task_id for record in records)

    monkeypatch.setattr(app, "publish", publish)
    monkeypatch.setattr(app.publisher, "ask", lambda: None)
    for task_id in ("a", "bad", "b"):
        insert(task_id)
    maintenance.publish_due()
    assert out == ["a", "b"]
    bad = objects.get(task_id="bad")
    assert (bad.state, "bogus" in bad.exc_message) == ("PENDING", True)
    assert bad.publish_at > timezone.now()


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
@pytest.mark.parametrize("turn", [maintenance.expire_waiting, maintenance.rescue_lost], ids=lambda turn: turn.__name__)
def test_a_row_that_somebody_holds_keeps_nobody_waiting(turn, published):
    for task_id in ("held", "free"):
        insert(task_id, due_in=60)
        objects.claim(task_id, 1, "worker@gone", 42)
    past = timezone.now() - timedelta(seconds=1)
    if turn is maintenance.expire_waiting:
        objects.update(state="PENDING", expires=past)
    objects.update(lease_until=past)
    held, done = threading.Event(), threading.Event()

    def hold():
        with transaction.atomic():
            list(objects.filter(task_id="held").select_for_update())
            held.set()
            done.wait(10)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    try:
        turn()
        assert objects.renew([("held", 1)]) == {}, "nor does a renewal wait for it"
        ended = objects.filter(finished_at__isnull=False)
        assert list(ended.values_list("task_id", flat=True)) == ["free"]
    finally:
        done.set()
        thread.join()


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


# Rescue


@pytest.fixture
def broker_holds(monkeypatch):
    """What the broker says that it holds: a set of (task_id, gen) to be filled by the test."""
    messages: set[tuple[str, int]] = set()
    monkeypatch.setattr(maintenance.broker, "held", lambda queues: Held(messages, {}))
    return messages


def publish(*task_ids, ago: float = 120) -> None:
    for task_id in task_ids:
        insert(task_id)
    objects.mark_published([(task_id, 1) for task_id in task_ids])
    objects.filter(task_id__in=task_ids).update(published_at=timezone.now() - timedelta(seconds=ago))


@pytest.mark.django_db
def test_a_message_is_published_again_when_it_was_missed_twice(broker_holds):
    publish("lost", "queued")
    publish("fresh", ago=1)
    broker_holds.add(("queued", 1))
    census = maintenance.Census()
    assert census.look() == 0, "it may just be on its way to a worker"
    assert census.look() == 1
    assert dict(objects.values_list("task_id", "gen")) == {"lost": 2, "queued": 1, "fresh": 1}


@pytest.mark.django_db
def test_a_message_that_turns_up_again_is_not_missed(broker_holds):
    publish("t")
    census = maintenance.Census()
    census.look()
    broker_holds.add(("t", 1))
    census.look()
    broker_holds.clear()
    assert census.look() == 0


@pytest.mark.django_db
def test_what_waits_for_long_does_not_hide_what_is_lost(broker_holds, monkeypatch):
    monkeypatch.setattr(maintenance, "CENSUS_ROWS", 3)
    publish(*[f"waits {number}" for number in range(7)])
    broker_holds.update((f"waits {number}", 1) for number in range(7))
    publish("lost", ago=70)
    census = maintenance.Census()
    assert [census.look() for _ in range(4)] == [0, 0, 0, 1]


@pytest.mark.django_db
def test_a_message_of_an_exchange_of_its_own_is_not_looked_for(broker_holds):
    publish("t")
    objects.update(options={"exchange": "mine"})
    census = maintenance.Census()
    assert (census.look(), census.look()) == (0, 0)


@pytest.mark.django_db
def test_a_broker_without_its_epoch_is_given_all_again(monkeypatch):
    publish("a", "b", ago=1)
    insert("unpublished", due_in=60)
    objects.renew([("b", 1)])
    epochs = []
    monkeypatch.setattr(maintenance.broker, "has_epoch", lambda: bool(epochs))
    monkeypatch.setattr(maintenance.broker, "set_epoch", lambda: epochs.append(1))
    assert maintenance.republish_after_restart() == 2
    assert dict(objects.values_list("task_id", "gen")) == {"a": 2, "b": 2, "unpublished": 1}
    assert maintenance.republish_after_restart() == 0


@pytest.mark.django_db
def test_one_process_keeps_a_duty_until_it_is_silent(monkeypatch):
    pid = [1]
    monkeypatch.setattr(maintenance.os, "getpid", lambda: pid[0])
    assert maintenance.take_duty("census", 10)
    assert maintenance.take_duty("census", 10)
    pid[0] = 2
    assert not maintenance.take_duty("census", 10)
    Duty.objects.update(done_at=timezone.now() - timedelta(seconds=31))
    assert maintenance.take_duty("census", 10)
    pid[0] = 1
    assert not maintenance.take_duty("census", 10)


@pytest.fixture
def rescues(monkeypatch):
    """The seconds at which a rescuer looked for lost runs."""
    done: list[float] = []

    def work(rescuer, *seconds):
        for now in seconds:
            monkeypatch.setattr(maintenance, "rescue_lost", lambda at=now: done.append(at))
            rescuer.end_lost_runs(now)
        return done

    return work


def test_a_rescuer_that_was_blind_waits_for_a_whole_lease(rescues):
    rescuer = maintenance.Rescuer()
    assert rescues(rescuer, 100, 110, 120, 129) == [], "it has only just begun to look"
    assert rescues(rescuer, 131, 135, 137) == [135], "each sixth of a lease"
    assert rescues(rescuer, 197, 210, 220) == [135], "for a minute there was no database: nobody could renew"
    assert rescues(rescuer, 228) == [135, 228]


@pytest.mark.django_db
def test_each_lost_run_ends_as_its_task_says(published):
    for task_id, max_lost in (("again", 3), ("once", 1), ("stopped", 3), ("alive", 3)):
        insert(task_id)
        objects.claim(task_id, 1, "worker@gone", 42, max_lost)
    objects.exclude(task_id="alive").update(lease_until=timezone.now() - timedelta(seconds=1))
    objects.filter(task_id="stopped").stop("not needed")
    assert maintenance.rescue_lost() == 3
    assert dict(objects.values_list("task_id", "state")) == {
        "again": "RETRY",
        "once": "FAILURE",
        "stopped": "REVOKED",
        "alive": "STARTED",
    }
    once = objects.get(task_id="once")
    assert (once.exc_type, once.lost_count) == ("WorkerLostError", 1)
    assert "worker@gone" in once.exc_message
    assert app.AsyncResult("once").state == "FAILURE"
