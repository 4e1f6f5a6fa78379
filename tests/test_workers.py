"""Hooks around a worker's pool children."""

import asyncio
import time

import pytest

from tasks_app import workers
from tasks_app.client import CeleryClient


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
    async def wait():
        await asyncio.sleep(0.3)

    def block():
        time.sleep(0.3)

    CeleryClient.register_worker_hooks(on_shutdown=wait)
    CeleryClient.register_worker_hooks(on_shutdown=block)
    start = time.monotonic()
    workers.end_child()
    assert 0.3 <= time.monotonic() - start < 0.55


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
