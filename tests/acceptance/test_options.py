"""Each option that `apply_async` documents, its own and those of kombu's publish: the task runs."""

from datetime import UTC, datetime, timedelta

import pytest
from celery import current_app as app
from kombu import Exchange, Queue, compression

from tasks_app.client import CeleryClient
from tests.acceptance.processes import finished
from tests.sample.tasks import echo, request_attribute

SOON = datetime.now(UTC) + timedelta(minutes=10)
#: Name, and the options.
OPTIONS = {
    "none": {},
    "countdown": {"countdown": 0.5},
    "eta": {"eta": datetime.now(UTC)},
    "expires in seconds": {"expires": 600},
    "expires in parts of one": {"expires": 600.5},
    "expires at": {"expires": SOON},
    "expires at, as text": {"expires": SOON.isoformat()},
    "expires at, naive": {"expires": SOON.replace(tzinfo=None)},
    "shadow": {"shadow": "another name"},
    "retry": {"retry": True, "retry_policy": {"max_retries": 1, "interval_start": 0, "retry_errors": (OSError,)}},
    "no retry": {"retry": False},
    "time limits": {"time_limit": 30, "soft_time_limit": 20},
    "queue": {"queue": "cron_queue"},
    "queue as kombu has it": {"queue": Queue("cron_queue")},
    "exchange": {"exchange": "celery_queue", "routing_key": "celery_queue"},
    "exchange as kombu has it": {"exchange": Exchange("celery_queue"), "routing_key": "celery_queue"},
    "routing key": {"routing_key": "celery_queue"},
    "priority": {"priority": 0},
    "serializer": {"serializer": "json"},
    **{f"compression {name}": {"compression": name} for name in (*compression._aliases, *compression.encoders())},
    "link": {"link": echo.s()},
    "links": {"link": [echo.s(), echo.si(1)], "link_error": echo.s()},
    "add_to_parent": {"add_to_parent": False},
    "ignore_result": {"ignore_result": False},
    "headers": {"headers": {"X-Tenant": "acme", "nested": {"a": [1]}}},
    "argsrepr": {"argsrepr": "<hidden>", "kwargsrepr": "<hidden>"},
    "content type": {"content_type": "application/json", "content_encoding": "utf-8"},
    "delivery mode": {"delivery_mode": 1},
    "delivery mode by name": {"delivery_mode": "transient"},
    "mandatory": {"mandatory": True, "immediate": False},
    "expiration": {"expiration": 600},
    "timeout": {"timeout": 5, "confirm_timeout": 5},
    "declare": {"declare": [Queue("celery_queue"), Exchange("celery_queue")]},
    "properties": {
        "reply_to": "someone", "correlation_id": "order-7", "timestamp": 1.5, "user_id": "u", "app_id": "a",
        "message_id": "m", "type": "t", "cluster_id": "c",
    },
    "a time as a property": {"timestamp": datetime(2030, 1, 1, tzinfo=UTC)},
}  # fmt: skip


@pytest.fixture(scope="module")
def sent(worker):
    """One task for each, all under way at once."""
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        given = OPTIONS | {
            "connection": {"connection": connection},
            "producer": {"producer": producer},
            "publisher": {"publisher": producer},
        }
        return {name: echo.apply_async([name], **options) for name, options in given.items()}


@pytest.mark.parametrize("name", [*OPTIONS, "connection", "producer", "publisher"])
def test_a_task_runs_with(name, sent):
    assert finished(sent[name], timeout=30).state == "SUCCESS"
    assert sent[name].get(timeout=30) == name


@pytest.mark.parametrize(
    ("attribute", "options", "expected"),
    [
        ("argsrepr", {"argsrepr": "<hidden>"}, "<hidden>"),
        ("kwargsrepr", {"kwargsrepr": "<hidden>"}, "<hidden>"),
        ("shadow", {"shadow": "another name"}, "another name"),
        ("timelimit", {"time_limit": 30, "soft_time_limit": 20}, [30, 20]),
        ("reply_to", {"reply_to": "someone"}, "someone"),
        ("correlation_id", {"correlation_id": "order-7"}, "order-7"),
        ("tenant", {"headers": {"tenant": "acme"}}, "acme"),
        ("stamps", {"stamped_headers": ["order"], "order": "7"}, {"order": "7"}),
        ("headers", {"headers": {"headers": {"sentry-trace": "1-2"}}}, {"sentry-trace": "1-2"}),
    ],
)
def test_a_body_is_told_what_was_asked_for(worker, attribute, options, expected):
    result = request_attribute.apply_async([attribute], **options)
    assert result.get(timeout=20) == expected


def test_headers_of_a_task_stay_with_it_when_it_is_retried(worker):
    headers = {"tenant": "acme", "sentry-trace": "1-2", "headers": {"sentry-trace": "1-2"}}
    result = request_attribute.apply_async(["headers"], {"retries": 1}, headers=headers)
    assert result.get(timeout=20)["sentry-trace"] == "1-2"
    assert finished(result).retries == 1


def test_the_client_takes_them_too(worker):
    result = CeleryClient().submit("sample.echo", ["x"], argsrepr="<hidden>", compression="bzip2", shadow="s")
    assert CeleryClient().get_result(result.id, timeout=20) == "x"
