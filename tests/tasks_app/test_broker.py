import json
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from celery import Celery, current_app
from django.conf import settings
from django.utils import timezone
from kombu import Queue
from kombu.exceptions import OperationalError
from redis import Redis

from tasks_app import broker
from tasks_app.models import TaskRecord

pytestmark = pytest.mark.django_db


@pytest.fixture
def queue():
    """A queue of the test's own."""
    name = f"held-{uuid4()}"
    yield name
    with current_app.connection_for_write() as connection:
        connection.default_channel.queue_purge(name)


@pytest.fixture
def elsewhere(monkeypatch):
    """Have another Celery app's broker asked: a database of its own in the same server, or as told."""

    def use(url: str = "", **transport_options) -> Celery:
        app = Celery(set_as_current=False)
        app.conf.broker_write_url = (
            url or settings.CELERY_BROKER_URL.rpartition("/")[0] + "/9"
        )  # that of the environment goes before `broker_url`
        app.conf.broker_transport_options = settings.CELERY_BROKER_TRANSPORT_OPTIONS | transport_options
        monkeypatch.setattr(broker, "current_app", app)
        return app

    yield use
    with redis_of("/9") as redis:
        redis.flushdb()


def redis_of(database: str = "") -> Redis:
    url = settings.CELERY_BROKER_URL
    return Redis.from_url(url.rpartition("/")[0] + database if database else url)


def publish(queue: str, task_id: str, gen: int | None = 1, priority: int = 5, app=current_app) -> None:
    headers = {"task": "sample.noop", "id": task_id} | ({} if gen is None else {"gen": gen})
    with app.producer_or_acquire() as producer:
        producer.publish([[], {}, {}], routing_key=queue, priority=priority, headers=headers, retry=False)


def published(queue: str, task_id: str, at=None, gen: int = 1, priority: int = 5) -> TaskRecord:
    at = at or timezone.now()
    return TaskRecord.objects.create(
        task_id=task_id, name="sample.noop", args=[], kwargs={}, options={}, queue=queue, priority=priority, gen=gen,
        root_id=task_id, published_at=at,
    )  # fmt: skip


def test_messages_of_every_priority_are_held(queue):
    for priority in range(10):
        publish(queue, f"task {priority}", gen=priority + 1, priority=priority)
    held = broker.held([queue])
    assert held.messages >= {(f"task {priority}", priority + 1) for priority in range(10)}
    assert not held.read_until


def test_a_message_without_a_gen_is_the_first(queue):
    publish(queue, "foreign", gen=None)
    assert ("foreign", 1) in broker.held([queue]).messages


def test_only_the_queues_asked_for_are_read(queue):
    publish(queue, "here")
    assert ("here", 1) not in broker.held([f"{queue}-other"]).messages


def test_what_a_worker_took_is_for_it_to_tell(queue):
    publish(queue, "taken", gen=3)
    with current_app.connection_for_write() as connection:
        message = Queue(queue, channel=connection.default_channel).get()
        assert ("taken", 3) not in broker.held([queue]).messages
        message.ack()


def test_garbage_is_passed_over(queue):
    garbage = [
        "not JSON", "", b"\xff\x00", "[]", "7", "null", "{}", '{"headers": null}', '{"headers": [1]}', "[" * 100_000,
        '{"headers": {"gen": 1}}', '{"headers": {"id": 7}}', '{"headers": {"id": "x", "gen": "y"}}', "1" * 5000,
        '{"headers": {"id": "\\u0000"}}', '{"headers": {"id": "\\ud800"}}', '{"headers": {"id": []}}',
    ]  # fmt: skip
    publish(queue, "first")
    with redis_of() as redis:
        before = broker.held([queue]).messages
        redis.lpush(f"{queue}\x06\x165", *garbage)
        held = broker.held([queue])
    assert held.messages == before
    assert ("first", 1) in held.messages


@pytest.mark.parametrize("limit", [1, 3, 4, 7, 8, 100])
def test_of_a_long_list_the_oldest_are_read_whatever_the_page(queue, monkeypatch, limit):
    monkeypatch.setattr(broker, "PAGE", 3)
    for number in range(8):
        publish(queue, f"{queue} {number}")
    held = broker.held([queue], limit)
    ours = {task_id for task_id, _ in held.messages if task_id.startswith(queue)}
    assert ours == {f"{queue} {number}" for number in range(min(limit, 8))}
    assert set(held.read_until) == ({(queue, 5)} if limit < 8 else set())


def test_beyond_what_was_read_of_a_list_only_what_was_published_sooner_is_missed(queue):
    now = timezone.now()
    for number in range(4):
        publish(queue, f"{queue} {number}")
        published(queue, f"{queue} {number}", now + timedelta(minutes=number))
    held = broker.held([queue], limit=2)
    assert held.read_until == {(queue, 5): now + timedelta(minutes=1) - broker.MARK_DELAY}
    unread = TaskRecord.objects.get(task_id=f"{queue} 3")
    assert held.may_hold(unread)
    assert not held.may_hold(published(queue, "lost before", now - timedelta(minutes=1)))
    assert not held.may_hold(published(queue, "lost from a list read whole", now + timedelta(hours=1), priority=0))
    assert held.may_hold(published(queue, "lost later, not to be judged yet", now + timedelta(minutes=5)))


def test_a_message_out_of_force_dates_nothing(queue):
    publish(queue, "again", gen=1)
    publish(queue, "unread")
    published(queue, "again", gen=2)
    lost = published(queue, "lost", timezone.now() - timedelta(days=1))
    assert broker.held([queue], limit=1).may_hold(lost)


def test_a_message_of_another_gen_is_not_the_records(queue):
    publish(queue, "again", gen=1)
    held = broker.held([queue])
    assert not held.may_hold(published(queue, "again", gen=2))


def test_a_prefix_of_all_keys_is_kept_to(elsewhere):
    app = elsewhere(global_keyprefix="console:")
    publish("prefixed", "task", app=app)
    assert broker.held(["prefixed"]).messages == {("task", 1)}
    broker.set_epoch()
    assert broker.has_epoch()
    with redis_of("/9") as redis:
        assert redis.exists(f"console:{broker.EPOCH}")


def test_the_epoch_is_gone_with_everything_else(elsewhere):
    elsewhere()
    assert not broker.has_epoch()
    broker.set_epoch()
    assert broker.has_epoch()
    with redis_of("/9") as redis:
        first = redis.get(broker.EPOCH)
        broker.set_epoch()
        assert redis.get(broker.EPOCH) == first
        assert redis.ttl(broker.EPOCH) == -1
        redis.flushdb()
    assert not broker.has_epoch()


def test_a_broker_of_the_redis_protocol_is_readable(elsewhere):
    assert broker.is_readable()
    elsewhere("amqp://nowhere.invalid//")
    assert not broker.is_readable()
    elsewhere("memory://")
    assert not broker.is_readable()


@pytest.mark.parametrize("question", [broker.has_epoch, broker.set_epoch, lambda: broker.held(["queue"])])
def test_a_broker_that_is_away_is_told_as_kombu_does(elsewhere, question):
    elsewhere("redis://127.0.0.1:1/0")
    with pytest.raises(OperationalError):
        question()


def test_a_broker_that_goes_away_later_is_told_as_kombu_does(elsewhere, monkeypatch):
    elsewhere()
    broker.has_epoch()
    monkeypatch.setattr(Redis, "exists", lambda *_: (_ for _ in ()).throw(ConnectionResetError()))
    with pytest.raises(OperationalError):
        broker.has_epoch()


def test_questions_use_the_apps_pool_and_give_back_what_they_take(queue):
    broker.held([queue])
    before = len(current_app.pool._dirty), redis_connections()
    for _ in range(30):
        broker.held([queue])
        broker.has_epoch()
    assert (len(current_app.pool._dirty), redis_connections()) == before


def redis_connections() -> int:
    with redis_of() as redis:
        return len(redis.client_list())


def test_a_message_that_must_not_run_is_kept_in_the_quarantine_and_the_log_says_why(elsewhere, caplog):
    app = elsewhere(global_keyprefix="console:")
    with Redis.from_url(app.conf.broker_write_url) as redis:
        redis.flushdb()
        try:
            broker.quarantine({"headers": {"id": "t"}, "args": [datetime(2030, 1, 1)]}, "it is not the row's")
            (kept,) = redis.lrange("console:taskconsole.quarantine", 0, -1)
            assert json.loads(kept)["headers"] == {"id": "t"}
        finally:
            redis.flushdb()
    assert "it is not the row's. It is now in the broker's list console:taskconsole.quarantine." in caplog.text


@pytest.mark.parametrize("url", ["memory://", "redis://127.0.0.1:1/0"])
def test_where_a_broker_keeps_none_or_is_away_the_log_is_all(elsewhere, caplog, url):
    elsewhere(url)
    broker.quarantine({"headers": {"id": "t"}}, "it is not the row's")
    assert "it is not the row's. It is not kept" in caplog.text


def test_what_json_cannot_carry_is_said_in_the_log_alone(caplog):
    broker.quarantine({"headers": object()}, "it is not the row's")
    assert "it is not the row's. It is not kept: " in caplog.text
