"""Workflows of no-ops, from before the submit to the return of `get()`; and what processes that wait cost Postgres."""

import os
import re
import time
from collections import Counter
from contextlib import ExitStack

from benchmarks.harness import PEER, Bar, Lab, median, print_table, spread
from benchmarks.worker import OPTIONS

OURS, REDIS = "the console", "Celery, results in Redis"
#: At most how many times as long as with results in Redis.
LIMITS = {
    "no-op": 4, "chain of 5": 4, "chord of 10": 4, "chain of 50": 2, "group of 300": 1.5, "chord of 300": 1.5,
}  # fmt: skip
WAITS = ("for one result", "for 300 results", "in a transaction")
WAITERS = 100


def measure(lab: Lab, runs: int, quick: bool) -> tuple[dict, list[Bar]]:
    got: dict = {OURS: [], REDIS: []}
    for _ in range(runs):
        for name in got:
            got[name].append(took(lab, name == OURS, 8 if quick else 20))
    cost = waiting(lab, 1 if quick else 4, 60)
    return {"runs": got, "waiting": cost}, [*report(got), *report_waiting(cost)]


def took(lab: Lab, is_ours: bool, times: int) -> dict:
    """The median milliseconds of each workflow, with a worker of two processes that is warm."""
    environment = {} if is_ours else PEER | {"PEER_RESULT_BACKEND": lab.results_url}
    command = ["manage.py", "celery", *OPTIONS] if is_ours else ["-m", "celery", "-A", "benchmarks.peer", *OPTIONS]
    lab.empty()
    lab.quiet()
    with lab.process(*command, **environment):
        lab.others()
        each = lab.run("-m", "benchmarks.project.workflows", "run", str(times), **environment)
        return {name: median(figures) for name, figures in each.items()} | {"others": lab.others()}


def waiting(lab: Lab, number: int, seconds: int) -> dict[str, dict[str, float]]:
    """What it costs that so many processes wait so long, each way: statements, from the log, and connections."""
    lab.empty()
    ways_of: dict[int, str] = {}  # by the process of Postgres
    most = dict.fromkeys(WAITS, 0)
    with (lab.postgres.state / "log").open("rb") as log, ExitStack() as processes:
        log.seek(0, os.SEEK_END)
        waiters = [processes.enter_context(waiter(lab, how, seconds)) for how in WAITS for _ in range(number)]
        while any(each.poll() is None for each in waiters):
            open_now = connections()
            ways_of |= open_now
            most = {how: max(most[how], list(open_now.values()).count(how)) for how in WAITS}
            time.sleep(0.1)
        if any(each.returncode for each in waiters):
            raise RuntimeError("A process that waits has failed.")
        pids = re.findall(rb"\[(\d+)\] LOG:  (?:statement|execute [^:]*): ", log.read())
    statements = Counter(ways_of.get(int(pid)) for pid in pids)
    return {
        how: {"statements": statements[how] / number / seconds * WAITERS, "connections": most[how] / number}
        for how in WAITS
    }


def waiter(lab: Lab, how: str, seconds: int):
    environment = {"PGOPTIONS": "-c log_statement=all", "PGAPPNAME": how}
    return lab.process("-m", "benchmarks.project.workflows", "wait", how, str(seconds), **environment)


def connections() -> dict[int, str]:
    """Those of processes that wait: how they do it, by the process of Postgres."""
    from django.db import connection

    with connection.cursor() as cursor:
        waiting = "SELECT pid, application_name FROM pg_stat_activity WHERE application_name = ANY(%s)"
        cursor.execute(waiting, [list(WAITS)])
        return dict(cursor.fetchall())


def report(got: dict) -> list[Bar]:
    figures = {name: {of: [run[of] for run in runs] for of in (*LIMITS, "others")} for name, runs in got.items()}
    ratio = {of: median(figures[OURS][of]) / median(figures[REDIS][of]) for of in LIMITS}
    print_table(
        "Workflows: milliseconds from the submit to the result, two processes",
        ["", *got, "ratio"],
        [
            *([of, *(spread(figures[name][of], 1) for name in got), f"{ratio[of]:.2f}"] for of in LIMITS),
            ["cores of others", *(spread(figures[name]["others"], 1) for name in got), ""],
        ],
    )
    return [Bar(f"{of} to {REDIS}", ratio[of], limit) for of, limit in LIMITS.items()]


def report_waiting(cost: dict) -> list[Bar]:
    print_table(
        f"Waiting: what {WAITERS} processes cost Postgres",
        ["", "statements/s", "connections each"],
        [[how, f"{each['statements']:,.0f}", f"{each['connections']:.1f}"] for how, each in cost.items()],
    )
    most = {of: max(each[of] for each in cost.values()) for of in ("statements", "connections")}
    return [
        Bar(f"statements of {WAITERS} processes that wait", most["statements"], 500, unit="a second"),
        Bar("connections of a process that waits", most["connections"], 1, unit="connections"),
    ]
