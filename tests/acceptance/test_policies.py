"""Each policy, by a running scheduler: time passes by moving the row of a schedule back, and telling the scheduler."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from scheduling_app.ledger.firing import run_now
from scheduling_app.models import CHANGED_CHANNEL, Calendar, Schedule, Window
from tasks_app.models import TaskRecord
from tasks_app.notify import notify
from tests.acceptance.processes import eventually

#: Half of a period: the last due time is neither just now nor soon.
HALF = timedelta(seconds=30)


@pytest.fixture
def schedule(committed, scheduler):
    """Makes schedules of each minute, whose tasks go to a queue that no worker serves."""
    made = []

    def make(**fields) -> Schedule:
        start = timezone.now() - timedelta(days=1) - HALF
        fields = {"kind": "interval", "every": 1, "unit": "minutes", "start_at": start, "queue": "nobody"} | fields
        made.append(Schedule.objects.create(name=str(uuid4()), task="sample.noop", **fields))
        eventually(lambda: Schedule.objects.filter(pk=made[-1].pk, changed_at=None).exists())
        return made[-1]

    yield make
    Schedule.objects.filter(pk__in=[each.pk for each in made]).delete()


def miss(schedule: Schedule, minutes: int = 0) -> list[tuple[str, str]]:
    """Have it be due for so many minutes, as after a downtime; the outcomes of its times, the oldest first."""
    schedule.refresh_from_db()
    moved = (schedule.next_fire_at or timezone.now() + HALF) - timedelta(minutes=minutes + 1)
    Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=moved)
    notify(CHANGED_CHANNEL)
    planned = Schedule.objects.filter(pk=schedule.pk).exclude(next_fire_at=moved)
    eventually(planned.exists)
    return outcomes(schedule)


def outcomes(schedule: Schedule) -> list[tuple[str, str]]:
    return list(schedule.runs.order_by("scheduled_for").values_list("outcome", "reason"))


def end(schedule: Schedule, state: str = "SUCCESS") -> None:
    tasks = TaskRecord.objects.unfinished().filter(schedule_run__schedule=schedule)
    tasks.update(state=state, finished_at=timezone.now(), publish_at=None)


FIRED, MISSED = ("fired", "caught up"), ("skipped", "misfire")


@pytest.mark.parametrize(
    ("fields", "minutes", "expected"),
    [
        ({}, 0, [("fired", "late")]),
        ({}, 3, [MISSED] * 3 + [FIRED]),
        ({"catch_up": "all"}, 3, [FIRED] * 4),
        ({"catch_up": "none"}, 3, [MISSED] * 4),
        ({"misfire_grace_time": 10}, 3, [MISSED] * 4),
        ({"catch_up": "all", "misfire_grace_time": 100}, 3, [MISSED] * 2 + [FIRED] * 2),
        ({"catch_up": "all", "misfire_grace_time": None}, 119, [("skipped", "limit")] * 20 + [FIRED] * 100),
        ({"catch_up": "all", "max_runs": 2}, 3, [FIRED] * 2),
        ({"kwargs": {"no": "such"}}, 0, [("skipped", "invalid")]),
    ],
)
def test_missed_times(schedule, fields, minutes, expected):
    each = schedule(**fields)
    assert miss(each, minutes) == expected
    each.refresh_from_db()
    assert each.next_fire_at is None if "max_runs" in fields else each.next_fire_at > timezone.now()


SKIPPED, WAITS = ("skipped", "overlap"), ("waiting", "overlap")


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        ("allow", [FIRED] * 3),
        ("skip", [SKIPPED] * 3),
        ("queue_one", [WAITS, SKIPPED, SKIPPED]),
        ("queue_all", [WAITS] * 3),
        ("cancel", [SKIPPED, SKIPPED, FIRED]),
    ],
)
def test_overlap(schedule, overlap, expected):
    each = schedule(overlap=overlap, catch_up="all")
    first = run_now(each).record_id
    assert miss(each, minutes=2)[:3] == expected, "the one by hand is the newest"
    assert TaskRecord.objects.get(task_id=first).state == ("REVOKED" if overlap == "cancel" else "PENDING")
    while waiting := outcomes(each).count(WAITS):
        end(each)
        eventually(lambda left=waiting: outcomes(each).count(WAITS) == left - 1)
        assert TaskRecord.objects.unfinished().filter(schedule_run__schedule=each).count() == 1


def test_a_schedule_that_failed_in_a_row_pauses_itself(schedule):
    each = schedule(pause_after_failures=1)
    miss(each)
    end(each, "FAILURE")
    each.refresh_from_db()
    Schedule.objects.filter(pk=each.pk).update(next_fire_at=timezone.now())
    notify(CHANGED_CHANNEL)
    eventually(lambda: Schedule.objects.filter(pk=each.pk, enabled=False, note="Its last run failed.").exists())
    assert outcomes(each)[-1] == ("skipped", "paused")


@pytest.mark.parametrize(("action", "expected"), [("skip", ("skipped", "blackout")), ("defer", ("fired", "late"))])
def test_a_blackout_window(schedule, action, expected):
    until = timezone.now() + timedelta(hours=1)
    calendar = Calendar.objects.create(name=str(uuid4()))
    Window.objects.create(calendar=calendar, start_at=until - timedelta(days=1), end_at=until)
    each = schedule(blackout=calendar, blackout_action=action)
    assert miss(each) == [expected]
    if action == "defer":
        assert each.runs.get().record.eta == until
