"""Tasks for the tests of behaviour: exact retries, ordered answers, and traces that need no database."""

import time

from celery import shared_task

from tests.sample.tasks import ledger_line


@shared_task(name="sample.tries", bind=True)
def tries(self, tag: str, failures: int, limit: int, delay: float):
    """Leave a line in the ledger; fail in its first `failures` runs, to be retried at most `limit` times."""
    ledger_line(tag)
    if self.request.retries < failures:
        raise self.retry(exc=ValueError("the original error"), countdown=delay, max_retries=limit)
    return self.request.retries


@shared_task(name="sample.add")
def add(one, other):
    return one + other


@shared_task(name="sample.echo_after")
def echo_after(value, seconds: float):
    time.sleep(seconds)
    return value


@shared_task(name="sample.counted_sum")
def counted_sum(numbers: list, tag: str):
    ledger_line(tag)
    return sum(numbers)


@shared_task(name="sample.mark")
def mark(path: str, seconds: float = 0):
    """Leave a line in a file for each execution, where the ledger's database is what is away."""
    with open(path, "a") as lines:
        lines.write("run\n")
    time.sleep(seconds)
    return seconds
