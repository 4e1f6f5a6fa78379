"""Schedules that fall due together, and an edit of one among many: when are their messages in the broker?"""

import random
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import psutil
from django.db import connection, transaction
from django.utils import timezone

from benchmarks.harness import Bar, Lab, cpu_seconds, median, print_table, spread, wait_until
from benchmarks.schedulers import (
    APS,
    BEAT,
    EDITS,
    LIST,
    OURS,
    TWO,
    WAYS,
    Drainer,
    Way,
    add_edited_ours,
    fill_ours,
)  # fmt: skip
from scheduling_app.models import Schedule, ScheduleRun
from tasks_app.models import TaskRecord

#: Schedules of the peer where the console has many.
FEW = 1_000
#: Rows that one transaction writes.
BATCH = 500
#: Seconds over which an idle scheduler's CPU is measured.
IDLE = 40


def measure(lab: Lab, runs: int, quick: bool, time_limit: float) -> tuple[dict, list[Bar]]:
    """`time_limit`: seconds after which a dispatch that is not over is given up, and what arrived is counted."""
    sizes = {1_000: 1} if quick else {1_000: runs, 10_000: runs}
    rows = 5_000 if quick else 50_000
    got: dict = {"dispatch": {size: {name: [] for name, way in WAYS.items() if size in way.sizes} for size in sizes}}
    for size, times in sizes.items():
        for _ in range(times):
            for name, figures in got["dispatch"][size].items():
                figures.append(dispatch(lab, WAYS[name], size, time_limit))
    got["edit"] = pick_up(lab, rows)
    sizes_of_many = (BEAT, FEW), (OURS, FEW), (OURS, 20_000 if quick else 1_000_000)
    got["many"] = [many(lab, name, number) for name, number in sizes_of_many]
    bars = [bar for size, ways in got["dispatch"].items() for bar in report(size, ways, time_limit)]
    return got, [*bars, *report_many(got["many"], got["edit"])]


def dispatch(lab: Lab, way: Way, number: int, time_limit: float) -> dict:
    """Have `number` schedules fall due at a full minute, which a crontab needs, with the scheduler long since up."""
    lab.empty()
    lab.quiet()
    lead = 10 + number / 1000  # seconds to fill, start and load
    due = (int(time.time() + lead) // 60 + 1) * 60
    way.fill(number, datetime.fromtimestamp(due, UTC))
    lab.sql("ANALYZE")
    command = [part.format(number=number, due=due) for part in way.command]
    with ExitStack() as stack:
        processes = [stack.enter_context(lab.process(*command, **way.environment)) for _ in range(way.processes)]
        drainer, ledger = stack.enter_context(Drainer(lab.valkey.url, way.key)), stack.enter_context(Ledger(way))
        time.sleep(max(0, due - 1 - time.time()))
        early, cpu = len(drainer.arrivals), sum(cpu_seconds(process.pid) for process in processes)
        lab.others()
        while drainer.count_to(number) < number and time.time() < due + time_limit:
            time.sleep(0.01)
        cpu, others = sum(cpu_seconds(process.pid) for process in processes) - cpu, lab.others()
    lags = [at - due for at in drainer.times() if at <= due + time_limit]
    committed = (ledger.reached(number) or float("inf")) - due
    figures = {
        "arrived": len(lags),
        "twice": len(drainer.arrivals) - len(drainer.times()),
        "early": early,
        "cpu": cpu,
        "others": others,
        "committed": committed,
        "rewritten": rewrite(lab) if way.fill is fill_ours else None,
    }
    return figures | {"lags": percentiles(lags, number)}


def rewrite(lab: Lab) -> float:
    """Seconds in which Django's own bulk_create writes the rows of a dispatch again: its tasks and its runs."""
    tasks = list(TaskRecord.objects.order_by("pk"))
    runs = list(ScheduleRun.objects.order_by("record__pk"))  # each with its task, which it points at
    lab.sql(f"TRUNCATE {TaskRecord._meta.db_table}, {ScheduleRun._meta.db_table} CASCADE")
    started = time.perf_counter()
    for start in range(0, len(tasks), BATCH):
        with transaction.atomic():
            TaskRecord.objects.bulk_create(tasks[start : start + BATCH])
            ScheduleRun.objects.bulk_create(runs[start : start + BATCH])
    return time.perf_counter() - started


class Ledger(threading.Thread):
    """Looks twenty times a second how many rows of runs are committed, where it is the console that writes them."""

    def __init__(self, way: Way):
        super().__init__(daemon=True)
        self.looks: list[tuple[float, int]] = []
        self._has_one, self._stopping = way.fill is fill_ours, threading.Event()

    def run(self) -> None:
        while self._has_one and not self._stopping.wait(0.05):
            self.looks.append((time.time(), ScheduleRun.objects.count()))
        connection.close()

    def reached(self, number: int) -> float | None:
        """When the rows were seen to be so many."""
        return next((at for at, count in self.looks if count >= number), None)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self._stopping.set()
        self.join()


def percentiles(lags: list[float], number: int) -> dict[str, float]:
    """Of all `number`: what never came is infinitely late."""
    lags = lags + [float("inf")] * (number - len(lags))
    return {"p50": lags[number // 2], "p99": lags[number * 99 // 100], "max": lags[-1]}


def many(lab: Lab, name: str, number: int) -> dict:
    """A scheduler among so many schedules, one of which is due at its start: its first firing, its idling, edits."""
    way = WAYS[name]
    lab.empty()
    way.fill_many(lab, number)
    lab.quiet()
    machine = {"django": median([start(lab) for _ in range(3)]), "query": query()}
    started = time.time()
    with lab.process(*way.command, **way.environment) as process, Drainer(lab.valkey.url, way.key) as drainer:
        wait_until(lambda: drainer.arrivals, 60, process)
        first = drainer.arrivals[0][0] - started
        time.sleep(5)
        cpu = cpu_seconds(process.pid)
        time.sleep(IDLE)
        cpu = (cpu_seconds(process.pid) - cpu) / IDLE * 100
        seconds = edits(way, drainer, process)
        memory = psutil.Process(process.pid).memory_info().rss
    figures = {"name": name, "number": number, "first": first, "cpu": cpu, "edits": seconds, "memory": memory / 1e6}
    return figures | machine


def pick_up(lab: Lab, rows: int) -> dict:
    """Edits of a few among schedules all of which have just been planned; the seconds that planning them took."""
    lab.empty()
    tomorrow = timezone.now() + timedelta(days=1)
    fill_ours(rows, tomorrow)
    add_edited_ours(tomorrow)
    lab.sql("ANALYZE")
    lab.quiet()
    with lab.process("manage.py", "runscheduler") as process, Drainer(lab.valkey.url, LIST) as drainer:
        started = time.time()
        wait_until(lambda: not Schedule.objects.filter(changed_at__isnull=False).exists(), 300, process)
        planned = time.time() - started
        return {"rows": rows, "edits": edits(WAYS[OURS], drainer, process), "planned": planned}


def edits(way: Way, drainer: Drainer, process) -> list[float]:
    """Another process makes schedules due, a twentieth of a second ahead: seconds from each edit to its message."""
    seconds = []
    for number in range(EDITS):
        time.sleep(random.uniform(0.5, 2.5))
        arrived, edited_at = len(drainer.arrivals), time.time()
        way.edit(f"edit {number}", timezone.now() + timedelta(seconds=0.05))
        wait_until(lambda before=arrived: len(drainer.arrivals) > before, 90, process)
        seconds.append(drainer.arrivals[arrived][0] - edited_at)
    return seconds


def report(size: int, ways: dict, time_limit: float) -> list[Bar]:
    def lags(name, which):
        return [min(run["lags"][which], time_limit) for run in ways[name]]

    def sooner(peer, than=OURS, which="max", of=median):
        return median(lags(peer, which)) / of(lags(than, which))

    print_table(
        f"{size:,} schedules due in the same second: seconds until their messages are in the broker",
        ["", "p50", "p99", "last", "rows committed", "by bulk_create", "twice", "arrived", "CPU s", "cores of others"],
        [
            [
                name,
                *(spread(lags(name, which), 2) for which in ("p50", "p99", "max")),
                *(
                    spread([run[which] for run in runs], 2) if WAYS[name].fill is fill_ours else ""
                    for which in ("committed", "rewritten")
                ),
                spread([run["twice"] for run in runs]),
                spread([run["arrived"] for run in runs]),
                spread([run["cpu"] for run in runs], 2),
                spread([run["others"] for run in runs], 1),
            ]
            for name, runs in ways.items()
        ],
    )
    if size == 1_000:
        return [Bar(f"{size:,} schedules: sooner than {BEAT}", sooner(BEAT), 5, at_least=True)]
    arrived = min(run["arrived"] for run in ways[OURS] + ways[TWO])
    written = max(run["committed"] / run["rewritten"] for run in ways[OURS] + ways[TWO])
    return [
        Bar(f"{size:,} schedules: dispatched", arrived, size, at_least=True, unit="messages"),
        Bar(f"{size:,} schedules: rows committed, to bulk_create, at worst", written, 1),
        Bar(f"{size:,} schedules: p99 at worst, sooner than {APS}", sooner(APS, OURS, "p99", max), 3, at_least=True),
        Bar(f"{size:,} schedules: p99 of two at worst, sooner", sooner(APS, TWO, "p99", max), 3, at_least=True),
        Bar(f"{size:,} schedules: sooner than {BEAT}, at least", sooner(BEAT), 20, at_least=True),
        Bar(f"{size:,} schedules: sooner than {APS}", sooner(APS), 4, at_least=True),
        Bar(f"{size:,} schedules: two sooner than {APS}", sooner(APS, TWO), 4, at_least=True),
    ]


_START = "import os, django; django.setup(); from django.db import connection; connection.connect(); os._exit(0)"


def start(lab: Lab) -> float:
    """Seconds in which a process of the console's does no more than set Django up and connect."""
    started = time.perf_counter()
    with lab.process("-c", _START) as process:
        process.wait(60)
        return time.perf_counter() - started


def query() -> float:
    """CPU seconds of the process that asks Postgres for one row by its key, as Django does it."""
    times, started = 2_000, time.process_time()
    for _ in range(times):
        Schedule.objects.filter(pk=0).first()
    return (time.process_time() - started) / times


def report_many(figures: list[dict], planned: dict) -> list[Bar]:
    beat, few, most = figures
    head = [
        "first firing, s",
        "Django's start, s",
        "idle CPU, % of a core",
        "a query's, ms",
        "an edit, s",
        "memory, MB",
    ]
    print_table(
        "A scheduler among many schedules",
        ["", "schedules", *head],
        [
            [
                each["name"], f"{each['number']:,}", f"{each['first']:.2f}", f"{each['django']:.2f}",
                f"{each['cpu']:.2f}", f"{each['query'] * 1e3:.2f}", spread(each["edits"], 3), f"{each['memory']:.0f}",
            ]
            for each in figures
        ],
    )  # fmt: skip
    rows = f"{planned['rows']:,}"
    print_table(
        f"An edit among {rows} schedules that were just planned: seconds until its message is in the broker",
        ["", "an edit, s", "planning them all, s"],
        [[OURS, spread(planned["edits"], 3), f"{planned['planned']:.1f}"]],
    )
    here, peer = f"{most['number']:,} schedules:", f"{BEAT} among {beat['number']:,}"
    sooner, at_worst = (median(beat["edits"]) / took for took in (median(most["edits"]), max(planned["edits"])))
    return [
        Bar(f"{here} start to first firing, to Django's start", most["first"] / most["django"], 3),
        Bar(f"{here} idle CPU, in queries", most["cpu"] / 100 / most["query"], 20, unit="a second"),
        Bar(f"{here} an edit, sooner than {peer}", sooner, 5, at_least=True),
        Bar(f"{rows} schedules: an edit at worst, sooner than {peer}", at_worst, 5, at_least=True),
        Bar(f"{here} memory more than with {few['number']:,}", most["memory"] - few["memory"], 10, unit="MB"),
    ]
