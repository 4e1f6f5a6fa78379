"""Unit tests run in a transaction that is rolled back; acceptance/, browser/ and foreign/ commit, with real processes.

The latter come last: what they leave behind would be seen by the others.
"""

import math
import signal

import pytest
from celery import current_app
from django.conf import settings
from django.test.utils import setup_databases

from scheduling_app.sources import drift
from tasks_app.marking import marker
from tasks_app.models import TaskRecord

COMMITTING = ("/tests/acceptance/", "/tests/browser/", "/tests/foreign/")
#: Seconds for the end of a test that failed.
ENDING = 60


def pytest_configure():
    # Cheap hashes for this process; the real one second, which the site's own process checks.
    settings.PASSWORD_HASHERS = [
        "django.contrib.auth.hashers.MD5PasswordHasher",
        "django.contrib.auth.hashers.PBKDF2PasswordHasher",
    ]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: any(part in item.path.as_posix() for part in COMMITTING))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown():
    """The end of a test that failed has a time limit of its own: pytest-timeout sets none, and it may hang as well."""
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        return (yield)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"Its end took longer than {ENDING} s."))
    signal.setitimer(signal.ITIMER_REAL, ENDING)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture(scope="session")
def django_db_setup(django_test_environment, django_db_blocker):
    """The test database, also where only committing tests are run; it goes with its server."""
    with django_db_blocker.unblock():
        setup_databases(verbosity=0, interactive=False)


@pytest.fixture(autouse=True)
def marks_at_once(request, monkeypatch):
    """Where a test's transaction never commits, another thread's connection could not mark its rows."""
    if not any(part in request.path.as_posix() for part in COMMITTING):
        current_app.publisher.reset()  # a breaker that another test has tripped
        mark = TaskRecord.objects.mark_published
        monkeypatch.setattr(marker, "add", lambda records: mark([(each.task_id, each.gen) for each in records]))


@pytest.fixture(autouse=True)
def no_watch(monkeypatch):
    """A page's thread that looks for drift would outlive its test."""
    monkeypatch.setattr(drift.watch, "look_at", math.inf)


@pytest.fixture
def commits(django_capture_on_commit_callbacks):
    """Run what waits for a commit, as a committed block would: `with commits(): …`."""
    return lambda: django_capture_on_commit_callbacks(execute=True)


@pytest.fixture
def published(monkeypatch):
    """The ids of tasks whose messages went out, in their order; the broker gets none of them."""
    ids = []
    monkeypatch.setattr(current_app, "publish", lambda records: ids.extend(record.task_id for record in records))
    return ids


@pytest.fixture
def tracks_started():
    """Turn Celery's task_track_started on."""
    conf = current_app.conf
    yield lambda: conf.update(task_track_started=True)
    conf.update(task_track_started=False)
