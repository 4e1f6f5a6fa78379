"""Runs that end side by side in the threads of one process, by the one backend that they may share."""

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from celery import chord
from celery import current_app as app
from celery.app.task import Context
from django.db import connections

from tasks_app.models import TaskRecord
from tests.sample.tasks import echo

pytestmark = pytest.mark.usefixtures("committed")
objects = TaskRecord.objects
QUEUE = "read-by-nobody"


class HeldUp(Context):
    """The request of a run whose end stays where the backend asks for its group: amid the transaction, before it
    counts the run for its chord."""

    @property
    def group(self) -> str:
        self.is_there.set()
        assert self.goes_on.wait(10)
        return self.group_id


class LastMember:
    """A run that is the whole header of a chord, claimed and about to end."""

    def __init__(self):
        self.body = str(uuid4())
        chord([echo.s(1).set(queue=QUEUE)], echo.s().set(queue=QUEUE, task_id=self.body)).apply_async()
        record = objects.filter(queue=QUEUE).latest("pk")
        assert objects.claim(record.task_id, record.gen, "worker@host", 42)
        self.request = HeldUp(
            id=record.task_id, gen=record.gen, task=echo.name, group_id=record.group_id, root_id=record.root_id,
            chord=record.options["chord"], args=[1], kwargs={}, called_directly=False, claimed=True,
            is_there=threading.Event(), goes_on=threading.Event(),
        )  # fmt: skip

    def end(self, backend) -> None:
        try:
            backend.mark_as_done(self.request.id, 1, self.request)
        finally:
            connections.close_all()

    def has_body(self) -> bool:
        return objects.filter(task_id=self.body).exists()


def test_what_a_run_decides_is_its_own_while_another_ends_beside_it():
    first, second = LastMember(), LastMember()
    with ThreadPoolExecutor(2) as threads:
        endings = []
        for member in (first, second):
            endings.append(threads.submit(member.end, app.backend))
            assert member.request.is_there.wait(10)
        first.request.goes_on.set()
        endings[0].result(10)
        found = first.has_body(), second.has_body()
        second.request.goes_on.set()
        endings[1].result(10)
    assert found == (True, False)
    assert second.has_body()
