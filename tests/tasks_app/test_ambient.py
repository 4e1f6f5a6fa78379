"""What is known beside arguments: to its own thread or coroutine, within its block, and at most until the run ends."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery import current_app as app
from celery.app.trace import trace_task
from celery.signals import task_postrun

from tasks_app.ambient import Ambient, ambient, forget, having, keep
from tasks_app.models import TaskRecord


@pytest.fixture(autouse=True)
def nothing_is_left_to_others():
    yield
    forget()


def test_a_block_puts_back_what_it_found():
    with having(root_id="outer"):
        with pytest.raises(ZeroDivisionError), having(root_id="inner", held=[]):
            assert (ambient().root_id, ambient().held) == ("inner", [])
            raise ZeroDivisionError
        assert (ambient().root_id, ambient().held) == ("outer", None)


def test_what_is_kept_stands_until_it_is_forgotten():
    keep(root_id="kept")
    with having(held=[]):
        assert ambient() == Ambient(root_id="kept", held=[])
    assert ambient() == Ambient(root_id="kept")
    forget()


def test_two_threads_that_interleave_know_each_their_own():
    both_are_in = threading.Barrier(2, timeout=10)

    def known(name: str) -> list[str | None]:
        with having(root_id=name):
            both_are_in.wait()
            within = ambient().root_id
            both_are_in.wait()
        return [within, ambient().root_id]

    with having(root_id="of whoever started them"), ThreadPoolExecutor(2) as threads:
        assert list(threads.map(known, ["a", "b"])) == [["a", None], ["b", None]]


def test_two_coroutines_that_interleave_know_each_their_own():
    async def known(name: str) -> str | None:
        with having(root_id=name):
            await asyncio.sleep(0)
            return ambient().root_id

    async def both():
        return await asyncio.gather(known("a"), known("b"))

    assert asyncio.run(both()) == ["a", "b"]


@pytest.mark.django_db
@pytest.mark.parametrize(("name", "state"), [("sample.echo", "SUCCESS"), ("sample.fail", "FAILURE")])
def test_a_run_begins_with_nothing_and_leaves_nothing(name, state):
    TaskRecord.objects.insert([TaskRecord(task_id="t", name=name, args=["x"], queue="q", root_id="t")])
    seen = []

    @task_postrun.connect
    def see(**_):
        seen.append(ambient().root_id)

    keep(root_id="of a run that Celery gave up in between")
    request = {"id": "t", "gen": 1, "hostname": "worker@host", "delivery_info": {}}
    trace_task(app.tasks[name], "t", ["x"], {}, request, app=app)
    assert TaskRecord.objects.get().state == state
    assert seen == [None]
    assert ambient() == Ambient()
