import os

import pytest
from django.db import connection

from tests.acceptance.processes import Manage
from tests.sample.tasks import LEDGER

#: Settings by which what comes after seconds or minutes comes sooner.
BRISK = {"TASK_LEASE": "3", "TASK_CENSUS_GRACE": "2", "TASK_UNREGISTERED_GRACE": "1", "WORKER_SHUTDOWN_GRACE": "2"}


@pytest.fixture(scope="session")
def committed(django_db_setup, django_db_blocker):
    """The test database, for real: what a test writes is committed, and stays. Child processes use it too."""
    with django_db_blocker.unblock():
        os.environ["DATABASE_URL"] = (
            os.environ["DATABASE_URL"].rpartition("/")[0] + f"/{connection.settings_dict['NAME']}"
        )
        with connection.cursor() as cursor:
            cursor.execute(LEDGER)
        yield


@pytest.fixture(scope="session")
def worker(committed):
    with Manage("celery", "worker", "-c", "2", "-l", "INFO", **BRISK) as process:
        process.wait_for("ready.")
        yield process


@pytest.fixture
def scheduler(committed):
    with Manage("runscheduler") as process:
        process.wait_for("Scheduler started.")
        yield process


@pytest.fixture
def executions(committed):
    """How often `sample.count(tag)` ran, by the ledger that it writes."""

    def count(tag: str) -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM ledger WHERE tag = %s", [tag])
            return cursor.fetchone()[0]

    return count
