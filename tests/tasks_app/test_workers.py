"""Hooks around a worker's pool children."""

import asyncio
import logging
import threading
from functools import partial

import pytest
from celery import Celery, current_app
from celery.contrib.testing.worker import start_worker
from django.db import connection

from tasks_app import workers
from tasks_app.client import CeleryClient
from tasks_app.marking import Marker, marker
from tests.acceptance.processes import eventually
from tests.sample.tasks import async_uses_orm, echo, flaky


@pytest.fixture
def hooks(monkeypatch):
    """No hooks registered; pool and database of this process are left alone."""
    monkeypatch.setattr(workers, "_on_startup", [])
    monkeypatch.setattr(workers, "_on_shutdown", [])
    for name in ("open_database", "open_broker", "close_database", "close_broker"):
        monkeypatch.setattr(workers, name, lambda: None)


def test_functions_and_coroutines_run_in_order_each_once(hooks):
    ran = []

    def first():
        ran.append("first")

    async def second():
        ran.append("second")

    for _ in range(2):
        CeleryClient.register_worker_hooks(on_startup=first)
        CeleryClient.register_worker_hooks(on_startup=second)
    workers.start_child()
    assert ran == ["first", "second"]


def test_shutdown_hooks_run_at_the_same_time(hooks):
    both = threading.Barrier(2, timeout=20)

    async def wait():
        await asyncio.to_thread(both.wait)

    CeleryClient.register_worker_hooks(on_shutdown=wait)
    CeleryClient.register_worker_hooks(on_shutdown=both.wait)
    workers.end_child()
    assert not both.broken


def test_a_hook_that_raises_does_not_keep_the_others_from_running(hooks, caplog):
    ran = []

    def broken():
        raise RuntimeError("no connection")

    workers.register_worker_hooks(on_startup=broken, on_shutdown=broken)
    workers.register_worker_hooks(on_startup=lambda: ran.append("start"), on_shutdown=lambda: ran.append("end"))
    workers.start_child()
    workers.end_child()
    assert ran == ["start", "end"]
    assert len(caplog.records) == 2


APP = current_app._get_current_object()


def sessions() -> set[int]:
    """Of others than this thread."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return {pid for (pid,) in cursor.fetchall()}


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


@pytest.fixture
def log_level():
    """As it was before a worker set it for its own."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)


@pytest.fixture
def marks_by_thread(marks_at_once, monkeypatch):
    """What is published is marked as it is outside of tests, and the connection for that kept for long."""
    monkeypatch.setattr(Marker, "IDLE", 60)
    monkeypatch.setattr(marker, "add", partial(Marker.add, marker))


@pytest.mark.usefixtures("log_level", "marks_by_thread")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_worker_within_a_test_has_all_that_ours_have_and_leaves_no_session(pool):
    before = sessions()
    with start_worker(APP, pool=pool, concurrency=2, perform_ping_check=False):
        assert {"relay", "leases"} <= names()
        assert async_uses_orm.delay().get(timeout=20) == 1
        assert flaky.apply_async((1, 0.1), countdown=0.1).get(timeout=20) == 1
    assert not {"relay", "leases"} & names()
    eventually(lambda: sessions() <= before, what="no new session")


@pytest.mark.usefixtures("log_level")
@pytest.mark.django_db(transaction=True)
def test_another_apps_worker_in_the_process_is_none_of_our_business(capfd, monkeypatch):
    monkeypatch.delenv("CELERY_BROKER_URL")
    plain = Celery("plain", set_as_current=False, fixups=[], broker="memory://", backend="cache+memory://")
    plain.conf.task_default_queue = "plain"

    @plain.task(name="plain.add", shared=False)
    def add(a, b):
        return a + b

    try:
        with start_worker(APP, perform_ping_check=False), start_worker(plain, perform_ping_check=False):
            assert add.delay(1, 2).get(timeout=20) == 3
            APP.set_current()
            assert echo.apply_async((1,), countdown=0.1).get(timeout=20) == 1
    finally:
        APP.set_current()
        APP.set_default()
        plain.close()
    said = capfd.readouterr().err  # not caplog: each worker sets up logging anew
    assert [line for line in said.splitlines() if "ERROR" in line or "WARNING" in line or "tasks_app" in line] == []
