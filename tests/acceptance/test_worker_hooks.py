"""Each pool child of a real worker opens its own connections and gives them back."""

import os
import signal

from django.db import connection

from tasks_app.client import CeleryClient
from tests.acceptance.processes import Manage, eventually


def test_children_connect_at_start_run_the_hooks_and_let_go_at_the_end(committed):
    with Manage("celery", "worker", "-Q", "hooked", "-c", "2", "-n", "hooked@%h", PGAPPNAME="hooked") as worker:
        eventually(lambda: worker.said().count("sample hook: child started") == 2)
        backends = eventually(lambda: len(sessions("hooked")) >= 3 and sessions("hooked"), what="two children, a relay")
        assert len(backends) == len(set(backends))
        pid = CeleryClient(queue="hooked").submit("sample.pid").get(timeout=30)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: worker.said().count("sample hook: child started") == 3, what="a new child, with its hooks")
        assert CeleryClient(queue="hooked").submit("sample.pid").get(timeout=30) != pid
        assert worker.stop() == 0
        assert worker.said().count("sample hook: child ended") == 2
    eventually(lambda: not sessions("hooked"))


def test_children_that_are_not_forked_run_the_hooks_too(committed):
    spawn = ("--pool-start-method", "spawn", "-c", "1", "-n", "spawned@%h")
    with Manage("celery", "worker", "-Q", "spawned", *spawn) as worker:
        assert CeleryClient(queue="spawned").submit("sample.async_sleep", [0]).get(timeout=40) == 0
        assert worker.stop() == 0
        assert worker.said().count("sample hook: child started") == 1
        assert worker.said().count("sample hook: child ended") == 1


def sessions(name: str) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", [name])
        return [pid for (pid,) in cursor.fetchall()]
