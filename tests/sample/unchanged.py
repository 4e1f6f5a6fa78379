"""Tasks as others wrote them, for plain Celery: their base classes, hooks, errbacks and exceptions."""

import asyncio
import functools
import gc
import os
import resource
import signal
import threading
from contextvars import ContextVar

import celery
from celery import shared_task
from celery.exceptions import Reject
from django.db import connection
from pydantic import BaseModel

from tests.sample.tasks import ledger_line

#: What a web framework's middleware knows of its request, as tracing and tenancy libraries do.
tenant: ContextVar[str | None] = ContextVar("tenant", default=None)


def add_tenant(headers, **_):
    if tenant.get() is not None:
        headers["tenant"] = tenant.get()
        headers["announced"] = headers.get("announced", 0) + 1


class Plain(celery.Task):
    abstract = True


class OverridesAll(celery.Task):
    """A class of a library that knows nothing of the console, and calls `super` where it must only."""

    abstract = True

    def before_start(self, task_id, args, kwargs):
        ledger_line(f"before {task_id}")

    def __call__(self, *args, **kwargs):
        ledger_line(f"call {self.request.id}")
        return self.run(*args, **kwargs)

    def apply_async(self, args=None, kwargs=None, **options):
        return super().apply_async(args, kwargs, **{"headers": {"by": "library"}, **options})


class CallsSuper(celery.Task):
    abstract = True

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class Classy(celery.Task):
    name = "unchanged.classy"

    def run(self, tag):
        ledger_line(tag)
        return self.request.id


celery.current_app.register_task(Classy())


@shared_task(name="unchanged.plain", base=Plain, bind=True)
def plain(self, tag, failures=0):
    ledger_line(tag)
    if self.request.retries < failures:
        raise self.retry(countdown=0.1, max_retries=failures)
    return self.request.id


@shared_task(name="unchanged.plain_replaced", base=Plain, bind=True)
def plain_replaced(self, tag):
    raise self.replace(plain.s(tag))


@shared_task(name="unchanged.overriding", base=OverridesAll, bind=True)
def overriding(self, tag):
    ledger_line(tag)
    return [self.request.by, self.request.attempt]


@shared_task(name="unchanged.calls_super", base=CallsSuper, bind=True)
def calls_super(self, tag):
    ledger_line(tag)
    return self.request.id


@shared_task(name="unchanged.sees", bind=True)
def sees(self, *names):
    """What its request says."""
    return [getattr(self.request, name, None) for name in names]


@shared_task(name="unchanged.rejects_first", bind=True)
def rejects_first(self, tag):
    ledger_line(tag)
    if not self.request.delivery_info["redelivered"]:
        raise Reject("not yet", requeue=True)
    return "second"


@shared_task(name="unchanged.retries_without_raising", bind=True, max_retries=1)
def retries_without_raising(self, tag):
    ledger_line(tag)
    if self.request.retries == 0:
        self.retry(countdown=0, throw=False)
    return "done"


@shared_task(name="unchanged.bad_sql_errback")
def bad_sql_errback(request, exc, traceback):
    with connection.cursor() as cursor:
        cursor.execute("SELECT nonsense")


@shared_task(name="unchanged.count_errback")
def count_errback(request, exc, traceback):
    ledger_line(f"errback {request.id} {connection.in_atomic_block}")


@shared_task(name="unchanged.locking_errback")
def locking_errback(request, exc, traceback):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(4242)")
        cursor.execute("SELECT pg_advisory_unlock(4242)")
    ledger_line(f"locked {request.id}")


@shared_task(name="unchanged.ledger_errback")
def ledger_errback(name, day):
    """Takes two arguments, so Celery calls it in the run that failed, with its own ones."""
    ledger_line(f"{name.decode()} {day:%Y-%m-%d}")


@shared_task(name="unchanged.old_errback")
def old_errback(task_id):
    ledger_line(f"old errback {task_id}")


class TwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


@shared_task(name="unchanged.raises")
def raises(kind):
    class Local(Exception):
        pass

    raise {
        "two arguments": lambda: TwoArguments("one", "two"),
        "local": lambda: Local("here"),
        "group": lambda: ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
        "lock": lambda: ValueError(threading.Lock()),
        "key": lambda: KeyError("missing"),
    }[kind]()


@shared_task(name="unchanged.exits")
def exits(code):
    raise SystemExit(code)


class Answer(BaseModel):
    value: int


@shared_task(name="unchanged.pydantic_async", pydantic=True)
async def pydantic_async(answer: Answer) -> Answer:
    await asyncio.sleep(0)
    return Answer(value=answer.value + 1)


def traced(function):
    """A decorator that is a plain function, such as a tracing library's."""

    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


@shared_task(name="unchanged.decorated_async", autoretry_for=(ValueError,), retry_kwargs={"max_retries": 1})
@traced
async def decorated_async(value):
    await asyncio.sleep(0)
    return value


@shared_task(name="unchanged.retried_async", bind=True, autoretry_for=(ValueError,), default_retry_delay=0)
@traced
async def retried_async(self, value):
    await asyncio.sleep(0)
    if self.request.retries == 0:
        raise ValueError("once")
    return value


@shared_task(name="unchanged.returns_coroutine")
def returns_coroutine(value):
    async def later():
        return value

    return later()


@shared_task(name="unchanged.fails_with_much")
def fails_with_much(mebibytes):
    much = [bytes(2**20) for _ in range(mebibytes)]
    raise ValueError(len(much))


@shared_task(name="unchanged.peak")
def peak():
    """The most memory that this process has had, in MiB."""
    gc.collect()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@shared_task(name="unchanged.waits_for", bind=True)
def waits_for(self, tag, seconds):
    """Run until it is asked to stop, and succeed all the same."""
    ledger_line(tag)
    for _ in range(int(seconds * 50)):
        if self.is_cancelled():
            break
        threading.Event().wait(0.02)
    return tag


@shared_task(name="unchanged.killed_unless_redelivered", bind=True, acks_late=True)
def killed_unless_redelivered(self):
    if not self.request.delivery_info["redelivered"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return True


@shared_task(name="unchanged.killed_with_reject", bind=True, acks_late=True, reject_on_worker_lost=True)
def killed_with_reject(self):
    if self.request.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return True


@shared_task(name="unchanged.killed_with_retry", bind=True, retry_on_worker_lost=True, default_retry_delay=0)
def killed_with_retry(self):
    if self.request.retries == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return True


@shared_task(name="unchanged.counts")
def counts(tag):
    """How often it has run with this tag."""
    ledger_line(tag)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ledger WHERE tag = %s", [tag])
        return cursor.fetchone()[0]
