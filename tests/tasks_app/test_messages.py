"""What passes the rules can be decoded by a worker; what a worker could not take is refused with the field's name."""

import itertools
import json
import math
import random
import zlib
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import cache
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from celery import current_app as app
from celery import signature
from celery.app.task import Context
from celery.worker.request import Request
from django.conf import settings
from kombu import Exchange, Queue, compression, serialization
from kombu.utils.json import loads
from redis import Redis

from tasks_app import formats, messages
from tasks_app.exceptions import InvalidSubmission
from tasks_app.messages import DEEPEST, DEEPEST_HEADER
from tasks_app.models import TaskRecord
from tasks_app.publishing import GEN_HEADER
from tasks_app.transport import Message
from tests.sample.tasks import echo, flaky

QUEUE = "by construction"


def nested(levels: int) -> list:
    """A list within lists, `levels` deep."""
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def marker(kind, value) -> dict:
    """What kombu takes for a value that JSON has not."""
    return {"__type__": kind, "__value__": value}


def as_read(record: TaskRecord) -> TaskRecord:
    """A record as it is in the table, checked as on its way there. Raises InvalidSubmission."""
    args, kwargs, options = record.inserted_values()[:3]
    record.args, record.kwargs, record.options = json.loads(args), json.loads(kwargs), json.loads(options)
    return record


def submitted(args=(), kwargs=None, **options) -> TaskRecord:
    """The record of such a call; `apply_async` would insert it. Raises InvalidSubmission."""
    return as_read(app.build_record("sample.echo", args, kwargs, queue=QUEUE, task_type=echo, **options))


@cache
def broker():
    return app.connection_for_write().default_channel, Redis.from_url(settings.CELERY_BROKER_URL)


def taken(record: TaskRecord) -> Context:
    """The request that a worker's pool child has of its message: by the code that the worker runs, up to its body."""
    app.publish([record])
    channel, redis = broker()
    (item,) = [item for step in channel.priority_steps if (item := redis.rpop(channel._q_for_pri(QUEUE, step)))]
    message = Message(loads(item), channel=channel)
    message.accept = app.accepts
    request = Request(message, app=app, task=echo)
    body = request.body, request.content_type, request.content_encoding
    args, kwargs, embed = serialization.loads(*body, accept=app.accepts)
    context = Context(request.request_dict | embed, args=args, kwargs=kwargs)
    context.content_type = request.content_type
    assert (context.id, context.task, getattr(context, GEN_HEADER)) == (record.task_id, record.name, record.gen)
    return context


SENTRY = {"sentry-trace": "0af7-b7ad-1", "baggage": "sentry-release=1", "sentry-task-enqueued-time": 1.5}
STEP = {"task": "sample.echo", "args": [1], "kwargs": {}, "options": {"task_id": "next"}, "immutable": False}
#: What plain Celery's users, and Celery itself, pass.
ACCEPTED = {
    "headers of sentry": {"headers": {**SENTRY, "headers": SENTRY}},
    "headers of opentelemetry": {"headers": {"traceparent": "00-0af7-b7ad-01", "tracestate": None}},
    "headers of Beat": {"headers": {"periodic_task_name": "nightly", "X-Number": 7, "X-List": [1, {"a": None}]}},
    "headers of the console": {"headers": {"retry_policy": {"max_retries": 3, "backoff": 10}, "scheduled_for": "x"}},
    "headers that hold JSON's additions": {"headers": {"at": datetime(2030, 1, 1, tzinfo=UTC), "id of": UUID(int=7)}},
    "headers that a request has as its own": {"headers": {"correlation_id": "c", "hostname": "h"}},
    "no headers": {"headers": {}},
    "deep header": {"headers": {"x": nested(DEEPEST_HEADER)}},
    "reprs": {"argsrepr": "<hidden>", "kwargsrepr": "<hidden>"},
    "shadow": {"shadow": "another name"},
    "content type": {"content_type": "application/json", "content_encoding": "utf-8"},
    "content type by name": {"content_type": "json"},
    "serializer": {"serializer": "json"},
    "limits": {"time_limit": 10, "soft_time_limit": 0.5},
    "limit of none": {"time_limit": 0, "soft_time_limit": None},
    "soft limit above the hard one": {"time_limit": 10, "soft_time_limit": 20},
    "link": {"link": echo.s(), "link_error": [echo.si(1).set(priority=0)]},
    "chain": {"chain": [STEP, dict(STEP, kwargs=None, options=None)], "chord": echo.s()},
    "stamps": {"stamped_headers": ["order", "none"], "order": ["7"], "none": None},
    "properties": {
        "correlation_id": "c", "app_id": "a", "user_id": "u", "message_id": "m", "type": "t", "timestamp": 1.5,
        "reply_to": "r", "expiration": 60, "mandatory": True, "immediate": False, "delivery_mode": "transient",
        "redelivered": False, "cluster_id": {"x": [1]},
    },
    "delivery mode": {"delivery_mode": 2},
    "publishing": {
        "retry": True, "retry_policy": {"max_retries": 1, "errback": print}, "timeout": 1, "confirm_timeout": 2,
        "declare": [Queue("x", Exchange("y"))], "exchange": Exchange("z"), "routing_key": "k",
    },
    "a retry's": {"retries": 2, "root_id": "r", "parent_id": "p", "group_id": "g", "group_index": 3, "origin": "o",
                  "replaced_task_nesting": 1, "ignore_result": True, "priority": 0},
    **{f"compressed by {name}": {"compression": name} for name in (*compression._aliases, *compression.encoders())},
}  # fmt: skip


@pytest.mark.parametrize("options", ACCEPTED.values(), ids=ACCEPTED)
def test_what_celery_documents_and_passes_itself_makes_a_message(options):
    record = submitted(["x", {"a": [1.5, None]}], {"key": "value"}, **options)
    messages.check_row(record, app.accepts)
    context = taken(record)
    assert context.args == ["x", {"a": [1.5, None]}]
    assert context.kwargs == {"key": "value"}


VALUES = {
    "datetime": datetime(2030, 1, 1, 12, tzinfo=UTC),
    "date": date(2030, 1, 1),
    "time": time(12, 30),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=7),
    "bytes": b"text",
    "base64": b"\xff\xfe",
    "NUL": "a\x00b",
    "surrogate": "a\ud800b",
    "huge number": 2**2000,
    "infinite": math.inf,
    "deep": nested(DEEPEST - 1),
    "many": [{"a": [1]}] * 500,
    "marker within a text": json.dumps(marker("datetime", "bad")),
    "keys like a marker's": marker("datetime", "bad") | {"more": 1},
    "marker of a date": marker("date", "2030-01-01"),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_what_json_and_kombu_can_carry_arrives(value):
    record = submitted([value], {"key": value})
    messages.check_row(record, app.accepts)
    context = taken(record)
    expected = date(2030, 1, 1) if value == marker("date", "2030-01-01") else value
    assert (context.args, context.kwargs) == ([expected], {"key": expected})


#: What no worker could take, and what the error says first.
REFUSED = {
    "pickle": ({"serializer": "pickle"}, "serializer: workers do not accept 'pickle'"),
    "raw": ({"serializer": "raw"}, "serializer: workers do not accept"),
    "no such serializer": ({"serializer": "nothing"}, "serializer: workers do not accept 'nothing'"),
    "serializer a list": ({"serializer": ["json"]}, "serializer must be a name, not"),
    "content type": ({"content_type": "text/plain"}, "content_type: workers do not accept 'text/plain'"),
    "content encoding": ({"content_encoding": 7}, "content_encoding must be a name"),
    "compression": ({"compression": "nothing"}, "compression: there is none named 'nothing'"),
    "compression a number": ({"compression": 7}, "compression must be a name"),
    "compression by header": ({"headers": {"compression": "application/x-gzip"}}, "headers: compression is set by"),
    "eta in the year 10000": ({"eta": "9999-12-31T23:00:00-12:00"}, "eta must be a time between the years 1 and 9999"),
    "expires in the year 0": ({"expires": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))}, "expires must be"),
    "time limit a text": ({"time_limit": "5"}, "time_limit must be a number of seconds"),
    "time limit true": ({"time_limit": True}, "time_limit must be"),
    "time limit NaN": ({"soft_time_limit": math.nan}, "soft_time_limit must be"),
    "time limit negative": ({"time_limit": -1}, "time_limit must be"),
    "time limit huge": ({"time_limit": 1e9}, "time_limit must be"),
    "time limit a timedelta": ({"time_limit": timedelta(seconds=5)}, "time_limit must be"),
    "expiration infinite": ({"expiration": math.inf}, "expiration must be"),
    "argsrepr a list": ({"argsrepr": [1]}, "argsrepr must be a text"),
    "kwargsrepr long": ({"kwargsrepr": "x" * 100_000}, "kwargsrepr must be a text of at most"),
    "shadow a number": ({"shadow": 7}, "shadow must be a text"),
    "origin an object": ({"origin": {}}, "origin must be a text"),
    "delivery mode": ({"delivery_mode": "eternal"}, "delivery_mode must be"),
    "delivery info": ({"delivery_info": 7}, "options: delivery_info cannot be among them"),
    "body": ({"body": "x"}, "options: body cannot be among them"),
    "message": ({"message": "x", "callbacks": []}, "options: message cannot be among them"),
    "property deep": ({"app_id": nested(DEEPEST_HEADER + 1)}, "app_id: nested more than"),
    "retries a text": ({"retries": "x"}, "retries must be a whole number"),
    "nesting a text": ({"replaced_task_nesting": "x"}, "replaced_task_nesting must be"),
    "root_id a number": ({"root_id": 7}, "root_id must be a text of 1 to 255 characters"),
    "parent_id long": ({"parent_id": "x" * 256}, "parent_id must be"),
    "group_id with NUL": ({"group_id": "a\x00"}, "group_id must be"),
    "group_id a surrogate": ({"group_id": "\ud800"}, "group_id must be"),
    "headers a list": ({"headers": ["x"]}, "headers must be an object"),
    "headers a text": ({"headers": "x"}, "headers must be an object"),
    "header's name a number": ({"headers": {7: "x"}}, "headers: the name of each must be a text, not 7"),
    "header deep": ({"headers": {"x": nested(DEEPEST_HEADER + 1)}}, "headers: x: nested more than"),
    "header deeper": ({"headers": {"x": nested(900)}}, "headers: x: nested more than"),
    "headers long": ({"headers": {"x": "y" * 70_000}}, "headers: 70,001 characters, 65,536 are allowed"),
    "headers long in sum": ({"headers": {str(n): ["y" * 900] for n in range(80)}}, "headers: 7"),
    "header a set": ({"headers": {"x": {1}}}, "headers: x: JSON cannot carry it"),
    "header a broken marker": ({"headers": {"x": [marker("datetime", "bad")]}}, "headers: x: an object with the keys"),
    "headers within headers": ({"headers": {"headers": {"id": "x"}}}, "headers: id is set by"),
    "headers within a text": ({"headers": {"headers": [1]}}, "headers must be an object"),
    "retry policy": ({"headers": {"retry_policy": {"backoff": "x"}}}, "headers: retry_policy.backoff must be"),
    "retry policy's count": ({"headers": {"retry_policy": {"max_retries": -1}}}, "headers: retry_policy.max_retries"),
    "stamps a text": ({"stamped_headers": "order"}, "stamped_headers must be a list of names"),
    "stamps of numbers": ({"stamped_headers": [1]}, "stamped_headers must be"),
    "stamp with a name that is taken": ({"stamped_headers": ["shadow"]}, "stamped_headers: shadow means something"),
    "stamps like a marker": (marker("date", "x") | {"stamped_headers": ["__type__", "__value__"]}, "stamped_headers:"),
    "property a broken marker": ({"app_id": marker("uuid", "bad")}, "app_id: an object with the keys"),
    "options like a marker": (marker("date", "2030-01-01") | {"serializer": None}, "options: an object with the keys"),
    "link a text": ({"link": "sample.echo"}, "link must be a signature"),
    "link a number": ({"link_error": [7]}, "link_error must be a signature"),
    "link without a task": ({"link": {"args": []}}, "link must be a signature, with the name of its task"),
    "link's args": ({"link": dict(STEP, args="x")}, "link: args of sample.echo must be a list"),
    "link's options": ({"link": echo.s().set(serializer="pickle")}, "link: sample.echo: serializer: workers"),
    "link's headers": ({"link": [echo.s().set(headers={"id": "x"})]}, "link: sample.echo: headers: id is set"),
    "link of a link": ({"link": echo.s().set(link=[echo.s().set(priority=99)])}, "link: sample.echo: link: sample"),
    "chain a text": ({"chain": "x"}, "chain must be a list of signatures"),
    "chain of one": ({"chain": STEP}, "chain must be a list of signatures"),
    "chord a list": ({"chord": [STEP]}, "chord must be a signature, not"),
    "link deep": ({"link": echo.s(nested(DEEPEST))}, "link: nested more than"),
    "chord with a broken value": ({"chord": echo.si(marker("datetime", "bad"))}, "chord: an object with the keys"),
}  # fmt: skip
OWNED = [
    "id", "task", "lang", "root_id", "parent_id", "group", "group_index", "meth", "shadow", "eta", "expires", "retries",
    "timelimit", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers",
    "stamps", "content-type", "update", "get", "clear", "__class__", "_children", "claimed",
]  # fmt: skip


@pytest.mark.parametrize(("options", "says"), REFUSED.values(), ids=REFUSED)
def test_options_that_make_no_message_are_refused_where_they_are_given(options, says):
    with pytest.raises(InvalidSubmission, match="^" + says.replace("(", r"\(")):
        submitted(["x"], **options)


@pytest.mark.parametrize("name", OWNED)
def test_a_header_that_celery_kombu_or_the_console_owns_is_refused_by_name(name):
    with pytest.raises(InvalidSubmission, match=f"^headers: {name} is set by Celery or the console itself"):
        submitted(headers={name: "x"})


ARGUMENTS = {
    "broken marker": (marker("datetime", "bad"), "an object with the keys __type__ and __value__"),
    "unknown marker": (marker("nothing", 1), "an object with the keys"),
    "marker of a list": (marker([], 1), "an object with the keys"),
    "broken marker within": ([{"a": (marker("uuid", None),)}], "an object with the keys"),
    "a level too deep": (nested(DEEPEST), f"nested more than {DEEPEST} levels deep"),
    "900 deep": (nested(900), f"nested more than {DEEPEST} levels deep"),
    "deep object": (json.loads('{"a":' * 900 + "1" + "}" * 900), "nested more than"),
}


@pytest.mark.parametrize(("value", "says"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_a_worker_could_not_decode_are_refused_by_their_field(value, says):
    for field, call in (("args", {"args": [value]}), ("kwargs", {"kwargs": {"x": value}})):
        with pytest.raises(InvalidSubmission, match=f"^{field}: {says}"):
            submitted(**call)


def test_keyword_arguments_that_together_are_a_marker_are_refused():
    """A worker would decode the whole to a date, and find no keyword arguments."""
    with pytest.raises(InvalidSubmission, match=r"^kwargs: .*the whole would be taken for such a value"):
        submitted(kwargs=marker("date", "2030-01-01"))


def test_what_a_worker_would_not_unpack_is_not_compressed(monkeypatch, settings):
    settings.TASK_ARGS_MAX_BYTES = settings.TASK_RESULT_MAX_BYTES = 1000
    follows = {"link": echo.s("x" * 7500)}
    submitted(**follows)
    submitted(link=echo.s("x" * 5000), compression="zlib")
    with pytest.raises(InvalidSubmission, match=r"^compression: 7,.* a worker unpacks 8,000 at most"):
        submitted(**follows, compression="zlib")


def test_a_text_of_a_few_bytes_is_not_unpacked_to_a_gigabyte(settings):
    settings.TASK_ARGS_MAX_BYTES = settings.TASK_RESULT_MAX_BYTES = 1000
    for method in compression.encoders():
        packed, name = compression.compress(b"x" * 8000, method)
        assert formats.unpacked(packed, name) == b"x" * 8000
        packed, name = compression.compress(b"x" * 8001, method)
        with pytest.raises(ValueError, match="unpacks to more than 8,000 bytes"):
            formats.unpacked(packed, name)
    with pytest.raises(ValueError, match="cut off"):
        formats.unpacked(zlib.compress(b"x" * 500)[:-5], "gzip")


def test_a_bomb_is_given_up_before_it_takes_memory():
    import tracemalloc

    bomb = zlib.compress(bytes(200_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="unpacks to more than"):
            formats.unpacked(bomb, "zlib")
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


@pytest.fixture
def own_format(monkeypatch):
    """A serializer that a project has registered, and that workers accept."""
    serialization.register("own", lambda value: json.dumps(value)[::-1], lambda body: json.loads(body[::-1]), "x/own")
    monkeypatch.setitem(app.__dict__, "accepts", frozenset({"application/json", "x/own", "application/x-yaml"}))
    yield
    serialization.unregister("own")


def test_a_serializer_that_workers_accept_is_tried_and_arrives(own_format):
    for options in ({"serializer": "own"}, {"content_type": "x/own"}):
        context = taken(submitted(["x", {"a": [None, 1.5]}], **options))
        assert (context.content_type, context.args) == ("x/own", ["x", {"a": [None, 1.5]}])


def test_one_that_workers_accept_and_that_does_not_work_here_is_refused(own_format, monkeypatch):
    monkeypatch.delitem(serialization.registry._encoders, "yaml", raising=False)  # as without its library
    with pytest.raises(InvalidSubmission, match=r"^serializer: yaml does not work here: No encoder installed for yaml"):
        submitted(serializer="yaml")


def test_a_stamped_signature_passes_as_celery_stamps_it():
    sig = echo.s("x").set(link=echo.s(), link_error=echo.s())
    sig.stamp(order="7", tags=["a", "b"])
    record = submitted(["x"], **{name: value for name, value in sig.options.items() if name != "task_id"})
    context = taken(record)
    assert set(context.stamped_headers) == {"order", "tags"}
    assert context.stamps == {"order": ["7"], "tags": ["a", "b"]} or context.stamps == {
        "order": "7",
        "tags": ["a", "b"],
    }


def test_what_a_retry_passes_goes_through_with_all_that_its_first_message_had():
    first = submitted(
        ["x"], headers={**SENTRY, "headers": SENTRY, "n": 1}, stamped_headers=["order"], order="7", time_limit=9,
        link=echo.s(), link_error=echo.s(), chain=[STEP], chord=dict(STEP), shadow="s", group_id="g", reply_to="r",
    )  # fmt: skip
    context = taken(first)
    context.called_directly = False
    again = flaky.signature_from_request(context, retries=1)
    options = {name: value for name, value in again.options.items() if name != "queue"}
    second = taken(submitted(again.args, again.kwargs, **options))
    assert second.retries == 1
    assert second.headers["sentry-trace"] == SENTRY["sentry-trace"]
    assert (second.stamps, second.timelimit) == ({"order": "7"}, [9, None])


def test_the_shown_arguments_are_those_that_were_given():
    context = taken(submitted(["secret"], {"key": "secret"}, argsrepr="<hidden>", kwargsrepr="{...}"))
    assert (context.argsrepr, context.kwargsrepr) == ("<hidden>", "{...}")
    assert "argsrepr" not in context.properties
    context = taken(submitted([1], {"a": 2}))
    assert (context.argsrepr, context.kwargsrepr) == ("[1]", "{'a': 2}")


ODD = [
    None, True, False, 0, -1, 7, 2**31, 10**30, 1.5, math.nan, math.inf, "", "x", "json", "zlib", "\x00", "\ud800",
    "x" * 300, "2030-01-01", [], {}, [None], ["x"], [["x"]], {"x": 1}, {"": None}, {"a": {"b": [{}]}}, (1, "a"), b"x",
    b"\xff", datetime(2030, 1, 1), UUID(int=1), Decimal("NaN"), marker("date", "2030-01-01"), marker("date", 7),
    marker({}, None), nested(5), nested(DEEPEST_HEADER - 1), nested(DEEPEST - 2), nested(DEEPEST + 5), STEP,
    [STEP, STEP], {"task": "x"}, {"task": 7}, {"id": "x"}, {"headers": {"a": 1}}, {"x": marker("uuid", "bad")},
    {1: 2}, {"x": {1}}, object, {1, 2}, timedelta(1), Exchange("e"),
]  # fmt: skip
NAMES = """
    headers serializer compression content_type content_encoding time_limit soft_time_limit argsrepr kwargsrepr shadow
    origin ignore_result link link_error chain chord group_index root_id parent_id group_id retries reply_to
    correlation_id app_id user_id timestamp type message_id expiration delivery_mode mandatory immediate stamped_headers
    order exchange replaced_task_nesting routing_key delivery_info delivery_tag body body_encoding message now timezone
    callbacks errbacks create_sent_event eta countdown expires priority task_id idempotency_key declare retry
    retry_policy timeout confirm_timeout exchange_type event_dispatcher __type__ __value__ x-y cluster_id content-type
    properties timelimit gen id
""".split()  # noqa: SIM905


def odd_call(chance: random.Random) -> dict:
    call = {name: chance.choice(ODD) for name in chance.sample(NAMES, chance.choice([0, 1, 1, 1, 2, 3]))}
    call["args"] = [chance.choice(ODD) for _ in range(chance.choice([0, 1, 2]))]
    call["kwargs"] = {
        chance.choice(["a", "", "__type__", "\x00"]): chance.choice(ODD) for _ in range(chance.choice([0, 1]))
    }
    return call


def passes_or_is_refused(call: dict) -> bool:
    try:
        record = submitted(**call)
    except InvalidSubmission:
        return False
    messages.check_row(record, app.accepts)
    taken(record)
    return True


@pytest.mark.parametrize("name", NAMES)
def test_each_option_with_each_odd_value_is_refused_or_decoded_by_a_worker(name):
    assert {passes_or_is_refused({name: value}) for value in ODD} <= {True, False}


def test_odd_values_in_arguments_are_refused_or_decoded_by_a_worker():
    for value in ODD:
        passes_or_is_refused({"args": [value]})
        passes_or_is_refused({"kwargs": {"x": value}})
        passes_or_is_refused({"headers": {"x": value}})
        passes_or_is_refused({"headers": {"headers": value}})
        passes_or_is_refused({"stamped_headers": ["order"], "order": value})
        passes_or_is_refused({"link": {"task": "x", "args": [value], "options": {"headers": value}}})


@pytest.mark.parametrize("seed", range(4))
def test_mixtures_of_odd_values_are_refused_or_decoded_by_a_worker(seed):
    chance = random.Random(seed)
    outcomes = [passes_or_is_refused(odd_call(chance)) for _ in range(80)]
    assert 8 < sum(outcomes) < 72, "neither everything nor nothing"


# Rows that anybody may have written


def row(**fields) -> TaskRecord:
    given = {"name": "sample.echo", "args": [], "kwargs": {}, "queue": "q", "options": {}} | fields
    return TaskRecord(task_id="row", root_id="row", **given)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"args": {"a": 1}}, "args must be a JSON list"),
        ({"args": "[[[ no JSON"}, "args must be a JSON list, at most 200 levels deep, not '"),
        ({"args": None}, "args must be a JSON list"),
        ({"kwargs": []}, "kwargs must be a JSON object"),
        ({"options": []}, "options must be a JSON object"),
        ({"options": {"headers": {"id": "x"}}}, "headers: id is set by"),
        ({"options": {"headers": {"gen": 7}}}, "headers: gen is set by"),
        ({"options": {"headers": "junk"}}, "headers must be an object"),
        ({"options": {"eta": "junk"}}, "options: eta cannot be among them"),
        ({"options": {"task_id": "x", "args": []}}, "options: args, task_id cannot be among them"),
        ({"options": {"serializer": "pickle"}}, "serializer: workers do not accept"),
        ({"options": {"link": 5}}, "link must be"),
        ({"options": {"x": [marker("uuid", "bad")]}}, "x: an object with the keys"),
        ({"args": [marker("uuid", "bad")]}, "args: an object with the keys"),
        ({"kwargs": marker("date", "2030-01-01")}, "kwargs: an object with the keys"),
        ({"args": nested(300)}, "args: nested more than"),
        ({"name": ""}, "name must be a text"),
        ({"queue": ""}, "queue must be a text"),
    ],
)
def test_a_row_that_makes_no_message_is_named_with_its_column(fields, says):
    with pytest.raises(InvalidSubmission, match="^" + says.replace("[", r"\[")):
        messages.check_row(row(**fields), app.accepts)


def test_a_sound_row_passes():
    messages.check_row(row(args=[{"a": [1]}], kwargs={"x": nested(100)}, options={"chain": [STEP]}), app.accepts)


# What another producer sends


def foreign(**fields) -> SimpleNamespace:
    given = {
        "id": str(uuid4()),
        "task": "sample.echo",
        "args": [1],
        "kwargs": {},
        "delivery_info": {"routing_key": "q"},
    }
    return SimpleNamespace(**given | fields)


def test_a_task_of_another_producer_is_adopted_within_the_limits(settings):
    assert messages.may_adopt(foreign()) is None
    assert messages.may_adopt(foreign(args=None, kwargs=None, delivery_info=None, root_id=[], parent_id={})) is None
    assert messages.may_adopt(foreign(args=[datetime(2030, 1, 1), nested(100)])) is None
    settings.TASK_ARGS_MAX_BYTES = 100
    assert messages.may_adopt(foreign(args=["x" * 90])) is None
    assert "TASK_ARGS_MAX_BYTES" in messages.may_adopt(foreign(args=["x" * 99]))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"args": [nested(DEEPEST)]}, "args: nested more than"),
        ({"kwargs": {"x": {1}}}, "kwargs: JSON cannot carry it"),
        ({"task": "x" * 300}, "task must be a text"),
        ({"root_id": "x" * 300}, "root_id must be"),
        ({"group": "\x00"}, "group must be"),
        ({"delivery_info": {"routing_key": "x" * 300}}, "routing_key must be"),
    ],
)
def test_a_task_of_another_producer_beyond_them_is_not(fields, says):
    assert messages.may_adopt(foreign(**fields)).startswith(says)


def test_none_is_adopted_where_the_setting_says_so(settings):
    settings.TASK_ADOPT_UNKNOWN = False
    assert "TASK_ADOPT_UNKNOWN" in messages.may_adopt(foreign())


def test_a_signature_of_a_workflow_passes_whatever_its_kind():
    workflow = (echo.s(1) | echo.s()) | signature("celery.group", kwargs={"tasks": [dict(STEP)]})
    for options in ({"link": [echo.s(1) | echo.s()]}, {"link": workflow}, {"chord": echo.s() | echo.s()}):
        taken(submitted([1], **options))


def test_nothing_here_depends_on_the_order_of_options():
    options = {"headers": {"a": 1}, "serializer": "json", "time_limit": 5, "compression": "zlib"}
    for order in itertools.permutations(options):
        submitted(**{name: options[name] for name in order})
