"""Runs workflows of no-ops and waits for each, or just waits, under whichever settings are named.

python -m benchmarks.project.workflows run TIMES      prints {workflow: [milliseconds, …]}; TIMES of a small one
python -m benchmarks.project.workflows wait HOW SECONDS
"""

import json
import sys
import time
from contextlib import nullcontext

import django

LIMIT = 120


def run(times: int) -> dict[str, list[float]]:
    from celery import chain, chord, group

    from benchmarks.project.tasks import noop

    def many(number: int) -> list:
        return [noop.si() for _ in range(number)]

    few = max(times // 4, 1)
    workflows = {
        "no-op": (times, noop.delay),
        "chain of 5": (times, lambda: chain(many(5))()),
        "chord of 10": (times, lambda: chord(many(10), noop.si())()),
        "chain of 50": (few, lambda: chain(many(50))()),
        "group of 300": (few, lambda: group(many(300))()),
        "chord of 300": (few, lambda: chord(many(300), noop.si())()),
    }
    for _, submit in workflows.values():
        submit().get(timeout=LIMIT)
    return {name: [milliseconds(submit) for _ in range(repeats)] for name, (repeats, submit) in workflows.items()}


def milliseconds(submit) -> float:
    start = time.perf_counter()
    submit().get(timeout=LIMIT)
    return (time.perf_counter() - start) * 1e3


def wait(how: str, seconds: float) -> None:
    from celery import current_app as app
    from celery.exceptions import TimeoutError
    from django.db import transaction

    number = 300 if how == "for 300 results" else 1
    results = app.GroupResult("g", [app.AsyncResult(f"never {n}") for n in range(number)])
    with transaction.atomic() if how == "in a transaction" else nullcontext():
        try:
            (results if number > 1 else results[0]).get(timeout=seconds)
        except TimeoutError:
            return
    raise AssertionError("What nobody submitted has ended.")


if __name__ == "__main__":
    django.setup()
    if sys.argv[1] == "run":
        print(json.dumps(run(int(sys.argv[2]))))
    else:
        wait(sys.argv[2], float(sys.argv[3]))
