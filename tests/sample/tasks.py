import asyncio
import os
import time

from asgiref.sync import sync_to_async
from celery import group, shared_task
from celery.exceptions import Ignore, Reject
from django.db import connection

from tasks_app.workers import register_worker_hooks

LEDGER = "CREATE TABLE IF NOT EXISTS ledger (tag text, pid int, at timestamptz DEFAULT clock_timestamp())"


@shared_task(name="sample.echo")
def echo(value):
    return value


@shared_task(name="sample.noop", ignore_result=True)
def noop():
    pass


@shared_task(name="sample.count")
def count(tag: str):
    """Leave one line in the ledger for each execution: the tests' truth about what ran."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO ledger (tag, pid) VALUES (%s, %s)", [tag, os.getpid()])


@shared_task(name="sample.fail")
def fail(message: str):
    raise ValueError(message)


@shared_task(name="sample.sleep")
def sleep(seconds: float):
    time.sleep(seconds)
    return seconds


@shared_task(name="sample.async_sleep")
async def async_sleep(seconds: float):
    await asyncio.sleep(seconds)
    return seconds


@shared_task(name="sample.flaky", bind=True, max_retries=3)
def flaky(self, failures: int, delay: float = 0.1):
    """Fail `failures` times, then tell how often it has been retried."""
    if self.request.retries < failures:
        raise self.retry(exc=ValueError(f"failure {self.request.retries + 1}"), countdown=delay)
    return self.request.retries


@shared_task(name="sample.replaced", bind=True)
def replaced(self, value):
    return self.replace(echo.s(value))


@shared_task(name="sample.ignored")
def ignored():
    raise Ignore("nothing to do")


@shared_task(name="sample.rejected")
def rejected():
    raise Reject("not mine", requeue=False)


@shared_task(name="sample.time_limited", time_limit=1)
def time_limited():
    time.sleep(60)


@shared_task(name="sample.pid")
def pid():
    return os.getpid()


async def child_started():
    print("sample hook: child started", flush=True)


def child_ended():
    print("sample hook: child ended", flush=True)


register_worker_hooks(on_startup=child_started, on_shutdown=child_ended)


@shared_task(name="sample.replaced_by_chain", bind=True)
def replaced_by_chain(self, value):
    return self.replace(echo.s(value) | echo.s())


@shared_task(name="sample.replaced_by_group", bind=True)
def replaced_by_group(self, value):
    return self.replace(group(echo.s(value), echo.s(value)))


@shared_task(name="sample.async_limited", soft_time_limit=1)
async def async_limited(tag: str):
    await asyncio.sleep(1.5)
    await sync_to_async(count)(tag)


@shared_task(name="sample.without_connection", bind=True)
def without_connection(self, value):
    """Lose the database while the body runs."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    with connection.copy().cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
    return value


@shared_task(name="sample.requeued")
def requeued(tag: str):
    count(tag)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ledger WHERE tag = %s", [tag])
        if cursor.fetchone()[0] == 1:
            raise Reject("not now", requeue=True)


@shared_task(name="sample.beside_itself", bind=True)
def beside_itself(self):
    echo.apply_async(["twice"], task_id=self.request.id)


@shared_task(name="sample.own_failure", bind=True)
def own_failure(self):
    self.update_state(state="FAILURE", meta={"why": "not today"})
    raise Ignore
