"""Submits no-op tasks one way, under whichever settings are named, and prints what that took.

python -m benchmarks.project.submitter {delay,send_task,submit_many} NUMBER
"""

import json
import sys
import time

import django

WARM_UP = 50


def submit(way: str, number: int) -> None:
    from celery import current_app

    from benchmarks.project.tasks import noop

    if way == "submit_many":
        from tasks_app.client import CeleryClient

        for start in range(0, number, 500):
            CeleryClient().submit_many("bench.noop", [([n], {}) for n in range(start, min(number, start + 500))])
    elif way == "send_task":
        for n in range(number):
            current_app.send_task("bench.noop", args=[n])
    else:
        for n in range(number):
            noop.delay(n)
    if "tasks_app.marking" in sys.modules:  # the marks of what is published belong to the price
        sys.modules["tasks_app.marking"].marker.flush()


def main(way: str, number: int) -> None:
    django.setup()
    submit(way, WARM_UP)
    clock, cpu = time.perf_counter(), time.process_time()
    submit(way, number)
    print(json.dumps({"wall": time.perf_counter() - clock, "cpu": time.process_time() - cpu}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
