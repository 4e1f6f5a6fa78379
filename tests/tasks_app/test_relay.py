"""The relay: whatever is due and unpublished goes out, shared among any number of relays."""

import threading
from datetime import timedelta

import pytest
from celery import current_app as app
from django.db import IntegrityError, connection, transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from tasks_app import broker, states
from tasks_app.broker import Held
from tasks_app.models import Duty, Limit, TaskRecord
from tasks_app.relay import due, refused, rescue
from tasks_app.relay.census import MOST_MISSED, Census, republish_after_restart
from tasks_app.relay.loop import Relay
from tasks_app.retries import wait_again
from tests.sample.tasks import echo

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
    assert due.publish_due() == 2
    assert due.publish_due() == 0
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
        due.publish_due()
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
    due.publish_due()
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
    due.publish_due()
    assert out == ["a", "b"]
    bad = objects.get(task_id="bad")
    assert (bad.state, bad.exc_type) == (states.FAILURE, "TypeError")
    assert due.publish_due() == 0


@pytest.mark.django_db
def test_the_next_due_time_is_the_earliest():
    assert due.next_due_at() is None
    insert("later", due_in=60)
    insert("sooner", due_in=30)
    assert due.next_due_at() == objects.get(task_id="sooner").publish_at


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("turn", [due.expire_waiting, rescue.rescue_lost], ids=lambda turn: turn.__name__)
def test_a_row_that_somebody_holds_keeps_nobody_waiting(turn, published):
    for task_id in ("held", "free"):
        insert(task_id, due_in=60)
        objects.claim(task_id, 1, "worker@gone", 42)
    past = timezone.now() - timedelta(seconds=1)
    if turn is due.expire_waiting:
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
        assert due.publish_due() == 1
        assert published == ["free"]
    finally:
        done.set()
        thread.join()


# Rescue


@pytest.fixture
def broker_holds(monkeypatch):
    """What the broker says that it holds: a set of (task_id, gen) to be filled by the test."""
    messages: set[tuple[str, int]] = set()
    monkeypatch.setattr(broker, "held", lambda queues: Held(messages, {}))
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
    census = Census()
    assert census.look() == 0, "it may just be on its way to a worker"
    assert census.look() == 1
    assert dict(objects.values_list("task_id", "gen")) == {"lost": 2, "queued": 1, "fresh": 1}


@pytest.mark.django_db
def test_a_message_that_turns_up_again_is_not_missed(broker_holds):
    publish("t")
    census = Census()
    census.look()
    broker_holds.add(("t", 1))
    census.look()
    broker_holds.clear()
    assert census.look() == 0


@pytest.mark.django_db
def test_what_waits_for_long_does_not_hide_what_is_lost(broker_holds, monkeypatch):
    monkeypatch.setattr("tasks_app.relay.census.CENSUS_ROWS", 3)
    publish(*[f"waits {number}" for number in range(7)])
    broker_holds.update((f"waits {number}", 1) for number in range(7))
    publish("lost", ago=70)
    census = Census()
    assert [census.look() for _ in range(4)] == [0, 0, 0, 1]


@pytest.mark.django_db
def test_a_message_of_an_exchange_of_its_own_is_not_looked_for(broker_holds):
    publish("t")
    objects.update(options={"exchange": "mine"})
    census = Census()
    assert (census.look(), census.look()) == (0, 0)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "options",
    [{"chain": [{"task": "sample.echo", "args": ["exchange rates"]}]}, {"shadow": "exchange"}, "exchange", []],
)
def test_one_that_only_speaks_of_an_exchange_is_looked_for(broker_holds, options):
    publish("t")
    objects.update(options=options)
    census = Census()
    assert (census.look(), census.look()) == (0, 1)


@pytest.mark.django_db
def test_what_is_lost_again_and_again_has_failed_in_the_end(broker_holds, published):
    publish("t")
    publish("held", ago=120)
    broker_holds.update(("held", gen) for gen in range(100))
    census = Census()
    for number in range(1, MOST_MISSED):
        assert (census.look(), census.look()) == (0, 1)
        assert due.publish_due() == 1
        objects.filter(task_id="t").update(published_at=timezone.now() - timedelta(seconds=120))
        assert objects.get(task_id="t").missed == number
    assert (census.look(), census.look()) == (0, 0)
    ended = objects.get(task_id="t")
    assert (ended.state, ended.exc_type, ended.publish_at) == ("FAILURE", "MessageRefused", None)
    assert "lost 10 times before a worker could start it" in ended.exc_message
    assert len(published) == MOST_MISSED - 1
    assert objects.get(task_id="held").state == "PENDING"


@pytest.mark.django_db
def test_a_broker_that_restarts_empty_and_a_run_in_between_do_not_count(broker_holds):
    publish("t")
    objects.update(missed=9, refused=2)
    objects.mark_all_forgotten()
    assert objects.get().missed == 9
    objects.mark_published([("t", 2)])
    objects.claim("t", 2, "worker@here", 42)
    wait_again(objects.run_of("t", 2))
    assert (objects.get().missed, objects.get().refused) == (0, 0)


# What no worker takes


@pytest.mark.django_db
def test_a_message_that_a_worker_refused_is_published_again_a_few_times_and_then_its_task_has_failed(published):
    publish("t")
    for number, gen in ((1, 1), (2, 2)):
        refused.note_refused("t", gen, "content type x is not accepted")
        waits = objects.get()
        assert (waits.state, waits.refused, waits.gen) == ("PENDING", number, gen + 1)
        assert timedelta(0) < waits.publish_at - timezone.now() <= timedelta(seconds=number)
        assert waits.exc_message == "content type x is not accepted", "the doctor says it"
        refused.note_refused("t", gen, "once more, since the message came twice")
        assert objects.get().refused == number
    refused.note_refused("t", 3, "content type x is not accepted")
    ended = objects.get()
    assert (ended.state, ended.exc_type, ended.publish_at) == ("FAILURE", "MessageRefused", None)
    assert "No worker could take its message, 3 times: content type x is not accepted." in ended.exc_message
    with pytest.raises(Exception, match="3 times: content type x"):
        app.AsyncResult("t").get(timeout=1)


@pytest.mark.django_db
def test_a_reason_that_postgres_cannot_hold_is_told_all_the_same(published):
    publish("t")
    refused.note_refused("t", 1, "content type \x00\ud800 " + "x" * 5000)
    assert objects.get().exc_message.startswith("content type \\x00\\ud800 xxx")
    assert len(objects.get().exc_message) == 1000


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_has_lost_the_database_meanwhile_connects_again(published):
    publish("t")
    connection.close()
    connection.connect()
    connection.connection.close()
    refused.note_refused("t", 1, "bad")
    assert objects.get().refused == 1


@pytest.mark.django_db
def test_a_message_that_was_refused_says_nothing_of_a_task_that_runs_has_ended_or_is_not_there(published):
    publish("runs", "ended")
    objects.update(refused=2)
    objects.claim("runs", 1, "worker@here", 42)
    objects.filter(task_id="ended").mark_revoked("not needed")
    before = list(objects.order_by("pk").values())
    for task_id in ("runs", "ended", "nobody's"):
        refused.note_refused(task_id, 1, "bad")
    assert list(objects.order_by("pk").values()) == before


@pytest.mark.django_db
def test_what_waits_for_a_task_whose_message_is_refused_ends_with_it(published, commits):
    with commits():
        last = (echo.s(1).set(link_error=echo.si("told")) | echo.s()).apply_async()
    first = objects.get()
    objects.update(refused=2)
    with commits():
        refused.note_refused(first.task_id, 1, "bad")
    assert objects.get(pk=first.pk).state == "FAILURE"
    assert app.AsyncResult(last.id).state == "FAILURE"
    assert objects.filter(args=["told"], state="PENDING").exists(), "its errback"


#: Rows written by SQL, of which no message can be made that a worker takes: column, value, and what the reason names.
NONSENSE = [
    ("args", '{"a": 1}', "args must be a JSON list"),
    ("args", "no JSON", "args must be a JSON list"),
    ("args", "null", "args must be a JSON list"),
    ("args", "[" * 900 + "]" * 900, "args: nested more than"),
    ("args", "[" * 100_000, "args must be a JSON list"),
    ("args", '[{"__type__": "datetime", "__value__": "bad"}]', "args: an object with the keys __type__"),
    ("kwargs", "[]", "kwargs must be a JSON object"),
    ("kwargs", '{"__type__": "date", "__value__": "2030-01-01"}', "kwargs: an object with the keys"),
    ("options", "[]", "options must be a JSON object"),
    ("options", "7", "options must be a JSON object"),
    ("options", "junk", "options must be a JSON object"),
    ("options", "null", "options must be a JSON object"),
    ("options", '{"headers": {"id": "x"}}', "headers: id is set by Celery"),
    ("options", '{"headers": {"gen": 7}}', "headers: gen is set by Celery"),
    ("options", '{"headers": {"expires": "junk"}}', "headers: expires is set by Celery"),
    ("options", '{"headers": "junk"}', "headers must be an object"),
    ("options", '{"headers": {"compression": "application/x-gzip"}}', "headers: compression is set by"),
    ("options", '{"serializer": "pickle"}', "serializer: workers do not accept"),
    ("options", '{"time_limit": "5"}', "time_limit must be a number"),
    ("options", '{"task_id": "x"}', "task_id cannot be among them"),
    ("options", '{"link": 5, "chord": "x", "chain": 7, "link_error": "y"}', "must be"),
    ("name", "", "name must be a text"),
]


@pytest.mark.django_db
@pytest.mark.parametrize("value", ["infinity", "-infinity", "10000-01-01", "0001-01-01 BC"])
@pytest.mark.parametrize("column", ["publish_at", "eta", "expires", "created_at", "published_at", "lease_until"])
def test_a_time_that_could_not_be_read_keeps_no_relay_from_the_others(published, column, value):
    insert("bad")
    insert("good")
    update = f"UPDATE tasks_app_taskrecord SET {column} = %s WHERE task_id = 'bad'"
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(update, [value])
    assert due.publish_due() == 2


@pytest.mark.django_db
def test_a_row_that_makes_no_message_fails_by_itself_with_the_reason(published, commits):
    for number, (column, value, _) in enumerate(NONSENSE):
        insert(f"bad {number}")
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE tasks_app_taskrecord SET {column} = %s WHERE task_id = %s", [value, f"bad {number}"]
            )
        insert(f"good {number}")
    due.publish_due()
    assert sorted(published) == sorted(f"good {number}" for number in range(len(NONSENSE)))
    for number, (_, _, says) in enumerate(NONSENSE):
        bad = objects.get(task_id=f"bad {number}")
        assert (bad.state, bad.exc_type) == ("FAILURE", "InvalidSubmission")
        assert says in bad.exc_message
    assert due.publish_due() == 0


@pytest.mark.django_db
def test_a_broker_without_its_epoch_is_given_all_again(monkeypatch):
    publish("a", "b", ago=1)
    insert("unpublished", due_in=60)
    objects.renew([("b", 1)])
    epochs = []
    monkeypatch.setattr(broker, "has_epoch", lambda: bool(epochs))
    monkeypatch.setattr(broker, "set_epoch", lambda: epochs.append(1))
    assert republish_after_restart() == 2
    assert dict(objects.values_list("task_id", "gen")) == {"a": 2, "b": 2, "unpublished": 1}
    assert republish_after_restart() == 0


@pytest.mark.django_db
def test_one_process_keeps_a_duty_until_it_is_silent(monkeypatch):
    pid = [1]
    monkeypatch.setattr(rescue.os, "getpid", lambda: pid[0])
    assert rescue.take_duty("census", 10)
    assert rescue.take_duty("census", 10)
    pid[0] = 2
    assert not rescue.take_duty("census", 10)
    Duty.objects.update(done_at=timezone.now() - timedelta(seconds=31))
    assert rescue.take_duty("census", 10)
    pid[0] = 1
    assert not rescue.take_duty("census", 10)


@pytest.mark.django_db
def test_limits_of_no_use_are_deleted_some_in_each_turn_of_one_process_and_looked_for_each_hour(monkeypatch):
    monkeypatch.setattr(rescue, "PRUNED_AT_ONCE", 2)
    long_ago, rescuer = timezone.now() - timedelta(days=2), rescue.Rescuer()

    def left_after(now: float) -> int:
        rescuer.prune_limits(now)
        return Limit.objects.count()

    Limit.objects.bulk_create([Limit(key=f"customer {number}", next_at=long_ago) for number in range(5)])
    Limit.objects.create(key="of today")
    assert [left_after(now) for now in (10, 11, 12)] == [4, 2, 1]
    Limit.objects.create(key="customer 6", next_at=long_ago)
    assert [left_after(now) for now in (13, 3611, 3612)] == [2, 2, 1]
    Limit.objects.create(key="customer 7", next_at=long_ago)
    monkeypatch.setattr(rescue.os, "getpid", lambda: 1)
    assert left_after(7212) == 2, "another process does"


@pytest.mark.django_db
def test_a_turn_of_the_relay_deletes_limits_of_no_use():
    Limit.objects.create(key="customer 1", next_at=timezone.now() - timedelta(days=2))
    Relay()._turn()
    assert not Limit.objects.exists()


@pytest.fixture
def rescues(monkeypatch):
    """The seconds at which a rescuer looked for lost runs."""
    done: list[float] = []

    def work(rescuer, *seconds):
        for now in seconds:
            monkeypatch.setattr(rescue, "rescue_lost", lambda at=now: done.append(at))
            rescuer.end_lost_runs(now)
        return done

    return work


def test_a_rescuer_that_was_blind_waits_for_a_whole_lease(rescues):
    rescuer = rescue.Rescuer()
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
    assert rescue.rescue_lost() == 3
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
