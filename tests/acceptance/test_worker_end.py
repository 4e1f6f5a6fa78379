"""A worker that is told to end does so at once, where nothing runs that it would wait for."""

import signal
import time

import pytest
from celery import current_app as app

from tasks_app.client import CeleryClient
from tests.acceptance.processes import Manage, eventually, finished, record_of

pytestmark = pytest.mark.usefixtures("committed")
client = CeleryClient(queue="ending")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT", "SIGKILL", "SIGHUP", "SIGCONT", "SIGSTOP"])
def test_a_terminated_run_keeps_its_worker_from_ending_by_no_signal(name):
    with Manage("celery", "worker", "-Q", "ending", "-c", "2", "-n", "ending@%h") as worker:
        running = client.submit("sample.sleep", [60])
        eventually(lambda: record_of(running).state == "STARTED", timeout=20)
        app.control.revoke(running.id, terminate=True, signal=name)
        assert finished(running).state == "REVOKED"
        begin = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(60) == 0
        assert time.monotonic() - begin < 5
