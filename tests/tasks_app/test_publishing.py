"""How records become messages: at once, held back to the end of a pass, or left to the relay."""

import threading

import pytest
from celery import current_app as app
from celery import signals
from celery.utils.saferepr import saferepr
from django.utils import timezone
from kombu.exceptions import OperationalError

from tasks_app import publishing
from tasks_app.client import CeleryClient
from tasks_app.models import TaskRecord
from tasks_app.moves import HELD_GRACE, PUBLISH_GRACE
from tasks_app.publishing import _shown
from tests.sample.tasks import echo


@pytest.mark.django_db
def test_after_one_submit_has_met_an_outage_the_others_do_not_try(commits, monkeypatch):
    tried = []

    def publish(records):
        tried.append(records[0].task_id)
        raise OperationalError("away")

    monkeypatch.setattr(app, "publish", publish)
    monkeypatch.setattr(app.publisher.breaker, "ask", threading.Event().wait)  # no answer, as long as the test runs
    for number in range(3):
        with commits():
            echo.delay(number)
    assert len(tried) == 1
    assert TaskRecord.objects.filter(published_at=None, publish_at__isnull=False).count() == 3, "the relay's to publish"


@pytest.mark.django_db
def test_what_is_committed_within_a_pass_goes_out_at_its_end_also_where_that_fails(commits, monkeypatch):
    batches = []
    monkeypatch.setattr(app, "publish", lambda records: batches.append([record.args for record in records]))
    with pytest.raises(ZeroDivisionError), app.publisher.held_back():
        for number in range(2):
            with commits():
                echo.delay(number)
        assert not batches
        raise ZeroDivisionError
    assert batches == [[(0,), (1,)]]
    with commits():
        echo.delay(2)
    assert batches[1:] == [[(2,)]]


@pytest.mark.django_db
def test_some_of_what_is_held_back_can_go_out_sooner_and_is_marked_at_the_end(commits, monkeypatch, published):
    monkeypatch.setattr(publishing, "SOME", 2)
    with app.publisher.held_back() as publish_some:
        with commits():
            ids = [echo.delay(number).id for number in range(3)]
        publish_some()
        assert published == ids[:2]
        assert TaskRecord.objects.filter(published_at=None).count() == 3
    assert published == ids
    assert not TaskRecord.objects.filter(published_at=None).exists()


@pytest.mark.django_db
def test_what_a_project_does_with_each_message_is_not_done_in_the_midst_of_a_statement(commits, published):
    signals.before_task_publish.connect(handler := lambda **_: None)
    try:
        with app.publisher.held_back() as publish_some:
            with commits():
                echo.delay(1)
            publish_some()
            assert not published
    finally:
        signals.before_task_publish.disconnect(handler)
    assert len(published) == 1


@pytest.mark.django_db
def test_the_relay_leaves_more_time_for_what_is_held_back_to_the_end_of_a_pass():
    at_once = echo.delay(1)
    with app.publisher.held_back():
        held, *many = echo.delay(2), *CeleryClient().submit_many("sample.echo", [([3], {}), ([4], {})])
    records = TaskRecord.objects.filter(task_id__in=[result.id for result in (at_once, held, *many)])
    graces = {record.args[0]: (record.publish_at - timezone.now()).total_seconds() for record in records}
    assert graces == pytest.approx({1: PUBLISH_GRACE, 2: HELD_GRACE, 3: HELD_GRACE, 4: HELD_GRACE}, abs=0.5)


@pytest.mark.parametrize(
    "args", [[1, -2.5, True, None], (1,), ["x" * 2000], [[1] * 2000], list(range(2000)), [{"a": 1}], [float("inf")]]
)
def test_arguments_are_shown_in_messages_as_celery_shows_them(args):
    assert _shown(args, 1024) == saferepr(args, 1024)
