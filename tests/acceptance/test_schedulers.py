"""Several `runscheduler` processes at once: what is due is done once, whatever happens to any of them."""

import signal
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import pairwise
from uuid import uuid4

import pytest
from celery import current_app as app
from django.db import connection, transaction
from django.utils import timezone

from scheduling_app.ledger import backfill
from scheduling_app.models import Backfill, Schedule
from tasks_app import states
from tasks_app.models import TaskRecord
from tests.acceptance.conftest import BRISK
from tests.acceptance.processes import Manage, eventually
from tests.acceptance.test_faults import victim
from tests.acceptance.test_scheduler import assert_each_second_once, every_second, fired, in_seconds, schedule
from tests.chaos.__main__ import in_processes
from tests.chaos.run import Scenario

__all__ = ["schedule"]  # a fixture


@contextmanager
def schedulers(number: int, **environment: str):
    with ExitStack() as stack:
        processes = [stack.enter_context(Manage("runscheduler", **environment)) for _ in range(number)]
        for process in processes:
            process.wait_for("Scheduler started.")
        yield processes


def test_each_due_time_has_one_row_and_one_task_whatever_happens_to_schedulers():
    """`script/chaos --schedulers 3 --seconds 300` does it for longer."""
    for report in in_processes(*(Scenario(seed=number, seconds=24, schedulers=number) for number in (2, 3))):
        assert not report.violations, str(report)
        assert len(report.faults) >= 6


# A process that holds rows, and does nothing


def is_blocked() -> bool:
    """Whether a scheduler, with schedules locked, waits for the table of runs."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'scheduling_app_schedulerun'::regclass"
        )
        return cursor.fetchone()[0] > 0


def test_what_a_frozen_scheduler_holds_is_fired_by_another_and_not_again_when_it_wakes(schedule):
    each = schedule(**every_second(catch_up="all"))
    with Manage("runscheduler", PGOPTIONS="-c idle_in_transaction_session_timeout=2s") as frozen:
        eventually(lambda: fired(each), 15)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("LOCK TABLE scheduling_app_schedulerun IN SHARE MODE")
            eventually(is_blocked)
            frozen.process.send_signal(signal.SIGSTOP)
        try:
            with schedulers(1):
                since = timezone.now()
                eventually(lambda: fired(each)[-1] > since, 15, "what it held is free again")
                frozen.process.send_signal(signal.SIGCONT)
            since = timezone.now()
            eventually(lambda: fired(each)[-1] > since, 15, "it goes on")
        finally:
            frozen.process.send_signal(signal.SIGCONT)
    assert_each_second_once(fired(each))
    assert TaskRecord.objects.filter(schedule_run__schedule=each).count() == len(fired(each))


SHOW = """
from django.db import connection
from scheduling_app.management.commands import runscheduler
with connection.cursor() as cursor:
    print(cursor.execute("SHOW idle_in_transaction_session_timeout").fetchone()[0])
"""


def test_postgres_ends_the_transaction_of_a_frozen_scheduler_after_seconds(committed):
    with Manage("shell", "-c", SHOW) as process:
        process.wait_for("15s")


# Overlap, judged from the records


class Slow:
    """A schedule of each second, on the victim's queue, of a task that takes longer than that."""

    def __init__(self, overlap: str, seconds: float):
        self.tag = str(uuid4())
        fields = every_second(task="sample.tagged_sleep", args=[self.tag, seconds], queue="victim", overlap=overlap)
        self.schedule = Schedule.objects.create(name=self.tag, **fields)

    def tasks(self, **conditions) -> list[TaskRecord]:
        """Its tasks, in the order of their due times."""
        tasks = TaskRecord.objects.filter(schedule_run__schedule=self.schedule, **conditions)
        return list(tasks.select_related("schedule_run").order_by("schedule_run__scheduled_for"))

    def ended(self) -> list[TaskRecord]:
        return self.tasks(state__in=states.READY_STATES)

    def stop(self) -> None:
        """Let no more come, and end what runs."""
        Schedule.objects.filter(pk=self.schedule.pk).set_enabled(False)
        self.schedule.runs.filter(outcome="waiting").delete()
        app.control.revoke([task.task_id for task in self.tasks()], terminate=True)

    def outcomes(self) -> set[tuple[str, str]]:
        return set(self.schedule.runs.values_list("outcome", "reason"))


@pytest.fixture(scope="module")
def slow(committed):
    """One of each kind, fired by two schedulers until three of its tasks have ended."""
    with victim("-c", "4"), schedulers(2):
        kinds = {"skip": Slow("skip", 1.5), "queue_all": Slow("queue_all", 1.5), "cancel": Slow("cancel", 30)}
        for each in kinds.values():
            eventually(lambda each=each: len(each.ended()) >= 3, 20)
            each.stop()
    yield kinds
    for each in kinds.values():
        each.schedule.delete()


def assert_one_at_a_time(tasks: list[TaskRecord]) -> None:
    """In the order of their due times, each began when the one before had ended."""
    for before, after in pairwise(tasks):
        assert after.started_at >= before.finished_at, (before, after)


def test_no_run_begins_before_the_last_one_has_ended(slow):
    assert_one_at_a_time(slow["skip"].tasks(started_at__isnull=False))
    assert slow["skip"].outcomes() == {("fired", "due"), ("skipped", "overlap")}


def test_runs_that_wait_for_the_last_one_come_in_their_order(slow):
    first = slow["queue_all"].ended()[:3]
    assert_one_at_a_time(first)
    assert_each_second_once([task.schedule_run.scheduled_for for task in first])
    assert [task.schedule_run.reason for task in first] == ["due", "late", "late"]


def test_a_run_that_cancels_the_last_one_takes_its_place(slow):
    tasks = slow["cancel"].tasks()
    assert {task.state for task in tasks[:3]} == {"REVOKED"}
    for before, after in pairwise(tasks):
        assert before.finished_at - after.schedule_run.fired_at < timedelta(seconds=3), "handed over"
    assert slow["cancel"].outcomes() == {("fired", "due")}


def test_a_run_that_was_lost_with_its_worker_blocks_no_longer_than_until_it_is_rescued(committed, executions):
    with schedulers(2, **BRISK):
        with victim() as process:
            kinds = [Slow("skip", 60), Slow("queue_one", 60)]
            eventually(lambda: [executions(each.tag) for each in kinds] == [1, 1], 15)
            process.kill()
        with victim():
            eventually(lambda: [executions(each.tag) for each in kinds] == [2, 2], 20, "the next ones run")
            for each in kinds:
                lost, following = each.tasks()[:2]
                assert (lost.state, lost.exc_type) == ("FAILURE", "WorkerLostError")
                assert following.schedule_run.fired_at > lost.finished_at
                each.stop()
    for each in kinds:
        each.schedule.delete()


# Backfills


def test_a_backfill_begins_at_once_and_outlives_its_schedulers(schedule, worker, executions):
    """In the order and one at a time, though it is two that look whose turn it is."""
    tag = str(uuid4())
    each = schedule(
        **every_second(start_at=in_seconds(-3600, microsecond=0)) | {"every": 1, "unit": "minutes"},
        task="sample.tagged_sleep",
        args=[tag, 0.5],
    )
    until = each.start_at + timedelta(minutes=3)
    with schedulers(2) as processes:
        eventually(lambda: Schedule.objects.filter(pk=each.pk, changed_at=None).exists())
        begun = timezone.now()
        made = backfill.start(each, backfill.due_times(each, each.start_at, until), newest_first=True)
        eventually(lambda: made.runs.filter(outcome="fired").exists(), 3, "woken, not by the poll")
        assert made.runs.get(outcome="fired").fired_at - begun < timedelta(seconds=2)
        eventually(lambda: executions(tag) == 2, 15)
        for process in processes:
            process.kill()
    with schedulers(2):
        eventually(lambda: Backfill.objects.get(pk=made.pk).state == "finished", 30)
    runs = list(made.runs.order_by("-scheduled_for"))
    assert [run.record.state for run in runs] == ["SUCCESS"] * 4
    assert_one_at_a_time([run.record for run in runs])
    assert executions(tag) == 4
