"""No statement of a scheduler reads a whole table: each is caught when it is executed, and Postgres asked how."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from celery import current_app as app
from django.db import connection
from django.utils import timezone

from scheduling_app.jobstore import ScheduleJobStore
from scheduling_app.ledger import backfill, firing
from scheduling_app.ledger.marks import runs_of
from scheduling_app.models import Backfill, Calendar, Schedule, ScheduleRun
from scheduling_app.states import STATES, rows_of
from tasks_app import limits, moves, statements, states
from tasks_app.models import TaskRecord
from tasks_app.relay import due, rescue
from tasks_app.relay.census import Census

pytestmark = pytest.mark.django_db

SCHEDULES, EACH = 20_000, 3
TABLES = "scheduling_app_schedule|scheduling_app_schedulerun|tasks_app_taskrecord"


@pytest.fixture(autouse=True)
def _unpublished(monkeypatch):
    monkeypatch.setattr(app, "publish", lambda records: None)


@pytest.fixture(params=["SUCCESS", "PENDING"])
def many(request):
    """Schedules of every policy, a few of them due or changed, with runs, some of which wait, and backfills.

    Their tasks have ended, or else no worker has run for long.
    """
    calendar = Calendar.objects.create(name="nights")
    calendar.windows.create(cron="0 1 * * *", minutes=60)
    first = Schedule.objects.create(
        name="0", task="sample.echo", args=[1], kind="interval", every=1, unit="minutes", pause_after_failures=2
    )
    task = TaskRecord.objects.get(task_id=app.send_task("sample.echo", [1]).id)
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")  # no triggers
        copy(cursor, first, SCHEDULES, name="n::text", changed_at="NULL", next_fire_at="now() + n * interval '1 s'")
        state = {"state": f"'{request.param}'", "publish_at": "NULL", "published_at": "now()"}
        state |= {"finished_at": "now()"} if request.param in states.READY_STATES else {}
        copy(cursor, task, SCHEDULES * EACH, task_id="'task ' || n", root_id="'task ' || n", **state)
        cursor.execute(RUNS, [EACH, EACH])
    Schedule.objects.filter(pk=first.pk).update(blackout=calendar)
    rows = Schedule.objects.order_by("pk").values_list("pk", flat=True)
    policies = list(Schedule.Overlap)
    for number, pk in enumerate(rows[:20]):
        fields = {"next_fire_at": timezone.now() - timedelta(minutes=number), "changed_at": None}
        Schedule.objects.filter(pk=pk).update(overlap=policies[number % len(policies)], blackout=calendar, **fields)
    Schedule.objects.filter(pk__in=rows[100:110]).update(changed_at=timezone.now())
    queued = Schedule.objects.filter(pk__in=rows[200:210])
    queued.update(overlap="queue_all")
    unfinished = TaskRecord.objects.filter(schedule_run__schedule__in=rows[200:205]).values("pk")
    TaskRecord.objects.filter(pk__in=unfinished).update(state="STARTED", finished_at=None)
    ScheduleRun.objects.filter(schedule__in=queued).update(outcome="waiting")
    for schedule in Schedule.objects.filter(pk__in=rows[300:303]):
        since = timezone.now() - timedelta(hours=2)
        backfill.start(schedule, backfill.due_times(schedule, since, timezone.now()), concurrency=2)
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {TABLES.replace('|', ', ')}, scheduling_app_backfill")
    return first


def copy(cursor, row, number: int, **changes: str) -> None:
    """So many copies of a row, with other values: SQL, in which `n` counts them."""
    table, columns = row._meta.db_table, [field.column for field in row._meta.concrete_fields if not field.primary_key]
    values = [f"({changes[column]})" if column in changes else column for column in columns]
    cursor.execute(
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} "
        f"FROM {table}, generate_series(1, {number}) AS n WHERE id = {row.pk}"
    )


#: For each schedule so many runs, each with a task.
RUNS = """
INSERT INTO scheduling_app_schedulerun (schedule_id, scheduled_for, fired_at, outcome, reason, detail, record_id)
SELECT id, now() - m * interval '1 hour', now(), 'fired', 'due', '', 'task ' || name::int * %s - m + 1
FROM scheduling_app_schedule, generate_series(1, %s) AS m WHERE name <> '0'
"""


@pytest.fixture
def plans_of(monkeypatch):
    """A function: what an action executes, and Postgres' plans for it."""
    found: list[tuple[str, str]] = []
    execute_past_django = statements.execute

    def explain(sql, params):
        if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", sql):
            with connection.connection.cursor() as cursor:
                found.append((sql, "\n".join(row[0] for row in cursor.execute(f"EXPLAIN {sql}", params))))

    def caught(execute, sql, params, many, context):
        explain(sql, params)
        return execute(sql, params, many, context)

    def caught_past_django(sql, params, is_long=False):
        explain(sql, params)
        return execute_past_django(sql, params)

    def plans(action: Callable[[], object]) -> list[tuple[str, str]]:
        found.clear()
        with connection.execute_wrapper(caught):
            action()
        return list(found)

    for module in (statements, moves, firing):
        monkeypatch.setattr(module, "execute", caught_past_django)
    return plans


def test_no_statement_of_a_scheduler_or_of_the_lists_reads_a_whole_table(many, plans_of):
    store, now, census = ScheduleJobStore(), datetime.now(UTC), Census()
    some = list(Schedule.objects.order_by("pk")[:50])
    running = Backfill.objects.filter(state="running").order_by("pk")
    actions = {
        "a pass": lambda: store.get_due_jobs(now),
        "when to wake next": store.get_next_run_time,
        "an idle pass": lambda: store.get_due_jobs(now),
        "one by one": lambda: firing.fire_each(500),
        "trim": lambda: firing.trim([schedule.pk for schedule in some]),
        "run by hand": lambda: firing.run_now(some[0]),
        "start a backfill": lambda: backfill.start(
            many, backfill.due_times(many, now - timedelta(days=1), now), which="all"
        ),
        "pause and resume": lambda: (backfill.pause(running), backfill.resume(Backfill.objects.all())),
        "cancel a backfill": lambda: backfill.cancel(running[0]),
        "the list": lambda: rows_of(some),
        "the runs of one": lambda: runs_of(many, 50),
        "what fires next": lambda: list(Schedule.objects.filter(STATES["on"]).order_by("next_fire_at")[:5]),
        "delete a backfill": lambda: running[0].delete(),
        "delete a schedule": lambda: many.delete(),
        "delete a task": lambda: TaskRecord.objects.filter(task_id="task 9000").delete(),
        "expire": due.expire_waiting,
        "rescue": rescue.rescue_lost,
        "admit": limits.admit_parked,
        "publish": due.publish_due,
        "when to publish": due.next_due_at,
        "census": census.look,
    }
    plans = {name: plans_of(action) for name, action in actions.items()}
    assert [name for name, found in plans.items() if not found] == [], "each has executed something"
    scans = [
        f"{name}: {sql}\n{plan}"
        for name, found in plans.items()
        for sql, plan in found
        if re.search(rf"Seq Scan on ({TABLES})\b", plan)
    ]
    assert not scans, "\n\n".join(scans)
