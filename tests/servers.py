"""A pytest plugin, loaded before settings are read: the real Postgres and the real broker of this test run.

Settings of the developer's machine (`.env`, DATABASE_URL, REDIS_URL) are not used: tests never touch its data.
"""

import os
import shutil
import tempfile
from pathlib import Path

from taskconsole.embedded import Postgres, Valkey

directory = Path(tempfile.mkdtemp(prefix="taskconsole-tests-"))
directory.chmod(0o755)
postgres = Postgres(directory / "postgres", settings={"fsync": "off", "max_connections": "200"})
broker = Valkey(directory / "broker", persistence=False)


def pytest_configure(config):
    config.addinivalue_line("markers", "acceptance: real worker and scheduler processes")


def pytest_load_initial_conftests(early_config, parser, args):
    if early_config.known_args_namespace.help or early_config.known_args_namespace.version:
        return
    postgres.start()
    broker.start()
    os.environ["DATABASE_URL"], os.environ["REDIS_URL"] = postgres.url, broker.url
    os.environ.update(SECRET_KEY="tests", DEBUG="0", EXTRA_APPS="tests.sample", HTTP_REQUEST_ALLOW_PRIVATE="0")
    os.environ.pop("CELERY_BROKER_URL", None)


pytest_load_initial_conftests.hookimpl = None


def pytest_unconfigure(config):
    broker.stop()
    postgres.stop(immediate=True)
    shutil.rmtree(directory, ignore_errors=True)
