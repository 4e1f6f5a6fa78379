"""A million schedules cost a scheduler what a thousand do: to start, to idle, and to see an edit.

In a database of its own. SCHEDULES=100000 tries another number; `-s` shows the figures.
"""

import os
import time
from dataclasses import dataclass
from datetime import timedelta

import psutil
import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.db.models.functions import Now
from django.utils import timezone

from scheduling_app.models import Schedule, ScheduleRun
from tests.acceptance.processes import Manage, eventually

pytestmark = pytest.mark.timeout(900)
FEW, MANY = 1000, int(os.environ.get("SCHEDULES", 1_000_000))
#: Seconds for which a scheduler is watched while it has nothing to do.
IDLE = 5


@pytest.fixture(scope="module")
def own_database(committed):
    """For this process, and for those that it starts."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE many")
    connections.close_all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(connection.settings_dict, "NAME", "many")
        patch.setenv("DATABASE_URL", os.environ["DATABASE_URL"].rpartition("/")[0] + "/many")
        call_command("migrate", verbosity=0)
        yield
        connections.close_all()
    with connection.cursor() as cursor:
        cursor.execute("DROP DATABASE many WITH (FORCE)")


@dataclass(frozen=True)
class Figures:
    """Seconds from the start to the first firing; share of a core that idling takes; bytes; seconds."""

    start: float
    idle: float
    resident: int
    edit: float


def make_schedules(number: int) -> None:
    """So many, as copies of one, none due within a year; without the trigger, which would have each planned."""
    one = Schedule.objects.create(
        name=f"the first of {number}", task="sample.noop", queue="nowhere", kind="interval", every=1, unit="days"
    )
    own = {"id", "name", "next_fire_at", "changed_at"}
    columns = ", ".join(field.column for field in Schedule._meta.concrete_fields if field.name not in own)
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(
            f"INSERT INTO scheduling_app_schedule ({columns}, name, next_fire_at) "
            f"SELECT {columns}, n || ' of ' || %s, now() + interval '1 year' + n * interval '1 second' "
            "FROM scheduling_app_schedule, generate_series(2, %s) AS n WHERE id = %s",
            [number, number, one.pk],
        )
        cursor.execute("SET session_replication_role = DEFAULT")
        cursor.execute("ANALYZE scheduling_app_schedule")


def measured() -> Figures:
    """With the schedules that there are, one of them due."""
    late, edited = Schedule.objects.order_by("-pk")[:2]
    Schedule.objects.filter(pk=late.pk).update(next_fire_at=Now(), changed_at=None)
    started_at = timezone.now()
    with Manage("runscheduler") as scheduler:
        start = fired_after(late, started_at)
        process = psutil.Process(scheduler.process.pid)
        time.sleep(2)
        before = process.cpu_times()
        time.sleep(IDLE)
        after, resident = process.cpu_times(), process.memory_info().rss
        asked_at = timezone.now()
        Schedule.objects.filter(pk=edited.pk).update(kind="date", run_at=asked_at + timedelta(seconds=0.1))
        edit = fired_after(edited, asked_at)
    return Figures(start, (after.user + after.system - before.user - before.system) / IDLE, resident, edit)


def fired_after(schedule: Schedule, moment) -> float:
    run = eventually(lambda: ScheduleRun.objects.filter(schedule=schedule, fired_at__gt=moment).first(), 20)
    return (run.fired_at - moment).total_seconds()


def test_a_million_schedules_cost_what_a_thousand_do(own_database):
    make_schedules(FEW)
    few = measured()
    make_schedules(MANY - FEW)
    many = measured()
    print(f"\n{FEW}: {few}\n{MANY}: {many}")
    # On a machine that has more to do, what a thousand cost is the measure.
    assert many.start < max(2, 2 * few.start)
    assert many.idle < max(0.01, few.idle + 0.005)
    assert many.resident - few.resident < 10 * 2**20
    assert many.edit < max(1, 2 * few.edit)
