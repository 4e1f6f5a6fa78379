"""A worker with two processes: the queue is filled, then it starts; from WARM tasks done to the last one recorded."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import redis
from django.conf import settings

from benchmarks.harness import PEER, Bar, Lab, cpu_seconds, median, print_table, spread, wait_until
from tasks_app.client import CeleryClient
from tasks_app.marking import marker
from tasks_app.models import TaskRecord

WARM, COUNTED = 200, 100
OPTIONS = ["worker", "-c", "2", "-P", "prefork", "-l", "WARNING"]
#: kombu's key of a queue's list at the console's default priority.
LIST = f"{settings.CELERY_TASK_DEFAULT_QUEUE}\x06\x16{settings.CELERY_TASK_DEFAULT_PRIORITY}"


@dataclass(frozen=True)
class Way:
    environment: dict[str, str]
    #: How many tasks have their outcome stored.
    done: Callable[[], int]
    peer: bool = True

    @property
    def key(self) -> str:
        return "celery" if self.peer else LIST

    @property
    def command(self) -> list[str]:
        return ["-m", "celery", "-A", "benchmarks.peer", *OPTIONS] if self.peer else ["manage.py", "celery", *OPTIONS]


def ways(lab: Lab) -> dict[str, Way]:
    from django_celery_results.models import TaskResult

    results = redis.Redis.from_url(lab.results_url)
    rows = TaskResult.objects.filter(status="SUCCESS").count
    database = PEER | {"PEER_RESULT_BACKEND": "django-db"}
    return {
        OURS: Way({}, TaskRecord.objects.filter(state="SUCCESS").count, peer=False),
        BEST: Way(database | {"PEER_KEEPS_CONNECTION": "1"}, rows),
        DEFAULT: Way(database, rows),
        REDIS: Way(PEER | {"PEER_RESULT_BACKEND": lab.results_url}, results.dbsize),
    }


OURS = "the console"
BEST = "django-celery-results, connection kept"
DEFAULT = "django-celery-results, as it comes"
REDIS = "Celery, results in Redis"


def measure(lab: Lab, runs: int, quick: bool) -> tuple[dict, list[Bar]]:
    number = 1_500 if quick else 5_000
    got = {name: [] for name in ways(lab)}
    for _ in range(runs):
        for name, way in ways(lab).items():
            got[name].append(throughput(lab, way, number))
    statements = {name: count_statements(lab, way) for name, way in ways(lab).items()}
    return {"runs": got, "statements": statements}, report(got, statements, number)


def fill(lab: Lab, way: Way, number: int) -> None:
    if way.peer:
        lab.run("-m", "benchmarks.project.submitter", "delay", str(number), **PEER)
    else:
        CeleryClient().submit_many("bench.noop", [([n], {}) for n in range(number)])
        marker.flush()


def left(lab: Lab, way: Way) -> int:
    """Messages that no worker has begun with: those in the queue and those a worker has fetched."""
    with lab.broker.pipeline() as pipe:
        return sum(pipe.llen(way.key).hlen("unacked").execute())


def throughput(lab: Lab, way: Way, number: int) -> dict:
    lab.empty()
    fill(lab, way, number)
    total = left(lab, way)
    lab.quiet()
    with lab.process(*way.command, **way.environment) as process:
        pids = {"worker": process.pid, "postgres": lab.postgres.pid, "broker": lab.valkey.pid}
        wait_until(lambda: left(lab, way) <= total - WARM, 60, process)
        lab.others()
        tasks, started = left(lab, way), time.perf_counter()
        cpu = {name: cpu_seconds(pid) for name, pid in pids.items()}
        wait_until(lambda: left(lab, way) == 0, 180, process)
        wait_until(lambda: way.done() == total, 30, process)
        seconds = time.perf_counter() - started
        each = {name: (cpu_seconds(pid) - cpu[name]) / tasks * 1e3 for name, pid in pids.items()}
        return {"rate": tasks / seconds, "cpu": each, "others": lab.others()}


def count_statements(lab: Lab, way: Way) -> float:
    """Postgres statements a task, from the server's log; the worker is warm, BEGIN and COMMIT count.

    Of the console's worker those of its children count, which run tasks: its parent's relay looks once a second.
    """
    lab.empty()
    with lab.process(*way.command, **way.environment, PGOPTIONS="-c log_statement=all") as process:
        run_all(lab, way, process, WARM)
        with (lab.postgres.state / "log").open("rb") as log:
            log.seek(0, os.SEEK_END)
            finished = run_all(lab, way, process, COUNTED)
            said = re.findall(rb"\[(\d+)\] LOG:  (?:statement|execute [^:]*): \s*(\w+)( closed)?", log.read())
    children = {pid for pid, _, closed in said if way.peer or closed}
    return sum(pid in children for pid, _, _ in said) / finished


def run_all(lab: Lab, way: Way, process, number: int) -> int:
    """Have a running worker do that many, and perhaps a few more; how many it was."""
    before = way.done()
    fill(lab, way, number)
    wait_until(lambda: left(lab, way) == 0, 60, process)
    wait_until(lambda: way.done() >= before + number, 60, process)
    time.sleep(1)
    return way.done() - before


def report(got: dict, statements: dict, number: int) -> list[Bar]:
    rate = {name: [run["rate"] for run in runs] for name, runs in got.items()}
    ratio = {name: median(rate[OURS]) / median(rate[name]) for name in got}
    print_table(
        f"Worker: no-op tasks a second, {number:,} tasks, two processes",
        ["", "tasks/s", "console is", "CPU ms: worker", "Postgres", "broker", "statements", "cores of others"],
        [
            [
                name,
                spread(rate[name]),
                f"{ratio[name]:.2f} x",
                *(f"{median([run['cpu'][of] for run in runs]):.2f}" for of in ("worker", "postgres", "broker")),
                f"{statements[name]:.2f}",
                spread([run["others"] for run in runs], 1),
            ]
            for name, runs in got.items()
        ],
    )
    return [
        Bar(f"throughput to {BEST}", ratio[BEST], 1.6, at_least=True),
        Bar(f"throughput to {DEFAULT}", ratio[DEFAULT], 3, at_least=True),
        Bar(f"throughput to {REDIS}", ratio[REDIS], 0.75, at_least=True),
        Bar("Postgres statements of a task", statements[OURS], 2, unit="statements"),
        Bar("Postgres statements of a task", statements[OURS], 2, at_least=True, unit="statements"),
    ]
