"""Bodies that are coroutines: what Django allows in their event loop, and in no other."""

import asyncio
import os

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction

from tasks_app.coroutines import awaited, close_event_loop
from tasks_app.models import TaskRecord
from tests.sample.tasks import echo

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def guarded(monkeypatch):
    """As Django is by itself, and with an event loop of the test's own."""
    monkeypatch.delenv("DJANGO_ALLOW_ASYNC_UNSAFE", raising=False)
    close_event_loop()
    yield
    close_event_loop()


async def sends() -> bool:
    with transaction.atomic():  # on a connection of the event loop's own, which no test's transaction takes back
        result = echo.delay(1)
        is_there = TaskRecord.objects.filter(task_id=result.id).exists()
        transaction.set_rollback(True)
        return is_there


async def counts() -> int:
    return TaskRecord.objects.count()


def test_a_body_may_use_the_database_without_await():
    assert awaited(sends())
    assert "DJANGO_ALLOW_ASYNC_UNSAFE" not in os.environ


def test_so_may_the_next_one_after_a_loop_was_closed():
    awaited(counts())
    close_event_loop()
    assert awaited(sends())


def test_another_event_loop_of_the_process_is_guarded_as_ever():
    awaited(counts())
    with pytest.raises(SynchronousOnlyOperation):
        asyncio.run(counts())
