"""Waiting for what a real worker does: each of Celery's ways, and what may go wrong meanwhile."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from celery import chain, chord, group
from celery import current_app as app
from celery.exceptions import TimeoutError
from django.db import OperationalError, connection, transaction
from django.db.backends.signals import connection_created

from tasks_app.client import CeleryClient
from tests.acceptance.processes import finished
from tests.sample.tasks import echo, fail, makes_two, reports, sleep, waits_for

pytestmark = pytest.mark.usefixtures("worker")
LIMIT = 20


def quickest(submit, times: int = 5) -> float:
    """Seconds from a submit to its result, on the best of several occasions: the machine may be busy."""
    took = []
    for _ in range(times):
        start = time.monotonic()
        submit().get(timeout=LIMIT)
        took.append(time.monotonic() - start)
    return min(took)


def cut_connection() -> None:
    """As a restart of Postgres does, this thread's alone."""
    pid = connection.connection.info.backend_pid
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def once(action):
    done = []
    return lambda: done or done.append(action())


def test_a_result_comes_in_much_less_than_half_a_second():
    assert quickest(lambda: echo.delay(1)) < 0.25
    client = CeleryClient()
    start = time.monotonic()
    assert client.get_result(client.submit("sample.echo", [2]).id, timeout=LIMIT) == 2
    assert time.monotonic() - start < LIMIT


def test_workflows_are_waited_for():
    assert chain(echo.s(1), echo.si(2), echo.si(3))().get(timeout=LIMIT) == 3
    assert chord([echo.s(n) for n in range(5)], echo.s())().get(timeout=LIMIT) == [0, 1, 2, 3, 4]
    assert group(echo.s(n) for n in range(20))().get(timeout=LIMIT) == list(range(20))
    nested = group(echo.s(0), group(echo.s(1), group(echo.s(2), echo.s(3))))()
    assert nested.get(timeout=LIMIT) == [0, 1, 2, 3]
    assert group(echo.s(n) for n in range(3))().join(timeout=LIMIT) == [0, 1, 2]


def test_a_saved_group_is_waited_for():
    result = group(echo.s(n) for n in range(3))()
    result.save()
    assert app.GroupResult.restore(result.id).get(timeout=LIMIT) == [0, 1, 2]


def test_a_failure_in_a_chain_or_a_group_is_raised_before_the_rest_has_ended():
    start = time.monotonic()
    with pytest.raises(ValueError, match="first"):
        chain(fail.si("first"), sleep.si(30))().get(timeout=LIMIT)
    result = group(sleep.s(3), fail.s("early"))()
    with pytest.raises(ValueError, match="early"):
        result.get(timeout=LIMIT)
    assert time.monotonic() - start < LIMIT
    assert not result.ready()
    assert finished(result[0]).state == "SUCCESS"


def test_a_failure_in_a_chords_header_is_raised_by_its_body():
    body = chord([echo.s(1), fail.s("in the header")], echo.s())()
    with pytest.raises(Exception, match="in the header"):
        body.get(timeout=LIMIT)


def test_results_are_given_as_they_end():
    result = group(sleep.s(1.5), echo.s("quick"))()
    assert [meta["result"] for _, meta in result.iter_native(timeout=LIMIT)] == ["quick", 1.5]


def test_what_a_task_has_sent_is_collected():
    result = makes_two.delay("x")
    ids = result.get(timeout=LIMIT)
    for task_id in ids:
        app.AsyncResult(task_id).get(timeout=LIMIT)
    assert [(each.id, value) for each, value in result.collect()][1:] == [(task_id, "x") for task_id in ids]


def test_progress_is_told_to_on_message():
    told = []
    reports.delay(3).get(timeout=LIMIT, on_message=lambda meta: told.append((meta["status"], meta["result"])))
    assert [status for status, _ in told][-1] == "SUCCESS"
    assert ("PROGRESS", {"step": 2}) in told


def test_a_task_can_wait_for_others_where_it_says_so():
    assert waits_for.delay("x", allowed=True).get(timeout=LIMIT) == [["x", "x"], "x"]
    with pytest.raises(RuntimeError, match=r"Never call result.get\(\) within a task"):
        waits_for.delay("x", allowed=False).get(timeout=LIMIT)


def test_a_wait_within_a_transaction_sees_what_ends_meanwhile():
    result, other = sleep.delay(0.5), sleep.delay(0.5)
    with transaction.atomic():
        echo.delay("another")
        assert result.get(timeout=LIMIT) == 0.5
        assert other.get() == 0.5


def test_a_wait_within_a_transaction_that_sees_nothing_new_ends_with_its_timeout():
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT 1 FROM django_celery_results_taskresult")
        result = []
        thread = threading.Thread(target=lambda: result.append(finished(echo.delay(1)).task_id) or connection.close())
        thread.start()
        thread.join(LIMIT)
        with pytest.raises(TimeoutError):
            app.AsyncResult(result[0]).get(timeout=0.3)
    assert app.AsyncResult(result[0]).get(timeout=LIMIT) == 1


def test_a_wait_goes_on_where_its_connection_is_cut():
    result = sleep.delay(1)
    assert app.backend.wait_for(result.id, timeout=LIMIT, on_interval=once(cut_connection))["result"] == 1
    result = group(sleep.s(1), echo.s(2))()
    assert result.get(timeout=LIMIT, on_interval=once(cut_connection)) == [1, 2]


def test_a_wait_within_a_transaction_ends_where_its_connection_is_cut():
    with pytest.raises(OperationalError), transaction.atomic():
        app.AsyncResult("never").get(timeout=LIMIT, on_interval=once(cut_connection))
    connection.close()


def test_a_database_that_stays_away_is_the_reason_of_the_timeout(monkeypatch):
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "PORT", "1")
    with pytest.raises(TimeoutError) as caught:
        app.AsyncResult("never").get(timeout=0.2)
    assert isinstance(caught.value.__cause__, OperationalError)


def test_each_thread_waits_by_one_connection_its_own():
    made, own, all_there = [], set(), threading.Barrier(10)
    results = [sleep.delay(0.3) for _ in range(10)]

    def note(**_):
        made.append(threading.get_ident())

    def wait(result):
        own.add(threading.get_ident())
        all_there.wait(LIMIT)
        try:
            return result.get(timeout=LIMIT)
        finally:
            connection.close()

    connection_created.connect(note)
    try:
        with ThreadPoolExecutor(len(results)) as pool:
            assert list(pool.map(wait, results)) == [0.3] * len(results)
    finally:
        connection_created.disconnect(note)
    assert sorted(thread for thread in made if thread in own) == sorted(own)
