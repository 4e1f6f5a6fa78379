from datetime import timedelta

import pytest
from celery import Celery, chain, chord, group
from celery import current_app as app
from celery.signals import before_task_publish
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone
from kombu.exceptions import OperationalError

from tasks_app import draining, states
from tasks_app.models import TaskRecord
from tests.sample.tasks import echo

pytestmark = pytest.mark.django_db
objects = TaskRecord.objects


@pytest.fixture
def sent(monkeypatch):
    """What plain Celery sends, as (id, name, args, options)."""
    messages = []
    monkeypatch.setattr(
        Celery, "send_task", lambda app, name, args, kwargs, task_id, **o: messages.append((task_id, name, args, o))
    )
    return messages


def drain(*args: str) -> None:
    call_command("taskconsole", "drain", *args)


def test_nothing_is_left_of_what_the_broker_has(published, commits, capsys):
    with commits():
        task_id = echo.delay(1).id
    objects.mark_published([(task_id, 1)])
    assert draining.left() == {}
    assert draining.left(everything=True) == {"queued": 1}
    drain()
    assert capsys.readouterr().out == "Nothing is left.\n"


def test_countdowns_retries_and_what_waits_for_a_slot_are_left(published):
    echo.apply_async([1], countdown=3600)
    retried, limited = echo.delay(2).id, echo.delay(3).id
    objects.filter(task_id=retried).update(state=states.RETRY, publish_at=timezone.now() + timedelta(hours=1))
    objects.filter(task_id=limited).update(publish_at=None, parked_at=timezone.now(), limit_key="k")
    assert draining.left() == {"scheduled": 1, "retrying": 1, "limited": 1}
    with pytest.raises(CommandError, match=r"Not empty after 0 s: 1 scheduled, 1 limited, 1 retrying left"):
        drain("--timeout", "0")


def test_what_is_handed_over_goes_to_plain_celery_with_its_eta_and_has_no_row_any_more(published, sent, capsys):
    eta = timezone.now() + timedelta(hours=1)
    first = echo.apply_async([1], eta=eta, priority=3, headers={"tenant": "a"}, time_limit=9)
    drain("--hand-over")
    ((task_id, name, args, options),) = sent
    assert (task_id, name, args) == (first.id, "sample.echo", [1])
    assert (options["eta"], options["priority"], options["time_limit"]) == (eta, 3, 9)
    assert options["headers"]["tenant"] == "a"
    assert not objects.exists()
    assert capsys.readouterr().out == "1 handed over to plain Celery.\n"


def test_the_rest_of_a_chain_goes_with_its_first(published, sent):
    chain(echo.si(1), echo.si(2)).apply_async(countdown=60)
    drain("--hand-over")
    ((_, _, _, options),) = sent
    assert [step["task"] for step in options["chain"]] == ["sample.echo"]


def test_members_of_a_chord_are_not_handed_over(published, sent):
    chord(group(echo.si(1), echo.si(2)), echo.s()).apply_async(countdown=60)
    with pytest.raises(CommandError, match="2 were kept"):
        drain("--hand-over")
    assert (sent, objects.count()) == ([], 2)


def test_a_row_of_which_no_message_can_be_made_keeps_no_other_from_it(published, sent, capsys):
    broken, fine = echo.apply_async([1], countdown=60), echo.apply_async([2], countdown=60)
    objects.filter(task_id=broken.id).update(options=["written by SQL"])
    with pytest.raises(CommandError, match="1 were kept"):
        drain("--hand-over")
    assert f"Kept: task {broken.id}: no message can be made of it" in capsys.readouterr().err
    assert [message[0] for message in sent] == [fine.id]
    assert [record.task_id for record in objects.all()] == [broken.id]


@pytest.mark.django_db(transaction=True)
def test_a_projects_handlers_of_publishing_are_called_in_no_transaction(published):
    within = []

    def handle(**_):
        within.append(connection.in_atomic_block)

    echo.apply_async([1], countdown=60, queue="handed")
    before_task_publish.connect(handle)
    try:
        drain("--hand-over")
    finally:
        before_task_publish.disconnect(handle)
        app.connection_for_write().channel().queue_purge("handed")
    assert within == [False]


def test_what_the_broker_does_not_take_keeps_its_row(published, monkeypatch):
    echo.apply_async([1], countdown=60)

    def fail(*args, **options):
        raise OperationalError("away")

    monkeypatch.setattr(Celery, "send_task", fail)
    with pytest.raises(CommandError, match="0 were handed over: away"):
        drain("--hand-over")
    assert objects.count() == 1


def test_a_message_that_was_handed_over_is_one_that_any_worker_takes(published):
    """With a real broker: Celery's own sender, past the console's."""
    echo.apply_async([1], countdown=3600, queue="handed")
    drain("--hand-over")
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue("handed").get(timeout=5)
        message.ack()
    assert (message.headers["task"], "gen" in message.headers) == ("sample.echo", False)
    assert message.headers["eta"] is not None
