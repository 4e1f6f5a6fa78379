"""A pytest plugin, loaded before the settings: the real Postgres and the real broker of this test run.

Servers and settings of the developer's machine (`.env`, DATABASE_URL) are not used: tests never touch its data.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from taskconsole.embedded import Postgres, Valkey

directory = Path(tempfile.mkdtemp(prefix="taskconsole-tests-"))
directory.chmod(0o755)
# What waits for a lock for a minute waits for a test that went wrong: it fails, where else the next tests would hang.
settings = {"fsync": "off", "max_connections": "200", "lock_timeout": "60s"}
postgres = Postgres(directory / "postgres", settings=settings)
broker = Valkey(directory / "broker", persistence=False)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests():
    postgres.start()
    broker.start()
    os.environ.update(
        DATABASE_URL=postgres.url,
        REDIS_URL=broker.url,
        CELERY_BROKER_URL=broker.url,
        SECRET_KEY="tests",
        DEBUG="0",
        TIME_ZONE="UTC",
        EXTRA_APPS="tests.sample",
        EXTRA_QUEUES="",
        BEAT_ENABLED="0",
    )


def pytest_unconfigure():
    if postgres.process is not None:
        broker.stop()
        postgres.stop(immediate=True)
    shutil.rmtree(directory, ignore_errors=True)
