"""What `manage.py check` says of the Celery apps in the process, each time once; and who else says it."""

import logging

import pytest
from celery import Celery, Task, _state, current_app, shared_task
from django.apps import apps
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from tasks_app import checks
from tasks_app.outbox import RecordingCelery


@pytest.fixture
def alone(monkeypatch):
    """The apps of other tests are not asked; those of this one are."""
    apps = {current_app._get_current_object()}
    monkeypatch.setattr(_state, "_get_active_apps", lambda: apps)
    shared, bound = set(_state._on_app_finalizers), set(current_app.tasks)
    yield apps
    for each in apps - {current_app._get_current_object()}:
        _state._deregister_app(each)
    _state._on_app_finalizers.intersection_update(shared)
    for name in set(current_app.tasks) - bound:
        del current_app.tasks[name]


def nothing():
    pass


def app(kind: type[Celery], name: str) -> Celery:
    return kind(name, set_as_current=False, fixups=[], broker="memory://")


def found() -> list[tuple[str, str]]:
    return sorted((each.id, each.msg) for each in run_checks(tags=[checks.TASKS]))


def test_a_project_in_order_has_nothing_to_be_told(alone):
    assert found() == []


def test_one_of_fifty_lazy_shared_tasks_and_a_plain_app_are_each_named_once(alone):
    plain, recording = app(Celery, "plain"), app(RecordingCelery, "second")
    alone |= {plain, recording}  # neither has bound its tasks yet
    plain.task(name="plain.own")(nothing)
    for number in range(50):
        limit = -1 if number == 7 else 3
        shared_task(nothing, name=f"lazy.task{number}", concurrency_limit=limit)
    (error, limit), (warning, unrecorded) = found()
    assert (error, warning) == ("tasks_app.E002", "tasks_app.W002")
    assert limit.startswith("Task lazy.task7: concurrency_limit")
    assert unrecorded == "The Celery app 'plain' is no RecordingCelery: what it sends (plain.own) runs unrecorded."


def test_an_apps_own_task_is_named_again_when_it_is_asked_again(alone, monkeypatch):
    plain = app(Celery, "plain")
    alone.add(plain)
    monkeypatch.setitem(globals(), "nothing", plain.task(name="plain.own")(nothing))
    assert "(plain.own)" in found()[0][1]
    assert "(plain.own)" in found()[0][1]


def test_an_app_without_tasks_of_its_own_is_named_itself(alone):
    alone.add(app(Celery, "idle"))
    assert found() == [
        ("tasks_app.W002", "The Celery app 'idle' is no RecordingCelery: what it sends runs unrecorded.")
    ]


def test_without_a_recording_app_each_of_a_projects_tasks_is_named(alone):
    alone.clear()
    alone.add(app(Celery, "forgotten"))
    ((_, words),) = found()
    assert "sample.echo" in words


def test_an_app_that_binds_its_tasks_only_when_told_is_looked_through(alone):
    late = Celery("late", set_as_current=False, fixups=[], autofinalize=False)
    alone.add(late)
    assert found() == [
        ("tasks_app.W002", "The Celery app 'late' is no RecordingCelery: what it sends runs unrecorded.")
    ]


def test_a_task_without_our_base_is_no_trouble_to_look_at(alone):
    other = app(RecordingCelery, "other")
    alone.add(other)
    other.task(name="other.plain", base=Task, unique="never")(nothing)
    assert [words for _, words in found()] == [
        "Task other.plain: unique must be 'waiting', 'unfinished' or a number of seconds, not 'never'."
    ]


@pytest.mark.parametrize("url", ["memory://", "amqp://", "sqs://", "filesystem://"])
def test_a_broker_of_another_kind_is_one_warning_that_says_what_is_not_promised(url, alone, monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    ((name, words),) = found()
    assert name == "tasks_app.W003"
    assert "lost are not found" in words
    assert "not set aside" in words


@pytest.mark.parametrize("url", ["redis://", "rediss://"])
def test_one_that_speaks_the_redis_protocol_is_none(url, alone, monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    assert found() == []


def test_redis_behind_a_sentinel_finds_what_is_lost_and_sets_nothing_aside(alone, monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", "sentinel://")
    ((_, words),) = found()
    assert "not set aside" in words
    assert "lost" not in words


def test_what_is_found_is_logged_by_what_starts_except_what_a_project_silenced(alone, monkeypatch, settings, caplog):
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    alone.add(app(Celery, "plain"))
    settings.SILENCED_SYSTEM_CHECKS = ["tasks_app.W002"]
    checks.say_found(logging.getLogger("worker"))
    ((_, level, words),) = caplog.record_tuples
    assert level == logging.WARNING
    assert "tasks_app.W003" in words


def test_a_check_that_raises_keeps_nobody_from_starting(alone, monkeypatch, caplog):
    monkeypatch.setattr(checks, "_own_tasks", lambda app: 1 / 0)
    alone.add(app(Celery, "plain"))
    checks.say_found(logging.getLogger("worker"))
    assert "could not be made" in caplog.text


@pytest.mark.django_db
def test_they_ask_no_database(alone, django_assert_num_queries):
    with django_assert_num_queries(0, connection=connection):
        found()


@pytest.mark.parametrize(
    ("name", "value", "must_be"),
    [
        ("TASK_LEASE", "30s", "a number of seconds above 0"),
        ("TASK_LEASE", 0, "a number of seconds above 0"),
        ("TASK_MAX_LOST", 1.5, "a whole number of lost runs from 1 up"),
        ("TASK_ADOPT_UNKNOWN", "no", "True or False"),
        ("RUN_COMMAND_ALLOWED", "check", "a list of the names of management commands"),
        ("CRON_QUEUE", "", "the name of a queue"),
        ("SCHEDULE_RUNS_KEPT", True, "a whole number of runs from 1 up"),
    ],
)
def test_a_setting_that_cannot_be_is_named(alone, settings, name, value, must_be):
    setattr(settings, name, value)
    assert found() == [("tasks_app.E003", f"The setting {name} must be {must_be}, not {value!r}.")]


def test_a_setting_that_is_misspelt_is_named_and_those_of_others_are_not(alone, settings):
    settings.TASK_LEASES = 30
    settings.TASK_ALWAYS_EAGER = settings.TASKS = settings.CELERY_TASK_MAX_RETRIES = {}
    assert found() == [("tasks_app.W004", "The setting TASK_LEASES is none of the console's: did you mean TASK_LEASE?")]


def test_an_app_whose_results_go_elsewhere_is_named(alone):
    alone.add(RecordingCelery("other", set_as_current=False, fixups=[], broker="memory://", backend="cache+memory://"))
    ((error, words),) = found()
    assert (error, "'other' keeps its results elsewhere" in words) == ("tasks_app.E004", True)


def test_pages_without_an_address_are_named(alone, settings):
    settings.ROOT_URLCONF = "django.contrib.auth.urls"
    assert ("taskconsole.W001", "The console's pages have no address, so nothing can link to them.") in found()


def test_what_is_missing_beneath_is_named_before_anything_else_fails(monkeypatch):
    monkeypatch.setattr(apps, "is_installed", lambda name: name != "django_htmx")
    with pytest.raises(ImproperlyConfigured, match="needs 'django_htmx' in INSTALLED_APPS, before 'tasks_app'"):
        apps.get_app_config("tasks_app").import_models()


class KeepsRunsElsewhere:
    def db_for_read(self, model, **_):
        return "replica"

    def db_for_write(self, model, **_):
        return "archive" if model.__name__ == "ScheduleRun" else None

    def allow_migrate(self, db, app_label, model_name=None, **_):
        return model_name != "taskresult"


def test_a_router_that_takes_rows_out_of_the_default_database_is_named(alone, settings):
    settings.DATABASE_ROUTERS = [KeepsRunsElsewhere()]
    ((error, words),) = found()
    assert error == "tasks_app.E006"
    assert "keeps scheduling_app.ScheduleRun, django_celery_results.TaskResult out of" in words
