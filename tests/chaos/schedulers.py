"""Schedulers alone, ill-treated over a hundred schedules: each due time has one row, and each that fired one task.

No worker runs: what was fired stays as it was written, and its message in the broker.
"""

import json
import random
import time
from collections.abc import Iterator
from datetime import datetime, timedelta

from redis import RedisError

from tests.chaos.cluster import Cluster
from tests.chaos.faults import LONGEST_FREEZE, Fault, Storm, queues
from tests.chaos.run import Report, Scenario, directory, set_up_django

#: Faults of a round, APART seconds from each other. It begins with a scheduler that is frozen while it has rows locked,
#: for longer than Postgres leaves such a transaction alone; until then nothing else ends its session.
ROUND = (
    "freeze scheduler in a transaction",
    *("kill scheduler", "drop listeners", "kill broker", "freeze scheduler", "kill scheduler", "drop listeners"),
    *("kill broker", "restart postgres", "drop sessions", "kill scheduler", "restart postgres"),
)
APART, FROZEN = 2.5, (17, 30)
#: Seconds from the start of the schedulers to the first due time.
AHEAD = 3


def run(scenario: Scenario, keep: bool = False) -> Report:
    """As run.run: in a fresh process."""
    began = time.monotonic()
    with directory(keep) as place, Cluster(place, dict(scenario.settings)) as cluster:
        cluster.make_tables(scenario.sql)
        set_up_django(cluster)
        for number in range(1, scenario.schedulers + 1):
            cluster.add(f"scheduler{number}", "manage.py", "runscheduler")
        cluster.wait_until_ready()
        until = _make_schedules(scenario.seconds)
        storm = Storm(cluster)
        storm.run(faults(scenario.seed, scenario.seconds), scenario.seconds + AHEAD)
        _settle(cluster, storm, until, scenario.settle)
        report = _judge(cluster, storm, scenario)
    report.seconds = time.monotonic() - began
    return report


def faults(seed: int, seconds: float) -> list[Fault]:
    rng = random.Random(f"schedulers {seed}")
    found = []
    for number in range(int(seconds / APART)):
        kind, dose = ROUND[number % len(ROUND)], rng.random()
        if number % len(ROUND) == 0:
            dose = FROZEN[number // len(ROUND) % 2] / LONGEST_FREEZE
        found.append(Fault(AHEAD + 0.5 + number * APART, kind, rng.randrange(2), round(dose, 3)))
    return found


def _make_schedules(seconds: float) -> datetime:
    """A hundred, of every kind, all from and until the same times; the last of these."""
    from django.utils import timezone

    from scheduling_app.models import Schedule

    start = timezone.now().replace(microsecond=0) + timedelta(seconds=AHEAD)
    end = start + timedelta(seconds=int(seconds))
    timings = [{"kind": "interval", "every": 1, "unit": "seconds"} for _ in range(40)]
    timings += [{"kind": "interval", "every": 2 + number % 4, "unit": "seconds"} for number in range(20)]
    timings += [{"kind": "cron", "cron": f"{number % 5}-59/{2 + number % 4} * * * * *"} for number in range(20)]
    timings += [{"kind": "date", "run_at": start + (end - start) * number / 20} for number in range(20)]
    for number, timing in enumerate(timings):
        catch_up = Schedule.CatchUp.ALL if number % 2 else Schedule.CatchUp.LATEST
        name = f"{number} {timing['kind']} {catch_up}"
        bounds = {} if timing["kind"] == "date" else {"start_at": start, "end_at": end}
        Schedule.objects.create(name=name, task="chaos.tick", args=[name], catch_up=catch_up, **timing, **bounds)
    return end


def _settle(cluster: Cluster, storm: Storm, until: datetime, patience: float) -> None:
    """Make everything healthy, and wait until all schedules are finished and all messages are in the broker."""
    from django.db import DatabaseError, connection

    give_up_at = until.timestamp() + patience
    while time.time() < give_up_at:
        storm.go_on()
        cluster.heal()
        try:
            if not list(_unfinished()) and not list(_unsent(cluster)):
                return
        except (DatabaseError, RedisError):
            connection.close()
        time.sleep(0.2)


def _judge(cluster: Cluster, storm: Storm, scenario: Scenario) -> Report:
    from scheduling_app.models import ScheduleRun
    from tasks_app.models import TaskRecord

    report = Report(scenario.seed, faults=[what for _, what in storm.done], notes=storm.notes)
    found = {
        "each schedule is finished": _unfinished(),
        "each due time has one row": _wrong_times(),
        "each row tells what became of it": _wrong_outcomes(),
        "each task is of one row, each row that fired has a task": _wrong_tasks(),
        "each task is published, and its message in the broker": _unsent(cluster),
    }
    for name, offenders in found.items():
        if listed := list(offenders):
            report.violations.append((name, len(listed), listed[:5]))
    report.statistics = {
        "tasks": TaskRecord.objects.count(),
        "starts": 0,
        "lost": 0,
        "due": ScheduleRun.objects.count(),
        "skipped": ScheduleRun.objects.filter(outcome="skipped").count(),
    }
    if report.violations:
        report.said = {name: program.said() for name, program in cluster.programs.items()}
    return report


def _unfinished() -> Iterator[str]:
    from scheduling_app.models import Schedule

    for schedule in Schedule.objects.exclude(next_fire_at=None, changed_at=None, problem=""):
        yield f"{schedule.name}: next {schedule.next_fire_at}, {schedule.problem or 'no problem'}"


def _wrong_times() -> Iterator[str]:
    from scheduling_app.models import Schedule

    for schedule in Schedule.objects.all():
        first = schedule.start_at or schedule.run_at
        expected = list(schedule.timing().times_after(first - timedelta(seconds=1)))
        found = list(schedule.runs.order_by("scheduled_for").values_list("scheduled_for", flat=True))
        for at in sorted(set(expected) ^ set(found)):
            yield f"{schedule.name}: {at:%H:%M:%S} {'has no row' if at in expected else 'was never due'}"
        if len(found) != len(set(found)):
            yield f"{schedule.name}: a due time has two rows"


def _wrong_outcomes() -> Iterator[str]:
    """Each fired; where only the latest missed time runs, the others were skipped for that."""
    from django.db.models import Q

    from scheduling_app.models import Schedule, ScheduleRun

    skipped = Q(outcome="skipped", reason="misfire", schedule__catch_up=Schedule.CatchUp.LATEST) & ~Q(detail="")
    for run in ScheduleRun.objects.exclude(Q(outcome="fired", record__isnull=False) | skipped):
        yield f"{run.schedule.name} at {run.scheduled_for:%H:%M:%S}: {run.outcome}, {run.reason}, {run.detail}"
    for schedule in Schedule.objects.all():
        if schedule.fired_count != (fired := schedule.runs.filter(outcome="fired").count()):
            yield f"{schedule.name} fired {fired} times, and counted {schedule.fired_count}"


def _wrong_tasks() -> Iterator[str]:
    from scheduling_app.models import ScheduleRun
    from tasks_app.models import TaskRecord

    for record in TaskRecord.objects.filter(schedule_run=None):
        yield f"{record.task_id} of {record.args} is of no row"
    for run in ScheduleRun.objects.filter(outcome="fired", record=None):
        yield f"{run.schedule.name} at {run.scheduled_for:%H:%M:%S} has no task"


def _unsent(cluster: Cluster) -> Iterator[str]:
    from tasks_app.models import TaskRecord

    with cluster.redis() as broker:
        held = {json.loads(message)["headers"]["id"] for key in queues(broker) for message in broker.lrange(key, 0, -1)}
    for record in TaskRecord.objects.all():
        if record.published_at is None or record.task_id not in held:
            yield f"{record.task_id}, gen {record.gen}, published at {record.published_at}"
