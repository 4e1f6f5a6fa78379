"""Items in a queue that are no messages, or messages that no task can be made of: the worker goes on."""

import base64
import json
import zlib
from types import SimpleNamespace
from uuid import uuid4

import pytest
from celery import current_app as app
from django.conf import settings
from django.db.models.functions import Now
from redis import Redis

from tasks_app.client import CeleryClient
from tasks_app.models import TaskRecord
from tasks_app.transport import QUARANTINE, sent_in
from tests.acceptance.processes import Manage, eventually, finished

QUEUE = "hostile"
ABSENT = object()
GZIP = {"compression": "application/x-gzip"}
client = CeleryClient()


def base64_of(body: bytes) -> str:
    return base64.b64encode(body).decode()


def message(body=((), {}, {}), *, headers=(), properties=(), parts=()) -> dict:
    """A message as Celery sends one, with changes."""
    task_id = str(uuid4())
    whole = {
        "body": body if isinstance(body, str) else base64_of(json.dumps(body).encode()),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": changed({"lang": "py", "task": "sample.noop", "id": task_id, "root_id": task_id}, headers),
        "properties": changed(
            {
                "delivery_tag": str(uuid4()),
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
                "body_encoding": "base64",
                "priority": 5,
            },
            properties,
        ),
    }
    return changed(whole, parts)


def old(**changes) -> dict:
    """A message as Celery 3 sent one, with all in its body."""
    body = {"task": "sample.noop", "id": str(uuid4()), "args": [], "kwargs": {}}
    return message(body | changes, parts={"headers": {}})


def changed(whole: dict, changes) -> dict:
    return {name: value for name, value in (whole | dict(changes)).items() if value is not ABSENT}


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


#: What cannot be a message, or a message of which no task can be made.
MALFORMED = {
    "text": "not JSON",
    "empty": "",
    "bytes": b"\xff\xfe\x00\x80",
    "NUL": "\x00",
    "list": [],
    "number": 7,
    "null": None,
    "huge number": "1" * 5000,
    "deep": "[" * 100_000,
    "unknown type": {"__type__": "nothing", "__value__": 1},
    "broken type": {"__type__": "uuid", "__value__": None},
    "no parts": {},
    "no properties": message(parts={"properties": ABSENT}),
    "properties null": message(parts={"properties": None}),
    "no delivery_tag": message(properties={"delivery_tag": ABSENT}),
    "delivery_tag an object": message(properties={"delivery_tag": {}}),
    "delivery_tag a surrogate": message(properties={"delivery_tag": "\ud800"}),
    "no delivery_info": message(properties={"delivery_info": ABSENT}),
    "delivery_info empty": message(properties={"delivery_info": {}}),
    "delivery_info a list": message(properties={"delivery_info": []}),
    "priority infinite": message(properties={"priority": float("inf")}),
    "base64 broken": message("abc"),
    "body a surrogate": message("\ud800", properties={"body_encoding": ABSENT}),
    "body null": message(parts={"body": None}),
    "body a number": message(parts={"body": 7}),
    "body an object": message(parts={"body": {"task": "sample.noop", "id": "x"}}),
    "body a text": message(base64_of(b'"text"')),
    "body of no parts": message([]),
    "body of numbers": message([1, 2, 3]),
    "args a number": message([7, {}, {}]),
    "args an object": message([{"a": 1}, {}, {}]),
    "kwargs a list": message([[], [1], {}]),
    "embed a list": message([[], {}, [1]]),
    "callbacks a number": message([[], {}, {"callbacks": 7}]),
    "body encoding unknown": message(properties={"body_encoding": "rot13"}),
    "content type a list": message(parts={"content-type": []}),
    "headers a list": message(parts={"headers": [1]}),
    "headers a text": message(parts={"headers": "task"}),
    "headers deep": message(headers={"x": nested(900)}),
    "properties deep": message(properties={"x": nested(900)}),
    "task a list": message(headers={"task": []}),
    "task null": message(headers={"task": None}),
    "no id": message(headers={"id": ABSENT}),
    "id a number": message(headers={"id": 7}),
    "id an object": message(headers={"id": {}}),
    "id empty": message(headers={"id": ""}),
    "id with NUL": message(headers={"id": "a\x00b"}),
    "id long": message(headers={"id": "x" * 1000}),
    "id a surrogate": message(headers={"id": "\ud800"}),
    "gen a text": message(headers={"gen": "x"}),
    "gen huge": message(headers={"gen": 10**30}),
    "retries a text": message(headers={"retries": "x"}),
    "time limit a text": message(headers={"timelimit": "x"}),
    "time limits of texts": message(headers={"timelimit": ["x", "y"]}),
    "time limit huge": message(headers={"timelimit": [10**400, None]}),
    "stamps a number": message(headers={"stamped_headers": 5}),
    "stamps a list": message(headers={"stamped_headers": ["x"], "stamps": [1]}),
    "expires a list": message(headers={"expires": []}),
}
#: What Celery itself would drop, so that its task would wait for ever.
DROPPED = {
    "body no JSON": message(base64_of(b"{")),
    "body no UTF-8": message(base64_of(b"\xff\xfe")),
    "body deep": message(base64_of(b"[" * 100_000)),
    "body of 900 levels": message([[nested(900)], {}, {}]),
    "body with a broken value": message([[{"__type__": "datetime", "__value__": "bad"}], {}, {}]),
    "body with a date for keywords": message([[], {"__type__": "date", "__value__": "2030-01-01"}, {}]),
    "pickle": message(base64_of(b"\x80\x04N."), parts={"content-type": "application/x-python-serialize"}),
    "yaml": message(base64_of(b"!!python/none"), parts={"content-type": "application/x-yaml"}),
    "content type a text": message(parts={"content-type": "text/plain"}),
    "content type of bytes": message(parts={"content-type": "application/data"}),
    "compression unknown": message(headers={"compression": "nothing"}),
    "compression a number": message(headers={"compression": 7}),
    "compressed by nobody": message(headers={"compression": "application/x-gzip"}),
    "compressed, cut off": message(base64_of(zlib.compress(b"[[], {}, {}]")[:-5]), headers=GZIP),
    "unpacks to much": message(base64_of(zlib.compress(b" " * 100_000_000)), headers=GZIP),
    "headers null": message(parts={"headers": None}),
    "headers empty": message(parts={"headers": {}}),
    "eta a number": message(headers={"eta": 7}),
    "eta a text": message(headers={"eta": "soon"}),
    "protocol 1, no id": old(id=None),
    "protocol 1, task a list": old(task=[]),
    # Each of these took one of the pool's two processes away for good.
    "protocol 1, time limit a text": old(timelimit="x"),
    "protocol 1, time limits of texts": old(timelimit=["x", "y"]),
    "protocol 1, stamps a number": old(stamped_headers=5),
    "protocol 1, deep": old(shadow=nested(900)),
}
#: What Celery itself fails or takes in its stride.
REFUSED = {
    "unknown task": message(headers={"task": "no.such.task"}),
    "content encoding unknown": message(parts={"content-encoding": "nothing"}),
    "compression a list": message(headers={"compression": []}),
    "too many args": message([[1, 2, 3], {}, {}]),
    "root_id a list": message(headers={"root_id": [], "parent_id": {}, "group": 7}),
    "priority a text": message(properties={"priority": "x"}),
    "priority huge": message(properties={"priority": 10**30}),
    "eta year 1": message(headers={"eta": "0001-01-01T00:00:00+14:00"}),
    "protocol 1": old(),
}


def as_item(value) -> str | bytes:
    return value if isinstance(value, str | bytes) else json.dumps(value)


@pytest.fixture
def broker():
    with Redis.from_url(settings.CELERY_BROKER_URL) as redis:
        redis.delete(QUARANTINE)
        yield redis


def hostile_worker() -> Manage:
    return Manage("celery", "worker", "-Q", QUEUE, "-n", "hostile@%h", "-c", "2", "-l", "INFO")


def works(worker: Manage) -> bool:
    """Tasks go through both processes of its pool, and it is done with what came before them."""
    for result in [client.submit("sample.echo", ["good"], queue=QUEUE, priority=9) for _ in range(10)]:
        assert client.get_result(result.id, timeout=20) == "good", worker.said()
    return worker.process.poll() is None


def test_items_that_no_task_can_be_made_of_stop_no_worker(committed, broker):
    none_takes = MALFORMED | DROPPED
    with hostile_worker() as worker:
        worker.wait_for("ready.")
        for value in [*none_takes.values(), *REFUSED.values()]:
            broker.lpush(QUEUE, as_item(value))
        assert works(worker)
        kept = broker.lrange(QUARANTINE, 0, -1)
        assert {name for name, value in none_takes.items() if not is_in(kept, value)} == set()
        assert len(kept) == len(none_takes)
        assert worker.said().count(f"It is now in the broker's list {QUARANTINE}.") == len(none_takes)
        assert worker.stop() == 0
    assert broker.hlen("unacked") == 0
    assert broker.llen(QUEUE) == 0


def waiting(task_id: str, **fields) -> TaskRecord:
    """A record that waits for its message to be taken."""
    given = {"name": "sample.echo", "args": [task_id], "queue": QUEUE, "root_id": task_id, "published_at": Now()}
    return TaskRecord.objects.create(task_id=task_id, **given | fields)


def of_record(value: dict, task_id: str) -> dict:
    return value | {"headers": value["headers"] | {"id": task_id, "gen": 1}}


def test_the_record_of_a_message_that_no_worker_takes_is_told_and_fails_after_a_few(committed, broker):
    of_tasks = {name: value for name, value in (MALFORMED | DROPPED).items() if sent_in(as_item(value))}
    assert len(of_tasks) > 40
    for name, value in of_tasks.items():
        waiting(f"spoiled once: {name}")
        waiting(f"spoiled again: {name}", refused=2)
        for task_id in (f"spoiled once: {name}", f"spoiled again: {name}"):
            broker.lpush(QUEUE, json.dumps(of_record(value, task_id)))
    with hostile_worker() as worker:
        worker.wait_for("ready.")
        for name in of_tasks:
            once = finished(SimpleNamespace(id=f"spoiled once: {name}"), timeout=40)
            assert (once.state, once.refused, once.gen) == ("SUCCESS", 1, 2), name
            again = finished(SimpleNamespace(id=f"spoiled again: {name}"), timeout=40)
            assert (again.state, again.exc_type, again.attempt) == ("FAILURE", "MessageRefused", 0), name
            assert "No worker could take its message, 3 times: " in again.exc_message
        assert worker.stop() == 0


def test_rows_of_which_no_message_can_be_made_fail_and_the_others_run(committed, broker):
    fields = {"headers": {"headers": {"id": "x"}}, "serializer": {"serializer": "pickle"}, "list": [1], "none": {}}
    for name, options in fields.items():
        waiting(f"row: {name}", options=options, published_at=None, publish_at=Now())
    with hostile_worker():
        ended = {name: finished(SimpleNamespace(id=f"row: {name}"), timeout=40) for name in fields}
    assert ended.pop("none").state == "SUCCESS"
    assert {each.state for each in ended.values()} == {"FAILURE"}
    assert "headers: id is set by Celery" in ended["headers"].exc_message
    assert "serializer: workers do not accept 'pickle'" in ended["serializer"].exc_message
    assert "options must be a JSON object" in ended["list"].exc_message


def test_a_worker_starts_where_such_items_wait(committed, broker):
    for value in [*MALFORMED.values(), *DROPPED.values(), *REFUSED.values()]:
        broker.lpush(QUEUE, as_item(value))
    with hostile_worker() as worker:
        worker.wait_for("ready.")
        assert works(worker)
        assert worker.stop() == 0


def test_a_broadcast_that_is_no_message_stops_no_worker(committed, broker):
    with hostile_worker() as worker:
        worker.wait_for("ready.")
        for value in ("not JSON", "[" * 100_000, *MALFORMED.values()):
            for channel in ("/0.celery.pidbox", "/0.celeryev/worker.heartbeat"):
                broker.publish(channel, as_item(value))
        assert works(worker)
        eventually(lambda: any("hostile@" in name for answer in app.control.ping(timeout=1) for name in answer))
        assert worker.stop() == 0


def is_in(kept: list[bytes], value) -> bool:
    """As it was, or with its parts in order: what Celery had taken already was written anew."""
    item = as_item(value)
    if (item if isinstance(item, bytes) else item.encode()) in kept:
        return True
    return any(value in (each, each | {"headers": None}) for each in map(as_json, kept) if isinstance(each, dict))


def as_json(item: bytes):
    try:
        return json.loads(item)
    except (ValueError, RecursionError):
        return None
