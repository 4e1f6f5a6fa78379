"""The Redis transport by itself; tests/acceptance/test_hostile_messages.py has a worker take what is no message."""

import json
import os
import random
import time

import kombu
import pytest
from celery import Celery, signals
from django.conf import settings
from django.db import DatabaseError
from kombu import Consumer, Queue, pools
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tasks_app import transport
from tasks_app.outbox import RecordingCelery
from tasks_app.transport import QUARANTINE, Connection

URL = settings.CELERY_BROKER_URL.rpartition("/")[0] + "/8"  # a database of these tests' own
QUEUE = "transport"


@pytest.fixture
def redis():
    with Redis.from_url(URL) as redis:
        redis.flushdb()
        yield redis
        redis.flushdb()


@pytest.fixture
def connection(redis):
    with Connection(URL, transport_options={"visibility_timeout": 60}) as connection:
        yield connection


def publish(connection: Connection, body, **options) -> None:
    with connection.Producer() as producer:
        producer.publish(body, routing_key=QUEUE, serializer="json", **options)


def taken(connection: Connection, on_message=None) -> list:
    """The bodies of what a consumer takes until there is no more."""
    bodies: list = []

    def take(body, message):
        bodies.append(body)
        if on_message:
            on_message(body)
        message.ack()

    with Consumer(connection, [Queue(QUEUE)], callbacks=[take], accept=["json"], auto_declare=False):
        try:
            while True:
                connection.drain_events(timeout=0.3)
        except TimeoutError:
            return bodies


def leave_unacknowledged(redis: Redis, tag: str, value: str) -> None:
    """As a worker that died two minutes ago, longer than the visibility timeout, would have."""
    redis.hset("unacked", tag, value)
    redis.zadd("unacked_index", {tag: time.time() - 120})


def raw(redis: Redis, connection: Connection, body) -> dict:
    publish(connection, body)
    return json.loads(redis.rpop(QUEUE))


def restore(connection: Connection) -> None:
    connection.default_channel.qos.restore_visible()


def test_a_bad_item_goes_to_the_quarantine_as_it_was_and_the_next_is_taken(redis, connection, caplog):
    publish(connection, "first")
    redis.lpush(QUEUE, b"\xffnot JSON")
    publish(connection, "last")
    assert taken(connection) == ["first", "last"]
    assert redis.lrange(QUARANTINE, 0, -1) == [b"\xffnot JSON"]
    [record] = [record for record in caplog.records if record.name == transport.__name__]
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith(f"An item of {QUEUE} could not be taken: JSONDecodeError(")
    assert record.getMessage().endswith(f"It is now in the broker's list {QUARANTINE}.")


def test_the_quarantine_keeps_the_newest(redis, connection, monkeypatch):
    monkeypatch.setattr(transport, "KEPT", 3)
    redis.lpush(QUEUE, *"abcde")
    taken(connection)
    assert redis.lrange(QUARANTINE, 0, -1) == [b"e", b"d", b"c"]


@pytest.fixture
def refused(monkeypatch):
    """What the keeper of the records is told: ids, gens and reasons."""
    told: list[tuple[str, int, str]] = []
    monkeypatch.setattr(transport, "on_refused", lambda *said: told.append(said))
    return told


def test_the_record_of_a_task_is_told_why_its_message_was_not_taken(redis, connection, refused):
    redis.lpush(QUEUE, json.dumps({"headers": {"id": "t", "gen": 3}}), json.dumps({"headers": {"id": "foreign"}}))
    publish(connection, [[], {}, {}], headers={"id": "kept", "task": "x", "retries": "many"})
    publish(connection, [[], {}, {}], headers={"id": "rejected", "gen": 2, "task": "x", "compression": "nothing"})
    redis.lpush(
        QUEUE, "no JSON", "[]", json.dumps({"headers": {"id": 7, "gen": 1}}), json.dumps({"headers": {"gen": 1}})
    )
    assert taken(connection) == []
    assert [said[:2] for said in refused] == [("t", 3), ("foreign", 1), ("kept", 1), ("rejected", 2)]
    assert refused[0][2] == "properties is None"
    assert refused[2][2] == "header retries is 'many'"
    assert refused[3][2].startswith("KeyError: ")


def test_so_is_that_of_one_that_cannot_be_put_back(redis, connection, refused):
    good = raw(redis, connection, "good")
    leave_unacknowledged(redis, "t", json.dumps([good | {"headers": {"id": "t", "gen": 2}}, "no such exchange", QUEUE]))
    restore(connection)
    assert [said[:2] for said in refused] == [("t", 2)]


def test_a_record_that_cannot_be_told_keeps_no_message_back(redis, connection, monkeypatch, caplog):
    def fail(*said):
        raise DatabaseError("away")

    monkeypatch.setattr(transport, "on_refused", fail)
    redis.lpush(QUEUE, json.dumps({"headers": {"id": "t"}}))
    publish(connection, "next")
    assert taken(connection) == ["next"]
    assert "Not recorded that the message of task t could not be taken" in caplog.text


def test_what_celery_drops_by_itself_is_kept_all_the_same(redis, connection, refused):
    publish(connection, "next", headers={"id": "t", "task": "x"})

    def drop(body, message):
        signals.task_rejected.send(sender=None, message=message, exc=ValueError("invalid ETA"))
        message.reject()

    with Consumer(connection, [Queue(QUEUE)], on_message=lambda message: drop(None, message), auto_declare=False):
        connection.drain_events(timeout=3)
    assert refused == [("t", 1, "ValueError: invalid ETA")]
    assert redis.llen(QUARANTINE) == 1


def test_a_body_is_not_unpacked_beyond_its_bound_nor_kept_otherwise_than_it_came(redis, connection, settings):
    settings.TASK_ARGS_MAX_BYTES = settings.TASK_RESULT_MAX_BYTES = 1000
    for length in (7000, 9000):
        publish(connection, "x" * length, compression="zlib")
    [item] = redis.lrange(QUEUE, 0, 0)
    assert taken(connection) == ["x" * 7000]
    assert redis.lrange(QUARANTINE, 0, -1) == [item]


def test_what_raises_while_it_is_taken_is_neither_put_back_nor_lost(redis, connection):
    publish(connection, "bad", headers={"n": 1})
    publish(connection, "good")

    def fail(body):
        if body == "bad":
            raise KeyError("id")

    assert taken(connection, fail) == ["bad", "good"]
    assert json.loads(redis.lindex(QUARANTINE, 0))["headers"] == {"n": 1}
    assert redis.keys("unacked*") == []
    assert redis.llen(QUEUE) == 0


def test_a_broker_that_goes_away_meanwhile_is_no_fault_of_the_message(redis, connection):
    publish(connection, "good")

    def lose(_):
        raise RedisConnectionError("gone")

    with pytest.raises(RedisConnectionError):
        taken(connection, lose)
    assert not redis.exists(QUARANTINE)


def test_what_is_bad_among_the_unacknowledged_keeps_nothing_else_from_being_put_back(redis, connection):
    good = raw(redis, connection, "good")
    bad = {
        "not JSON": "not JSON",
        "not three": "[]",
        "null": json.dumps([None, "", QUEUE]),
        "number": json.dumps([7, "", QUEUE]),
        "no properties": json.dumps([{"headers": {}}, "", QUEUE]),
        "deep": "[" * 100_000,
        "of no queue": json.dumps([good, "no such exchange", QUEUE]),
    }
    for tag, value in bad.items():
        leave_unacknowledged(redis, tag, value)
    leave_unacknowledged(redis, "good", json.dumps([good, "", QUEUE]))
    leave_unacknowledged(redis, "without headers", json.dumps([good | {"headers": None}, "", QUEUE]))
    restore(connection)
    assert taken(connection) == ["good", "good"]
    assert sorted(redis.lrange(QUARANTINE, 0, -1)) == sorted(value.encode() for value in bad.values())
    assert redis.keys("unacked*") == []


def test_a_message_without_headers_survives_the_end_of_its_consumer(redis):
    with Connection(URL) as connection:
        redis.lpush(QUEUE, json.dumps(raw(redis, connection, "kept") | {"headers": None}))
        assert Queue(QUEUE, channel=connection.default_channel).get().payload == "kept"
    assert redis.llen(QUEUE) == 1
    assert not redis.exists(QUARANTINE)


def test_a_prefix_of_all_keys_is_kept_to(redis):
    redis.lpush(f"console:{QUEUE}", "x", "y")
    with Connection(URL, transport_options={"global_keyprefix": "console:"}) as connection:
        assert taken(connection) == []
    assert redis.lrange(f"console:{QUARANTINE}", 0, -1) == [b"y", b"x"]


def test_no_two_messages_have_the_same_tag_whatever_tasks_and_forks_do_to_chance(connection):
    """A broker keeps what is unacknowledged by its tag: of two with the same one, one would be lost."""
    channel = connection.default_channel

    def tag() -> str:
        random.seed(42)  # as tasks do that are to be repeatable
        return channel._next_delivery_tag()

    reader, writer = os.pipe()
    if not (pid := os.fork()):
        try:
            os.write(writer, tag().encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    tags = [tag(), tag(), os.read(reader, 100).decode()]
    assert len(set(tags)) == 3, tags


def test_other_apps_and_other_users_of_kombu_keep_its_transport(redis):
    other = Celery(broker=URL, set_as_current=False, fixups=[])
    for theirs in (kombu.Connection(URL), other.connection_for_write()):
        assert theirs.get_transport_cls() is kombu.transport.redis.Transport
        assert pools.connections[theirs] is not pools.connections[Connection(URL)]
    assert pools.connections[Connection(URL)] is pools.connections[Connection(URL)]


def test_every_connection_of_an_app_of_the_console_has_its_own_also_after_a_failover(redis):
    app = RecordingCelery(broker=f"{URL};{URL}", set_as_current=False, fixups=[])
    with app.connection_for_write() as own, app.pool.acquire() as pooled, app.publisher.producers.acquire() as producer:
        for connection in (own, own.clone(), pooled, producer.connection):
            assert type(connection.transport) is transport.Transport
            connection.maybe_switch_next()
            assert type(connection.transport) is transport.Transport


def test_a_channel_keeps_its_client(connection):
    channel = connection.default_channel
    assert channel._create_client() is channel._create_client()
