"""A deploy, with real processes: what code declares is followed, and what would not run is said and recorded."""

from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from scheduling_app.models import Schedule, ScheduleRun
from tests.acceptance.processes import Manage, eventually


@pytest.fixture
def tidied(committed):
    yield
    Schedule.objects.filter(name__startswith="sample ").delete()


@contextmanager
def version(number: str):
    with Manage("runscheduler", SAMPLE_SCHEDULES=number) as process:
        process.wait_for("Scheduler started.")
        yield process


def test_a_deploy_follows_what_the_apps_declare(tidied):
    with version("1") as process:
        assert "new: sample yearly, sample each second, sample over soon." in process.said()
        each_second = Schedule.objects.get(name="sample each second")
        eventually(lambda: each_second.runs.filter(outcome="fired").exists())
        yearly = Schedule.objects.get(name="sample yearly")
    missed = timezone.now() - timedelta(minutes=1)
    Schedule.objects.filter(pk=yearly.pk).update(next_fire_at=missed)  # it came due while no scheduler ran
    with version("2") as process:
        assert yearly.runs.get().scheduled_for == missed, "fired before the new code moved its times"
        said = process.said()
        assert "Schedules in code: renamed: sample yearly → sample new year; " in said
        assert "changed: sample new year; " in said
        assert "no longer declared, paused: sample over soon." in said
        assert "Schedule 'sample over soon' is paused: app sample no longer declares it." in said
        renamed = Schedule.objects.get(name="sample new year")
        assert (renamed.pk, renamed.timezone) == (yearly.pk, "UTC")
    with version("2") as process:
        assert "Schedules in code" not in process.said()
    with version("") as process:
        assert "paused: sample each second, sample new year." in process.said()
    assert not Schedule.objects.filter(owner="sample", enabled=True).exists()


def test_a_bad_declaration_stops_a_process_where_it_is_written(committed):
    with Manage("check", SAMPLE_SCHEDULES="bad") as process:
        assert process.process.wait(30) == 1
        said = process.said()
    assert 'schedules.py", line' in said
    assert said.strip().endswith(
        "DeclarationError: Schedule 'sample bad': cron: " + said.rpartition("cron: ")[2].strip()
    )


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        (["schedules", "list"], 2, "CommandError: The database does not answer: "),
        (["importbeat"], 2, "CommandError: The database does not answer: "),
        (["check", "--database", "default"], 0, "(scheduling_app.W002) Schedules were not looked through: "),
    ],
)
def test_a_command_that_has_no_database_says_so_and_not_that_all_is_well(committed, command, status, says):
    with Manage(*command, DATABASE_URL="postgres://nobody@127.0.0.1:1/nothing") as process:
        assert process.process.wait(30) == status
        assert says in process.said()
        assert "Traceback" not in process.said()


def test_due_times_of_what_would_not_run_are_recorded_as_invalid_and_the_others_fire(tidied, worker):
    with connection.cursor() as cursor:
        for name, task, args in [
            ("sample good", "sample.echo", '["x"]'),
            ("sample gone", "sample.gone", "[]"),
            ("sample misfit", "sample.echo", '["x", "y"]'),
        ]:
            cursor.execute(_INSERT, [name, task, args])
    with Manage("runscheduler") as process:
        good = eventually(lambda: run_of("sample good", record__state="SUCCESS"), 20)
        gone, misfit = (eventually(lambda name=name: run_of(name)) for name in ("sample gone", "sample misfit"))
        process.wait_for("2 schedules would not run:")
        assert "No task sample.gone is registered. (sample gone)" in process.said()
    assert good.outcome == "fired"
    assert (gone.outcome, gone.reason, gone.detail) == ("skipped", "invalid", "No task sample.gone is registered.")
    assert (misfit.outcome, misfit.reason) == ("skipped", "invalid")
    assert "sample.echo takes (value)" in misfit.detail
    assert (gone.record_id, misfit.record_id) == (None, None)


def run_of(name: str, **fields) -> ScheduleRun | None:
    return ScheduleRun.objects.filter(schedule__name=name, **fields).first()


_INSERT = """
INSERT INTO scheduling_app_schedule (
    name, description, task, args, kwargs, queue, headers, due_kwarg, enabled, kind, cron, every, unit, timezone,
    jitter, catch_up, misfire_grace_time, overlap, max_instances, blackout_action
) VALUES (%s, '', %s, %s, '{}', '', '{}', '', true, 'interval', '', 1, 'seconds', 'UTC',
    0, 'latest', 3600, 'allow', 1, 'skip')
"""
