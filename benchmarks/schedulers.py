"""The schedulers that are compared: how each is filled, started and edited; and when its messages are in the broker."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import redis
from django.conf import settings
from django.utils import timezone

from benchmarks.harness import PEER, Lab
from scheduling_app.models import Schedule

OURS, TWO, BEAT, APS = "runscheduler", "two of them", "django-celery-beat", "APScheduler in memory"
#: Schedules that are there to be edited: "edit 0", "edit 1" …
EDITS = 5
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


def fill_many_of_ours(lab: Lab, number: int) -> None:
    """One due now, the others later; by SQL and without the trigger, which would have each of them planned."""
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
    add_edited_ours(timezone.now() + timedelta(days=1))
    lab.sql("VACUUM ANALYZE scheduling_app_schedule")


def fill_many_of_beat(lab: Lab, number: int) -> None:
    """Likewise, in Beat's own way."""
    fill_beat(number, timezone.now() + timedelta(minutes=30))
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    often = IntervalSchedule.objects.create(every=2, period="hours")
    long_ago, now = timezone.now() - timedelta(hours=2), timezone.now()
    PeriodicTask.objects.create(name="due", task="bench.noop", interval=often, last_run_at=long_ago)
    for n in range(EDITS):
        PeriodicTask.objects.create(name=f"edit {n}", task="bench.noop", interval=often, last_run_at=now)


def add_edited_ours(run_at: datetime) -> None:
    names = [f"edit {n}" for n in range(EDITS)]
    Schedule.objects.bulk_create([Schedule(name=name, task="bench.noop", kind="date", run_at=run_at) for name in names])


def edit_ours(name: str, at: datetime) -> None:
    Schedule.objects.filter(name=name).update(run_at=at)


def edit_beat(name: str, at: datetime) -> None:
    from django_celery_beat.models import PeriodicTask

    task = PeriodicTask.objects.get(name=name)
    task.last_run_at = at - timedelta(hours=2)
    task.save()  # by which Beat is told


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
    #: Where a scheduler is measured among many schedules: what makes them, and what makes one of them due.
    fill_many: Callable[[Lab, int], None] | None = None
    edit: Callable[[str, datetime], None] | None = None


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
    OURS: Way(fill_ours, ["manage.py", "runscheduler"], LIST, {}, fill_many=fill_many_of_ours, edit=edit_ours),
    TWO: Way(fill_ours, ["manage.py", "runscheduler"], LIST, {}, processes=2, sizes=(10_000,)),
    BEAT: Way(fill_beat, BEAT_COMMAND, "celery", PEER, fill_many=fill_many_of_beat, edit=edit_beat),
    APS: Way(fill_none, ["-m", "benchmarks.peer.aps", "{number}", "{due}"], "celery", PEER, sizes=(10_000,)),
}
