"""Each invariant names what violates it; a clean database, and one that works, violate none."""

from datetime import UTC, datetime, timedelta

import pytest
from celery import current_app
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules

from scheduling_app.models import Schedule, ScheduleRun
from tasks_app import health
from tasks_app.doctor import INVARIANTS, examine
from tasks_app.management.commands.doctor import duration
from tasks_app.models import TaskAttempt, TaskRecord
from tests.sample.tasks import echo, fail, flaky, ignored

pytestmark = pytest.mark.django_db

autodiscover_modules("doctor")
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def sql(statement: str, *params) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, params)


def record(task_id="bad", **fields) -> TaskRecord:
    """A task that was published and waits; or as the fields say."""
    fields = {"published_at": timezone.now(), "created_at": ago(hours=3)} | fields
    return TaskRecord.objects.create(task_id=task_id, name="sample.echo", queue="q", root_id=task_id, **fields)


def finished(task_id="bad", state="SUCCESS", **fields) -> TaskRecord:
    return record(task_id, state=state, **{"attempt": 1, "finished_at": timezone.now()} | fields)


def ago(**units) -> datetime:
    return timezone.now() - timedelta(**units)


def result(task_id: str, status: str) -> None:
    sql(
        "INSERT INTO django_celery_results_taskresult (task_id, status, content_type, content_encoding, date_created, "
        "date_done) VALUES (%s, %s, '', '', now(), now())",
        task_id, status,
    )  # fmt: skip


def chord(*task_ids: str) -> None:
    members = ", ".join(f'[["{task_id}", null], null]' for task_id in task_ids)
    sql(
        "INSERT INTO django_celery_results_chordcounter (group_id, sub_tasks, count) VALUES ('bad', %s, 1)",
        f"[{members}]",
    )


def schedule(**fields) -> Schedule:
    made = Schedule.objects.create(name="bad", task="sample.echo", kind="interval", every=1, unit="hours")
    Schedule.objects.filter(pk=made.pk).update(**{"changed_at": None, "next_fire_at": timezone.now()} | fields)
    return made


def run(of: Schedule, hours: int = 1, outcome="fired", **fields) -> ScheduleRun:
    return of.runs.create(scheduled_for=ago(hours=hours), outcome=outcome, reason="due", **fields)


def forgotten():
    record(published_at=None)


def too_many_lost():
    finished(state="FAILURE", lost_count=4, max_lost=3)


def attempt_beyond_the_last():
    task = finished(attempt=2)
    TaskAttempt.objects.create(record=task, attempt=3, state="RETRY", worker="w", finished_at=timezone.now())


def two_outcomes():
    finished(state="SUCCESS")
    result("bad", "FAILURE")


def open_chord():
    finished("one", finished_at=ago(minutes=5))
    finished("two", finished_at=ago(minutes=5))
    chord("one", "two")


def run_twice():
    sql("ALTER TABLE scheduling_app_schedulerun DROP CONSTRAINT run_once")
    each, at = schedule(), ago(hours=1)
    for _ in range(2):
        each.runs.create(scheduled_for=at, outcome="skipped", reason="misfire")


VIOLATIONS = [
    ("published in time", lambda: record(published_at=None, publish_at=ago(minutes=5))),
    ("never forgotten", forgotten),
    ("claimed or published again", lambda: record(published_at=ago(hours=2))),
    ("runs hold a lease", lambda: record(state="STARTED", lease_until=ago(minutes=5))),
    ("runs hold a lease", lambda: record(state="STARTED", started_at=ago(minutes=5))),
    ("expired is revoked", lambda: record(expires=ago(minutes=5))),
    ("the end is the end", lambda: finished(publish_at=ago(minutes=5))),
    ("the end is the end", lambda: finished(parked_at=timezone.now())),
    ("one outcome", two_outcomes),
    ("no success without a run", lambda: finished(attempt=0)),
    ("lost within limits", too_many_lost),
    ("attempts in order", attempt_beyond_the_last),
    ("chords are closed", open_chord),
    ("messages are taken", lambda: record(refused=1, exc_message="not taken")),
    ("messages arrive", lambda: record(missed=2)),
    ("schedules are planned", lambda: schedule(changed_at=ago(minutes=5))),
    ("due times fire", lambda: schedule(next_fire_at=ago(minutes=5))),
    ("a due time has one run", run_twice),
    ("a fired run has its task", lambda: run(schedule())),
    ("a fired run has its task", lambda: run(schedule(), outcome="skipped", record=finished("made"))),
    ("the next time is a later one", lambda: run(schedule(next_fire_at=ago(hours=2)), outcome="skipped")),
]


def violated(patience=60) -> dict[str, list[str]]:
    found = [examine(each, ago(hours=24), patience) for each in INVARIANTS]
    return {each.invariant.name: each.offenders for each in found if each.count}


@pytest.mark.parametrize(("name", "violate"), VIOLATIONS)
def test_a_violation_is_named_with_its_offender(name, violate):
    violate()
    assert "bad" in violated()[name][0]


def test_each_invariant_has_such_a_test():
    assert {each.name for each in INVARIANTS} == {name for name, _ in VIOLATIONS}


def test_names_are_given_once():
    names = [each.name for each in INVARIANTS]
    assert len(names) == len(set(names))


def test_a_database_without_records_violates_nothing():
    assert violated(patience=0) == {}


def test_what_is_in_order_violates_nothing():
    record("due", published_at=None, publish_at=timezone.now())
    record("published")
    record("scheduled", published_at=None, publish_at=ago(hours=-1), eta=ago(hours=-1))
    record("parked", published_at=None, parked_at=timezone.now())
    record("running", state="STARTED", attempt=1, lease_until=ago(seconds=-20))
    done = finished("done", attempt=2)
    TaskAttempt.objects.create(record=done, attempt=1, state="RETRY", worker="w", finished_at=timezone.now())
    result("done", "SUCCESS")
    finished("lost", state="FAILURE", lost_count=1)
    chord("done", "running")
    each = schedule(next_fire_at=ago(hours=-1))
    run(each, record=done)
    run(each, hours=2, outcome="skipped")
    assert violated() == {}


def test_a_task_that_was_revoked_between_two_retries_is_in_order():
    finished(state="REVOKED", attempt=1)
    result("bad", "RETRY")
    assert violated() == {}


@pytest.fixture
def eager():
    current_app.conf.update(task_always_eager=True, task_store_eager_result=True)
    yield
    current_app.conf.update(task_always_eager=False, task_store_eager_result=False)


def test_eager_runs_are_in_order_with_their_results_stored_or_not(eager):
    for stored in (True, False):
        current_app.conf.task_store_eager_result = stored
        assert echo.delay(1).get() == echo.apply((1,)).get() == 1
        assert (echo.s(1) | echo.s()).delay().get() == 1
        assert flaky.apply((1, 0)).get() == 1
        assert fail.apply(("x",)).state == "FAILURE"
        assert ignored.apply().state == "IGNORED"
    assert violated(patience=0) == {}


def test_what_ended_before_the_time_looked_at_is_left_alone():
    finished(finished_at=ago(hours=25), attempt=0)
    assert violated() == {}


@pytest.mark.django_db(transaction=True)
def test_the_command_tells_of_each_invariant(capsys):
    call_command("doctor", "--ledger")
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines] == ["ok  "] * len(INVARIANTS)
    assert lines[0].startswith(f"ok   {INVARIANTS[0].name}: {INVARIANTS[0].sentence}")


@pytest.mark.django_db(transaction=True)
def test_the_command_ends_with_1_and_says_what_to_do(capsys):
    forgotten()
    with pytest.raises(SystemExit) as ended:
        call_command("doctor", "--ledger", "--since", "90m")
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "BAD  never forgotten" in out
    assert "1 violate it. Nobody will publish these" in out
    assert "     - bad, PENDING since" in out


@pytest.mark.django_db(transaction=True)
def test_the_command_changes_nothing(monkeypatch):
    def write(*_):
        sql("DELETE FROM tasks_app_taskrecord")

    monkeypatch.setattr("tasks_app.management.commands.doctor.examine", write)
    with pytest.raises(CommandError, match="read-only"):
        call_command("doctor", "--ledger")


def test_without_a_ledger_it_asks_the_parts(capsys):
    call_command("doctor")
    assert capsys.readouterr().out.splitlines() == [
        "ok   the database answers", "ok   its tables are up to date", "ok   the broker answers",
    ]  # fmt: skip


@pytest.mark.parametrize("url", ["memory://", "amqp://", "sqs://", "filesystem://"])
def test_what_is_not_promised_with_another_broker_is_said_and_no_fault(url, capsys, monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    monkeypatch.setattr("tasks_app.management.commands.doctor.check_celery_health", lambda: health.Health(True))
    call_command("doctor")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert "lost" in "".join(notes)
    assert "set aside" in "".join(notes)


def test_a_part_that_does_not_answer_is_named(capsys, monkeypatch):
    away = health.Health(False, "The broker does not answer: gone")
    monkeypatch.setattr("tasks_app.management.commands.doctor.check_celery_health", lambda: away)
    with pytest.raises(SystemExit):
        call_command("doctor")
    assert "BAD  the broker answers: The broker does not answer: gone" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "hours"), [("24h", 24), ("90m", 1.5), ("7d", 168)])
def test_since_is_a_number_and_a_unit(text, hours):
    assert duration(text) == timedelta(hours=hours)


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1w"])
def test_any_other_since_is_refused(text):
    with pytest.raises(CommandError, match="--since"):
        duration(text)
