"""A worker that is told to end does so at once, where nothing runs that it would wait for."""

import signal
import time
from uuid import uuid4

import pytest
from celery import current_app as app

from tasks_app.client import CeleryClient
from tasks_app.models import TaskRecord
from tests.acceptance.processes import Manage, eventually, finished, record_of

pytestmark = pytest.mark.usefixtures("committed")
client = CeleryClient(queue="ending")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT", "SIGKILL", "SIGHUP", "SIGCONT", "SIGSTOP"])
def test_a_terminated_run_keeps_its_worker_from_ending_by_no_signal(name):
    with Manage("celery", "worker", "-Q", "ending", "-c", "2", "-n", "ending@%h", "-l", "INFO") as worker:
        worker.wait_for("ready.")
        running = client.submit("sample.sleep", [60])
        eventually(lambda: record_of(running).state == "STARTED", timeout=20)
        app.control.revoke(running.id, terminate=True, signal=name)
        assert finished(running).state == "REVOKED"
        begin = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(60) == 0
        assert time.monotonic() - begin < 20, "it waited for the run, up to WORKER_SHUTDOWN_GRACE"


@pytest.mark.parametrize("terminate", [False, True])
def test_revoked_messages_in_a_worker_cost_no_process_and_no_time(terminate, executions):
    tag = str(uuid4())
    with Manage("celery", "worker", "-Q", "ending", "-c", "10", "-n", "ten@%h", TASK_LEASE="1.5") as worker:
        eventually(lambda: worker.said().count("child started") == 10, timeout=60, what="ten children")
        busy = [client.submit("sample.sleep", [3]) for _ in range(10)]
        eventually(lambda: states_of(busy) == {"STARTED"}, timeout=30)
        held = [client.submit("sample.count", [tag]) for _ in range(20)]
        eventually(lambda: any(record_of(each).lease_until for each in held), what="one that the worker holds")
        app.control.revoke([each.id for each in held], terminate=terminate)
        for each in busy:
            finished(each)
        begin = time.monotonic()
        assert client.submit("sample.echo", [1]).get(timeout=10) == 1
        assert time.monotonic() - begin < 2  # one, and what a busy machine adds
        assert states_of(held) == {"REVOKED"}
        assert worker.said().count("child started") == 10
    assert executions(tag) == 0


def states_of(results) -> set[str]:
    ids = [result.id for result in results]
    return set(TaskRecord.objects.filter(task_id__in=ids).values_list("state", flat=True))


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_run_that_takes_too_long_is_handed_back_whatever_the_pool(pool, executions):
    tag = str(uuid4())
    with Manage("celery", "worker", "-Q", "ending", "-P", pool, "-n", "long@%h", WORKER_SHUTDOWN_GRACE="1") as worker:
        running = client.submit("sample.late_sleep", [tag, 60])
        eventually(lambda: executions(tag) == 1, timeout=30)
        worker.stop(10)
    assert record_of(running).state == "RETRY"
    client.revoke(running.id)
