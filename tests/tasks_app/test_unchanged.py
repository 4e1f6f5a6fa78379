"""What others wrote for Celery, without a worker: bases, eager mode, coroutines, routers, clocks."""

from datetime import timedelta

import celery
import pytest
import time_machine
from asgiref.sync import async_to_sync
from celery import chain, chord, group
from celery import current_app as app
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from tasks_app.client import CeleryClient
from tasks_app.exceptions import InvalidSubmission
from tasks_app.guard import Guard
from tasks_app.models import TaskRecord, TaskStep
from tasks_app.outbox import RecordingCelery
from tasks_app.retries import wait_again
from tests.sample.tasks import async_sleep, echo, flaky, once_a_minute, stops_when_asked

objects = TaskRecord.objects
client = CeleryClient()


# 50: bases


@pytest.fixture
def other_app():
    return RecordingCelery("other", set_as_current=False)


#: Registered at once, and with this app alone.
NOW = {"lazy": False, "shared": False}


def nothing():
    pass


class Plain(celery.Task):
    name = "plain"

    def run(self):
        return "plain"


@pytest.mark.parametrize("road", ["decorator", "class", "instance", "registry", "item"])
def test_each_road_to_the_registry_puts_the_claim_in_front(other_app, road):
    if road == "decorator":
        other_app.task(nothing, name="plain", base=celery.Task, **NOW)
    elif road == "class":
        other_app.register_task(Plain)
    elif road == "instance":
        other_app.register_task(Plain())
    elif road == "registry":
        other_app.tasks.register(Plain())
    else:
        other_app.tasks["plain"] = Plain()
    task = other_app.tasks["plain"]
    assert type(task).mro()[1] is Guard
    assert type(task).__name__ in ("Plain", "nothing")


def test_a_task_that_cannot_be_claimed_is_refused_by_name(other_app):
    class Closed(celery.Task):
        name = "closed"

        def __init_subclass__(cls):
            raise TypeError("closed for subclasses")

    with pytest.raises(ImproperlyConfigured, match=r"'closed'.*closed for subclasses"):
        other_app.register_task(Closed())
    with pytest.raises(ImproperlyConfigured, match=r"'own_backend'.*backend"):
        other_app.task(nothing, name="own_backend", backend="cache", **NOW)


@pytest.mark.django_db
def test_a_task_from_a_class_whose_signature_celery_does_not_check_can_be_submitted_many_times(other_app):
    other_app.register_task(Plain())
    results = CeleryClient(other_app).submit_many("plain", [([], {}), ([], {})])
    assert objects.filter(task_id__in=[result.id for result in results]).count() == 2


def test_a_task_keeps_its_signature_and_its_type(other_app):
    task = other_app.register_task(Plain())
    assert isinstance(task, Plain)
    assert task() == "plain"
    with pytest.raises(TypeError):
        echo.apply_async([1, 2, 3])


# 53: eager, without a database (which this test may not use)


@pytest.fixture
def eager():
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False


def test_apply_needs_no_database():
    assert echo.apply(["x"]).get() == "x"
    assert async_sleep.apply([0]).get() == 0
    assert flaky.apply([2]).get() == 2
    assert echo.apply(["x", "too many"]).state == "FAILURE"


def test_eager_mode_needs_no_database(eager):
    assert echo.delay("x").get() == "x"
    assert group(echo.s(1), echo.s(2)).delay().get() == [1, 2]
    assert chain(echo.s(1), echo.s())().get() == 1
    assert chord([echo.s(1), echo.s(2)], echo.s())().get() == [1, 2]
    assert client.submit("sample.echo", [3]).get() == 3
    assert [result.get() for result in client.submit_many("sample.echo", [([1], {}), ([2], {})])] == [1, 2]
    assert stops_when_asked.is_cancelled() is False


def test_errbacks_are_called_in_eager_mode(eager):
    called = []

    @app.task(name="eager.errback", **NOW)
    def errback(request, exc, traceback):
        called.append(str(exc))

    @app.task(name="eager.fails", **NOW)
    def fails():
        raise ValueError("eagerly")

    fails.apply_async(link_error=errback.s())
    assert called == ["eagerly"]


# 69: a router that reads elsewhere


class ReadsElsewhere:
    def db_for_read(self, model, **hints):
        return "replica_that_lags"

    def db_for_write(self, model, **hints):
        return "default"


@pytest.mark.django_db
def test_the_console_reads_its_own_rows_where_it_writes_them(settings):
    settings.DATABASE_ROUTERS = [ReadsElsewhere()]
    first = echo.apply_async([1], idempotency_key="once")
    assert echo.apply_async([2], idempotency_key="once").id == first.id
    assert (client.get_status(first.id), first.state) == ("PENDING", "PENDING")
    app.backend.apply_chord(app.GroupResult("g", [first]), echo.s().set(task_id="body"))
    run = objects.claim(first.id, 1, "worker@host", 42)
    request = celery.app.task.Context(
        id=first.id, gen=1, group="g", chord=echo.s().set(task_id="body"), claimed=run.attempt, called_directly=False
    )
    app.backend.mark_as_done(first.id, "value", request)
    assert objects.get(task_id="body").args == [["value"]]
    assert app.AsyncResult(first.id).get(timeout=1) == "value"


# 70: coroutines


@pytest.mark.django_db
def test_a_coroutine_submits_in_its_callers_transaction():
    async def view():
        one = await echo.adelay(1)
        two = await echo.aapply_async([2], countdown=60)
        three = await client.asubmit("sample.echo", [3])
        return [one.id, two.id, three.id]

    ids = []
    with pytest.raises(LookupError), transaction.atomic():
        ids += async_to_sync(view)()
        assert objects.filter(task_id__in=ids).count() == 3
        raise LookupError
    assert len(ids) == 3
    assert not objects.filter(task_id__in=ids).exists()


@pytest.mark.django_db
def test_delay_in_a_coroutine_names_the_way(monkeypatch):
    monkeypatch.delenv("DJANGO_ALLOW_ASYNC_UNSAFE", raising=False)

    async def view(send):
        send()

    for send in (lambda: echo.delay(1), lambda: chain(echo.si(1), echo.si(2)).delay()):
        with pytest.raises(SynchronousOnlyOperation, match=r"adelay.*asubmit"):
            async_to_sync(view)(send)


# 87: clocks


def ahead(field: str, task_id: str) -> timedelta:
    """How far ahead of the database's clock a time is."""
    return objects.annotate(ahead=F(field) - Now()).values_list("ahead", flat=True).get(task_id=task_id)


@pytest.mark.django_db
def test_spans_are_counted_by_the_databases_clock():
    with time_machine.travel(timezone.now() + timedelta(minutes=5), tick=True):
        result = echo.apply_async([1], countdown=10, expires=60)
        unique = once_a_minute.delay("x")
        many = client.submit_many("sample.echo", [([1], {})], countdown=10)[0]
        retried = echo.delay(2)
        objects.claim(retried.id, 1, "worker@host", 42)
        wait_again(objects.run_of(retried.id, 1), app.build_record("sample.echo", [2], countdown=10, retries=1))
    for field, task_id, seconds in [
        ("eta", result.id, 10),
        ("publish_at", result.id, 10),
        ("expires", result.id, 60),
        ("unique_until", unique.id, 60),
        ("eta", many.id, 10),
        ("publish_at", retried.id, 10),
    ]:
        assert timedelta(0) <= timedelta(seconds=seconds) - ahead(field, task_id) < timedelta(seconds=5), field


# 57: references by rows


@pytest.mark.django_db
def test_a_workflows_later_steps_are_known_by_rows():
    result = chain(echo.s(1), group(echo.s(), echo.s()), echo.s(), echo.s().on_error(echo.s())).apply_async()
    steps = {step.task_id: step for step in TaskStep.objects.all()}
    assert result.id in steps
    assert steps[result.id].after_id in steps, "it comes after the chord's body"
    assert [step.place for step in steps.values()].count("body") == 1
    assert client.get_status(result.id) == "PENDING"
    assert {step.root_id for step in steps.values()} == {objects.get().task_id}


@pytest.mark.django_db
def test_a_chord_is_one_insert(django_assert_max_num_queries):
    with django_assert_max_num_queries(4):
        result = chord([echo.s(number) for number in range(20)], echo.s()).apply_async()
    assert objects.count() == 20
    assert TaskStep.objects.get().task_id == result.id


@pytest.mark.django_db
def test_a_plain_task_has_no_steps():
    echo.delay(1)
    assert not TaskStep.objects.exists()


# 40: the signature that Celery documents


@pytest.mark.django_db
def test_send_task_takes_what_celerys_does_by_position():
    result = app.send_task("sample.echo", [1], {}, 60, None, "by position")
    assert result.id == "by position"
    assert objects.get().eta


@pytest.mark.django_db
@pytest.mark.parametrize("countdown", ["soon", float("nan"), float("inf"), 1e12, True])
def test_a_countdown_that_is_none_is_refused(countdown):
    with pytest.raises(InvalidSubmission, match="countdown"):
        echo.apply_async([1], countdown=countdown)
    assert connection.in_atomic_block
