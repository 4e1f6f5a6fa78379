"""Tasks that are to be there once, and submissions that are one and the same."""

import threading

import pytest
from celery import current_app as app
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone

from tasks_app.client import CeleryClient
from tasks_app.exceptions import DuplicateTask, InvalidSubmission, NotUnique
from tasks_app.models import TaskRecord
from tasks_app.retries import wait_again
from tasks_app.uniqueness import problems
from tests.sample.tasks import echo, once_a_minute, once_while_unfinished, once_while_waiting

pytestmark = pytest.mark.django_db
objects = TaskRecord.objects


def claim(result) -> None:
    assert objects.claim(result.id, objects.get(task_id=result.id).gen, "worker@host", 42)


def finish(result) -> None:
    objects.filter(task_id=result.id).update(state="SUCCESS", finished_at=timezone.now())


def test_a_second_submission_with_the_same_idempotency_key_is_the_first():
    first = echo.apply_async([1], idempotency_key="order 7")
    again = echo.apply_async([2], idempotency_key="order 7")
    other = CeleryClient().submit("sample.echo", [3], idempotency_key="order 8")
    assert again.id == first.id != other.id
    assert list(objects.order_by("pk").values_list("args", "idempotency_key")) == [
        ([1], "order 7"),
        ([3], "order 8"),
    ]
    finish(first)
    assert echo.apply_async([4], idempotency_key="order 7").id == first.id


def test_a_key_is_for_one_task():
    client = CeleryClient()
    for submit in (
        lambda: client.submit_many("sample.echo", [([1], {}), ([2], {})], idempotency_key="k"),
        lambda: client.group(("sample.echo", [1]), ("sample.echo", [2]), idempotency_key="k"),
        lambda: client.chain(("sample.echo", [1]), ("sample.echo",), idempotency_key="k"),
        lambda: client.chord([("sample.echo", [1])], ("sample.echo",), idempotency_key="k"),
    ):
        with pytest.raises(InvalidSubmission, match="for one task"):
            submit()
    assert not objects.exists()


@pytest.mark.parametrize("key", ["", "x" * 256, 7, "a\x00"])
def test_a_key_that_cannot_be_kept_is_refused(key):
    with pytest.raises(InvalidSubmission, match="idempotency_key"):
        echo.apply_async([1], idempotency_key=key)


def test_a_task_that_is_unique_while_it_waits_can_wait_again_once_it_has_started():
    first = once_while_waiting.delay("a")
    with pytest.raises(NotUnique, match=first.id) as refused:
        once_while_waiting.delay("a")
    assert refused.value.task_id == first.id
    once_while_waiting.delay("b")
    claim(first)
    again = once_while_waiting.delay("a")
    wait_again(objects.run_of(first.id, 1))  # the first is retried: it waits beside the second
    claim(again)


def test_a_task_that_is_unique_while_it_is_unfinished_is_so_by_its_chosen_arguments():
    first = once_while_unfinished.delay("a", value=1)
    claim(first)
    with pytest.raises(NotUnique, match="STARTED"):
        once_while_unfinished.delay(key="a", value=2)
    once_while_unfinished.delay("b")
    finish(first)
    once_while_unfinished.delay("a")


def test_a_revoked_task_no_longer_stands_in_the_way():
    first = once_while_unfinished.delay("a")
    objects.filter(task_id=first.id).mark_revoked("not needed")
    once_while_unfinished.delay("a")


def test_a_task_that_is_unique_for_a_time_is_so_after_its_end():
    first = once_a_minute.delay("a")
    finish(first)
    with pytest.raises(NotUnique, match="SUCCESS"):
        once_a_minute.delay("a")
    objects.update(unique_until=F("created_at"))
    assert once_a_minute.delay("a").id != first.id


def test_what_is_refused_leaves_the_callers_transaction_whole():
    with transaction.atomic():
        first = once_while_waiting.delay("a")
        with pytest.raises(NotUnique):
            once_while_waiting.delay("a")
        with pytest.raises(DuplicateTask):
            echo.apply_async([1], task_id=first.id)
        echo.delay("more")
    assert objects.count() == 2


def test_many_are_submitted_together_or_not_at_all():
    with pytest.raises(NotUnique):
        CeleryClient().submit_many("sample.once_while_waiting", [(["a"], {}), (["b"], {}), (["a"], {})])
    assert not objects.exists()


def test_a_step_of_a_workflow_that_is_not_unique_is_recorded_as_revoked():
    first = once_while_waiting.delay("a")
    record = app.build_record("sample.once_while_waiting", ["a"], task_type=once_while_waiting)
    from tasks_app.gathering import Successors

    successors = Successors()
    successors.records.append(record)
    with transaction.atomic():
        app.submit_successors(successors, revoked=False)
    step = objects.get(task_id=record.task_id)
    assert (step.state, first.id in step.exc_message) == ("REVOKED", True)


@pytest.mark.parametrize(("unique", "says"), [("always", "'always'"), (0, "0"), (True, "True"), (-1, "-1")])
def test_a_declaration_that_means_nothing_is_named(unique, says, monkeypatch):
    monkeypatch.setattr(app.tasks[once_while_waiting.name], "unique", unique)
    assert says in problems(once_while_waiting)[0]


def test_an_argument_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(app.tasks[once_while_waiting.name], "unique_by", ["customer"])
    assert "customer" in problems(once_while_waiting)[0]


@pytest.mark.django_db(transaction=True)
def test_of_many_that_submit_the_same_at_once_one_wins():
    ids, refused = [], []
    start = threading.Barrier(8)

    def submit():
        start.wait(10)
        ids.append(echo.apply_async([1], idempotency_key="one").id)
        try:
            once_while_unfinished.delay("one")
        except NotUnique as error:
            refused.append(error.task_id)
        connection.close()

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(ids), len(set(ids)), len(refused), len(set(refused))) == (8, 1, 7, 1)
    assert objects.count() == 2
