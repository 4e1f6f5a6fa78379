import asyncio
import os
import resource
import signal
import time

from asgiref.sync import sync_to_async
from celery import group, shared_task
from celery.exceptions import Ignore, Reject
from celery.result import allow_join_result
from django.db import connection

from tasks_app.models import TaskRecord
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


@shared_task(name="sample.async_uses_orm")
async def async_uses_orm():
    """The number of tasks that run, counted in the loop's own thread and in that for the ORM."""
    running = TaskRecord.objects.filter(state="STARTED")
    assert running.count() == await running.acount()
    return await running.acount()


@shared_task(name="sample.flaky", bind=True, max_retries=3)
def flaky(self, failures: int, delay: float = 0.1):
    """Fail `failures` times, then tell how often it has been retried."""
    if self.request.retries < failures:
        raise self.retry(exc=ValueError(f"failure {self.request.retries + 1}"), countdown=delay)
    return self.request.retries


@shared_task(name="sample.due_time", bind=True)
def due_time(self, failures: int = 0, day: str = ""):
    """Fail `failures` times; then tell for when it was due, by its header and by its argument."""
    if self.request.retries < failures:
        raise ValueError(f"failure {self.request.retries + 1}")
    return [self.request.scheduled_for, day]


@shared_task(name="sample.async_sends")
async def async_sends(tag: str):
    count.delay(tag)


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


@shared_task(name="sample.request_attribute", bind=True, max_retries=3)
def request_attribute(self, name: str, retries: int = 0):
    """What a run is told under this name, after so many retries."""
    if self.request.retries < retries:
        raise self.retry(countdown=0.1)
    return getattr(self.request, name)


@shared_task(name="sample.pid")
def pid():
    return os.getpid()


def ledger_line(tag: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO ledger (tag, pid) VALUES (%s, %s)", [tag, os.getpid()])


@shared_task(name="sample.killed", bind=True, acks_late=True)
def killed(self, tag: str, runs: int = 1):
    """Kill its own process in its first `runs` runs."""
    ledger_line(tag)
    if self.request.attempt <= runs:
        os.kill(os.getpid(), signal.SIGKILL)
    return self.request.attempt


@shared_task(name="sample.killed_once_for_all")
def killed_once_for_all(tag: str):
    ledger_line(tag)
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(name="sample.late_sleep", acks_late=True)
def late_sleep(tag: str, seconds: float):
    ledger_line(tag)
    time.sleep(seconds)
    return seconds


@shared_task(name="sample.tagged_sleep")
def tagged_sleep(tag: str, seconds: float):
    ledger_line(tag)
    time.sleep(seconds)
    return seconds


@shared_task(name="sample.out_of_memory")
def out_of_memory():
    raise MemoryError("as by malloc")


@shared_task(name="sample.allocates")
def allocates(mebibytes: int):
    """Run into a limit of its process's memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**30, hard))
    try:
        return len(bytearray(mebibytes * 2**20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no repr")


@shared_task(name="sample.odd_result")
def odd_result(kind: str):
    cyclic: list = []
    cyclic.append(cyclic)
    return {
        "set": {1},
        "object": object(),
        "cyclic": cyclic,
        "unprintable": Unprintable(),
        "nul": "a\x00b",
        "surrogate": "a\ud800b",
        "nan": float("nan"),
        "bytes": b"\xff",
    }[kind]


@shared_task(name="sample.odd_failure")
def odd_failure():
    raise LookupError("nul \x00 and surrogate \ud800")


@shared_task(name="sample.text_of")
def text_of(length: int):
    return "x" * length


@shared_task(name="sample.stops_when_asked", bind=True)
def stops_when_asked(self, tag: str):
    ledger_line(tag)
    while not self.is_cancelled():
        time.sleep(0.05)
    return "stopped"


@shared_task(name="sample.retries_for_ever", bind=True, max_retries=None)
def retries_for_ever(self, tag: str):
    ledger_line(tag)
    time.sleep(0.3)
    raise self.retry(countdown=0.1)


@shared_task(name="sample.once_while_waiting", unique="waiting")
def once_while_waiting(value):
    return value


@shared_task(name="sample.once_while_unfinished", unique="unfinished", unique_by=["key"])
def once_while_unfinished(key, value=None):
    return value


@shared_task(name="sample.once_a_minute", unique=60)
def once_a_minute(value):
    return value


@shared_task(name="sample.new_errback")
def new_errback(request, exc, traceback):
    ledger_line(f"errback {request.id}")


if os.environ.get("SAMPLE_IS_NEW"):  # the next version of this app

    @shared_task(name="sample.new")
    def new(value):
        return value


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


@shared_task(name="sample.two_at_once", concurrency_limit=2, limit_key="two {tag}")
def two_at_once(tag: str, seconds: float = 0.2):
    """Leave a line in the ledger at the start, and one at the end."""
    count(f"+{tag}")
    time.sleep(seconds)
    count(f"-{tag}")


@shared_task(name="sample.ten_a_second", rate_limit="10/s", limit_key="ten {tag}")
def ten_a_second(tag: str):
    count(tag)


@shared_task(name="sample.one_at_once", bind=True, concurrency_limit=1, limit_key="one {tag}", max_retries=3)
def one_at_once(self, tag: str, failures: int = 0):
    """Fail `failures` times, each time to be retried in half a second."""
    count(f"{tag} {self.request.id} {self.request.retries}")
    if self.request.retries < failures:
        raise self.retry(countdown=0.5)


@shared_task(name="sample.waits_for")
def waits_for(value, allowed: bool):
    """Wait for two other tasks, within this one: as Celery allows it, or as it does not."""
    results = group(echo.s(value), echo.s(value)).apply_async()
    if not allowed:
        return results.get(timeout=10)
    with allow_join_result():
        return [results.get(timeout=10), echo.delay(value).get(timeout=10, disable_sync_subtasks=False)]


@shared_task(name="sample.makes_two", trail=True)
def makes_two(value):
    return [echo.delay(value).id, echo.delay(value).id]


@shared_task(name="sample.reports", bind=True)
def reports(self, steps: int):
    for step in range(steps):
        self.update_state(state="PROGRESS", meta={"step": step})
        time.sleep(0.3)


from tests.sample import behaving, instrumented, unchanged  # noqa: E402, F401
