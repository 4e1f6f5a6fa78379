"""Schedules that fall due together, and an edit of one among many: when are their messages in the broker?"""

import json
import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psutil
import redis
from django.conf import settings
from django.db import connection
from django.utils import timezone

from benchmarks.harness import PEER, Bar, Lab, cpu_seconds, median, print_table, spread, wait_until
from scheduling_app.models import Schedule, ScheduleRun

OURS, TWO, BEAT, APS = "runscheduler", "two of them", "django-celery-beat", "APScheduler in memory"
EDITS = 5
#: Seconds over which an idle scheduler's CPU is measured.
IDLE = 40
#: kombu's key of the list that fired tasks go to.
LIST = f"{settings.CRON_QUEUE}\x06\x16{settings.CELERY_TASK_DEFAULT_PRIORITY}"


class Drainer(threading.Thread):
    """Empties a list of the broker every few milliseconds, and notes when each message was found there."""

    def __init__(self, url: str, key: str):
        super().__init__(daemon=True)
        self.broker, self.key = redis.Redis.from_url(url), key
        self.arrivals: list[tuple[float, bytes]] = []
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.is_set():
            messages = self.broker.rpop(self.key, 1000) or []
            now = time.time()
            self.arrivals += [(now, message) for message in messages]
            if not messages:
                self._stopping.wait(0.004)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self._stopping.set()
        self.join()

    def count_to(self, number: int) -> int:
        """How many tasks have come; roughly, before they may be that many."""
        arrived = len(self.arrivals)
        return arrived if arrived < number else len(self.times())

    def times(self) -> list[float]:
        """When each task first came; a message that came twice counts once."""
        first: dict[str, float] = {}
        for at, message in self.arrivals:
            first.setdefault(json.loads(message)["headers"]["id"], at)
        return sorted(first.values())


def fill_ours(number: int, due: datetime) -> None:
    """Half by interval, half by cron, all of them due at that time."""
    cron = {"kind": "cron", "cron": f"{due.minute} {due.hour} * * *"}
    interval = {"kind": "interval", "every": 1, "unit": "hours", "start_at": due - timedelta(hours=1)}
    Schedule.objects.bulk_create(
        [
            Schedule(name=f"t{n}", task="bench.noop", args=[n], timezone="UTC", **(cron if n % 2 else interval))
            for n in range(number)
        ],
        batch_size=2000,
    )


def fill_beat(number: int, due: datetime) -> None:
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

    crontab = CrontabSchedule.objects.create(minute=due.minute, hour=due.hour, timezone="UTC")
    interval = IntervalSchedule.objects.create(every=1, period="hours")
    cron = {"crontab": crontab, "last_run_at": timezone.now()}
    every = {"interval": interval, "last_run_at": due - timedelta(hours=1)}
    PeriodicTask.objects.bulk_create(
        [
            PeriodicTask(name=f"t{n}", task="bench.noop", args=f"[{n}]", **(cron if n % 2 else every))
            for n in range(number)
        ],
        batch_size=2000,
    )


def fill_none(number: int, due: datetime) -> None:
    """What keeps its schedules in memory fills itself."""


@dataclass(frozen=True)
class Way:
    fill: Callable[[int, datetime], None]
    command: list[str]
    key: str
    environment: dict[str, str]
    processes: int = 1
    #: Sizes that it is measured at; all, if not told.
    sizes: tuple[int, ...] = (1_000, 10_000)


DATABASE_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
BEAT_COMMAND = [
    "-m",
    "celery",
    "-A",
    "benchmarks.peer",
    "beat",
    "-l",
    "WARNING",
    "--pidfile=",
    "-S",
    DATABASE_SCHEDULER,
]
WAYS = {
    OURS: Way(fill_ours, ["manage.py", "runscheduler"], LIST, {}),
    TWO: Way(fill_ours, ["manage.py", "runscheduler"], LIST, {}, processes=2, sizes=(10_000,)),
    BEAT: Way(fill_beat, BEAT_COMMAND, "celery", PEER),
    APS: Way(fill_none, ["-m", "benchmarks.peer.aps", "{number}", "{due}"], "celery", PEER, sizes=(10_000,)),
}


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
    got["many"] = {number: many(lab, number) for number in ((1_000, 20_000) if quick else (1_000, 1_000_000))}
    bars = [bar for size, ways in got["dispatch"].items() for bar in report(size, ways, time_limit)]
    print_table(
        f"An edit among {rows:,} schedules: seconds until its message is in the broker",
        ["", "seconds", "planning them all"],
        [[OURS, spread(got["edit"]["seconds"], 3), f"{got['edit']['planned']:.1f} s"]],
    )
    bars.append(Bar(f"an edit's pick-up among {rows:,}, at worst", max(got["edit"]["seconds"]), 1, unit="s"))
    return got, bars + report_many(got["many"])


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
    }
    return figures | {"lags": percentiles(lags, number)}


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


def many(lab: Lab, number: int) -> dict:
    """A scheduler among so many schedules, one of which is due at its start: its first firing, and then its idling."""
    lab.empty()
    lab.sql(f"""
        SET session_replication_role = replica;
        INSERT INTO scheduling_app_schedule (
            name, description, task, args, kwargs, headers, due_kwarg, queue, kind, cron, unit, timezone, jitter,
            catch_up, overlap, max_instances, blackout_action, enabled, next_fire_at
        )
        SELECT 't' || n, '', 'bench.noop', '[1]', '{{}}', '{{}}', '', '', 'cron', '0 0 1 1 *', 'minutes', 'UTC', 0,
            'latest', 'allow', 1, 'skip', true, now() + interval '1 day' + n * interval '1 s'
        FROM generate_series(1, {number}) AS n;
        UPDATE scheduling_app_schedule SET next_fire_at = now() WHERE name = 't1';
        SET session_replication_role = DEFAULT;
    """)
    lab.sql("VACUUM ANALYZE scheduling_app_schedule")
    lab.quiet()
    started = time.time()
    with lab.process("manage.py", "runscheduler") as process, Drainer(lab.valkey.url, LIST) as drainer:
        wait_until(lambda: drainer.arrivals, 60, process)
        first = drainer.arrivals[0][0] - started
        time.sleep(5)
        cpu = cpu_seconds(process.pid)
        time.sleep(IDLE)
        cpu = (cpu_seconds(process.pid) - cpu) / IDLE * 100
        edited_at = time.time()
        Schedule.objects.filter(name="t2").update(kind="date", run_at=timezone.now() + timedelta(seconds=0.05))
        wait_until(lambda: len(drainer.arrivals) > 1, 60, process)
        memory = psutil.Process(process.pid).memory_info().rss
    return {"first": first, "cpu": cpu, "edit": drainer.arrivals[1][0] - edited_at, "memory": memory / 1e6}


def report_many(got: dict[int, dict]) -> list[Bar]:
    columns = ("first", "cpu", "edit", "memory")
    print_table(
        "A scheduler among many schedules",
        ["schedules", "start to first firing, s", "idle CPU, % of a core", "an edit, s", "memory, MB"],
        [[f"{number:,}", *(f"{figures[name]:.2f}" for name in columns)] for number, figures in got.items()],
    )
    few, most = got[min(got)], got[max(got)]
    here = f"{max(got):,} schedules:"
    return [
        Bar(f"{here} start to first firing", most["first"], 2, unit="s"),
        Bar(f"{here} idle CPU", most["cpu"], 1, unit="% of a core"),
        Bar(f"{here} an edit", most["edit"], 1, unit="s"),
        Bar(f"{here} memory more than with {min(got):,}", most["memory"] - few["memory"], 10, unit="MB"),
    ]


def pick_up(lab: Lab, rows: int) -> dict:
    """Another process makes one schedule due, a twentieth of a second ahead: the time from that edit to its message."""
    lab.empty()
    tomorrow = timezone.now() + timedelta(days=1)
    fill_ours(rows, tomorrow)
    dates = [Schedule(name=f"edit {n}", task="bench.noop", kind="date", run_at=tomorrow) for n in range(EDITS)]
    Schedule.objects.bulk_create(dates)
    lab.sql("ANALYZE")
    lab.quiet()
    seconds = []
    with lab.process("manage.py", "runscheduler") as process, Drainer(lab.valkey.url, LIST) as drainer:
        started = time.time()
        wait_until(lambda: not Schedule.objects.filter(changed_at__isnull=False).exists(), 300, process)
        planned = time.time() - started
        for number, schedule in enumerate(dates, start=1):
            time.sleep(random.uniform(0.5, 2.5))
            edited_at = time.time()
            Schedule.objects.filter(pk=schedule.pk).update(run_at=timezone.now() + timedelta(seconds=0.05))
            wait_until(lambda expected=number: len(drainer.arrivals) >= expected, 90, process)
            seconds.append(drainer.arrivals[-1][0] - edited_at)
    return {"rows": rows, "seconds": seconds, "planned": planned}


def report(size: int, ways: dict, time_limit: float) -> list[Bar]:
    def lags(name, which):
        return [min(run["lags"][which], time_limit) for run in ways[name]]

    def sooner(peer, than=OURS):
        return median(lags(peer, "max")) / median(lags(than, "max"))

    print_table(
        f"{size:,} schedules due in the same second: seconds until their messages are in the broker",
        ["", "p50", "p99", "last", "rows committed", "twice", "arrived", "CPU s", "cores of others"],
        [
            [
                name,
                *(spread(lags(name, which), 2) for which in ("p50", "p99", "max")),
                spread([run["committed"] for run in runs], 2) if WAYS[name].fill is fill_ours else "",
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
    committed = max(run["committed"] for run in ways[OURS] + ways[TWO])
    return [
        Bar(f"{size:,} schedules: dispatched", arrived, size, at_least=True, unit="messages"),
        Bar(f"{size:,} schedules: rows committed, at worst", committed, 2, unit="s"),
        Bar(f"{size:,} schedules: p99 of one scheduler, at worst", max(lags(OURS, "p99")), 5, unit="s"),
        Bar(f"{size:,} schedules: p99 of two, at worst", max(lags(TWO, "p99")), 3, unit="s"),
        Bar(f"{size:,} schedules: sooner than {BEAT}, at least", sooner(BEAT), 20, at_least=True),
        Bar(f"{size:,} schedules: sooner than {APS}", sooner(APS), 4, at_least=True),
        Bar(f"{size:,} schedules: two sooner than {APS}", sooner(APS, TWO), 4, at_least=True),
    ]
