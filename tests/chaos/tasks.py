"""The tasks of the load. Each tells the ledger when a body begins and ends, on a connection of its own.

Each is there twice: as Celery has tasks by default, and as `…_again` with acks_late, which may be repeated.
"""

import functools
import os
import signal
import time
import uuid

from celery import shared_task

from tests.chaos import ledger

_RUN = """
INSERT INTO chaos.runs (run, edge, task_id, gen, attempt, retries, pid, at)
VALUES (%s, %s, %s, %s, %s, %s, %s, to_timestamp(%s)) ON CONFLICT DO NOTHING
"""


def both(name: str, **options):
    """Make two tasks of a body, `chaos.<name>` and `chaos.<name>_again`."""

    def register(body):
        @functools.wraps(body)
        def logged(self, *args, **kwargs):
            run = uuid.uuid4()
            _write(run, "start", self.request)
            result = body(self, *args, **kwargs)
            _write(run, "end", self.request)
            return result

        shared_task(name=f"chaos.{name}_again", bind=True, acks_late=True, **options)(logged)
        return shared_task(name=f"chaos.{name}", bind=True, **options)(logged)

    return register


def _write(run: uuid.UUID, edge: str, request) -> None:
    gen, attempt = getattr(request, "gen", None), getattr(request, "attempt", None)
    values = [run, edge, request.id, gen, attempt, request.retries, os.getpid(), time.time()]
    ledger.execute(_RUN, values)


@both("work")
def work(self, value, seconds=0.0):
    time.sleep(seconds)
    return value


@both("add")
def add(self, before, value, seconds=0.0):
    time.sleep(seconds)
    return before + value


@both("total")
def total(self, values, seconds=0.0):
    time.sleep(seconds)
    return sum(values)


@both("flaky", max_retries=3)
def flaky(self, failures, value, countdown=0.1):
    """Fail `failures` times; with more than three, for good."""
    if self.request.retries < failures:
        raise self.retry(exc=ValueError(f"failure {self.request.retries + 1}"), countdown=countdown)
    return value


@both("deadly")
def deadly(self, times, value):
    """Kill the process that runs it, `times` times."""
    sql = "SELECT FROM chaos.runs WHERE task_id = %s AND edge = 'start'"
    if ledger.execute(sql, [self.request.id]).rowcount <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


@both("limited", time_limit=1)
def limited(self):
    time.sleep(30)


@shared_task(name="chaos.tick", bind=True)
def tick(self, schedule):
    run = uuid.uuid4()
    _write(run, "start", self.request)
    _write(run, "end", self.request)
