"""A pytest plugin: the console's app and its result backend, where Celery's tests would make an app of their own."""

import os
from concurrent.futures import ThreadPoolExecutor

import django
import pytest

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.conformance.settings"
django.setup()

import celery.contrib.testing.tasks  # noqa: E402, F401  start_worker sends its celery.ping
from celery.contrib.testing import app as testing_app  # noqa: E402

from tasks_app.models import TaskRecord  # noqa: E402
from tasks_app.outbox import RecordingCelery  # noqa: E402

#: What the suite says about its own broker and backends: the console's are those of its settings.
NOT_OURS = "broker_url", "result_backend"


def console_app(name=None, config=None, enable_logging=False, set_as_current=False, log=None, **options):
    """Takes what celery.contrib.testing.app.TestApp takes; made as taskconsole.celery makes the project's own."""
    app = RecordingCelery("taskconsole", set_as_current=set_as_current, **options)
    app.config_from_object("django.conf:settings", namespace="CELERY")
    app.conf["CELERY_DB_REUSE_MAX"] = 1_000_000_000
    config = testing_app.DEFAULT_TEST_CONFIG | (config or {})
    app.conf.update(config | {name: app.conf[name] for name in config if name.startswith(NOT_OURS)})
    return app


testing_app.TestApp = console_app


@pytest.hookimpl
def pytest_sessionstart():
    """What an earlier process left waiting would be run by this one's worker."""
    TaskRecord.objects.all().delete()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """A failed test tells what its tasks have come to."""
    report = yield
    if report.failed:
        with ThreadPoolExecutor() as thread:  # its connection is in order, whatever became of this one's
            latest = thread.submit(list, TaskRecord.objects.order_by("-pk")[:20]).result()
        told = [f"{each.state} {each.name} {each.task_id} {each.exc_type} {each.exc_message:.200}" for each in latest]
        report.sections.append(("Records, the latest first", "\n".join(told)))
    return report
