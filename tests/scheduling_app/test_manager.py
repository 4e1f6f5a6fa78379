"""ApsSchedulerManager: schedules from code. (Firing by real processes is in acceptance/.)"""

from datetime import timedelta

import pytest
from apscheduler.jobstores.base import ConflictingIdError, JobLookupError
from django.utils import timezone

from scheduling_app.jobstore import trigger_for
from scheduling_app.ledger.planning import plan_changed
from scheduling_app.manager import ApsSchedulerManager
from scheduling_app.models import Schedule
from scheduling_app.timing.kinds import Cron, TimingError
from tests.acceptance.processes import eventually
from tests.sample.tasks import echo, noop

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def manager():
    manager = ApsSchedulerManager(jitter=3, max_instances=2, coalesce=False, misfire_grace_time=60)
    yield manager
    manager.shutdown()


def test_what_is_registered_before_the_start_waits_for_it(manager):
    manager.register_cron(echo, "*/5 * * * *", id="c", args=["x"], timezone="Europe/Berlin")
    manager.register_interval("sample.noop", "90m", id="i")
    manager.register_date(noop, timezone.now() + timedelta(days=1), id="d")
    manager.register_cron(noop, "0 0 1 1 *", id="taken back")
    manager.remove_job("taken back")
    assert not Schedule.objects.exists()
    manager.start()
    cron, interval = Schedule.objects.get(name="c"), Schedule.objects.get(name="i")
    assert (cron.task, cron.args, cron.cron, cron.timezone) == ("sample.echo", ["x"], "*/5 * * * *", "Europe/Berlin")
    assert (interval.every, interval.unit) == (90, "minutes")
    assert {job.id for job in manager.get_jobs()} == {"c", "i", "d"}


def test_defaults_are_used_unless_given(manager):
    manager.start()
    manager.register_interval(noop, "1h", id="default")
    manager.register_interval(noop, "1h", id="own", jitter=0, coalesce=True, max_instances=None)
    fields = ("jitter", "overlap", "max_instances", "catch_up", "misfire_grace_time")
    assert Schedule.objects.values_list(*fields).get(name="default") == (3, "skip", 2, "all", 60)
    assert Schedule.objects.values_list(*fields).get(name="own") == (0, "allow", 1, "latest", 60)


def test_registering_again_updates(manager):
    manager.start()
    manager.register_interval(noop, "1h", id="x")
    manager.register_cron(noop, "0 0 * * *", id="x")
    assert (Schedule.objects.get().kind, Schedule.objects.get().cron) == ("cron", "0 0 * * *")


def test_it_fires_and_can_be_paused_resumed_modified_and_removed(manager):
    manager.start()
    manager.register_interval(noop, "1s", id="x")
    schedule = Schedule.objects.get()
    eventually(lambda: schedule.runs.exists())
    manager.pause_job("x")
    assert not Schedule.objects.get().enabled
    assert eventually(lambda: manager.get_job("x")).next_run_time is None
    manager.resume_job("x")
    manager.modify_job("x", every=1, unit="weeks")
    eventually(lambda: Schedule.objects.get().next_fire_at)
    assert str(manager.get_job("x").trigger) == "every week"
    manager.remove_job("x")
    assert manager.get_job("x") is None


def test_an_unknown_job_is_said_to_be_unknown(manager):
    manager.start()
    for act in (manager.pause_job, manager.resume_job, manager.remove_job, manager.modify_job):
        with pytest.raises(JobLookupError, match="nobody"):
            act("nobody")


def test_what_cannot_be_is_refused_when_it_is_registered(manager):
    with pytest.raises(TimingError, match="minute"):
        manager.register_cron(noop, "61 * * * *", id="x")
    with pytest.raises(ValueError, match="misfire_grace_time"):
        manager.register_interval(noop, "1h", id="x", misfire_grace_time=0)
    with pytest.raises(TypeError, match="retires"):
        manager.register_interval(noop, "1h", id="x", retires=3)


def test_apschedulers_own_interface_works_on_the_table(manager):
    manager.start()
    scheduler = manager.scheduler
    scheduler.add_job(echo, trigger_for(Cron("0 0 1 1 *")), args=["x"], id="job", misfire_grace_time=5)
    Schedule.objects.create(name="bad, by SQL", task="sample.echo", kind="cron", cron="61 * * * *")
    assert [job.id for job in scheduler.get_jobs()] == ["job"]
    Schedule.objects.filter(name="bad, by SQL").delete()
    with pytest.raises(ConflictingIdError):
        scheduler.add_job(echo, trigger_for(Cron("0 0 1 1 *")), args=["x"], id="job")
    with pytest.raises(ValueError, match="not a Celery task"):
        scheduler.add_job(print, trigger_for(Cron("0 0 1 1 *")), id="function")
    schedule = Schedule.objects.get()
    assert (schedule.name, schedule.task, schedule.args, schedule.cron) == ("job", "sample.echo", ["x"], "0 0 1 1 *")
    plan_changed()
    assert scheduler.get_job("job").next_run_time.month == 1
    scheduler.pause_job("job")
    assert not Schedule.objects.get().enabled
    scheduler.resume_job("job")
    assert Schedule.objects.get().enabled
    scheduler.remove_job("job")
    assert not Schedule.objects.exists()


def test_what_code_declares_is_not_overwritten(manager):
    Schedule.objects.create(name="theirs", task="sample.noop", kind="cron", cron="0 0 1 1 *", owner="sample")
    manager.start()
    with pytest.raises(ValueError, match=r"declared in the schedules.py of app sample"):
        manager.register_interval(noop, "1h", id="theirs")
