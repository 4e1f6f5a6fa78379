"""Real processes of the project, and waiting for what they do."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.conf import settings

from tasks_app import states
from tasks_app.models import TaskRecord


def eventually(check: Callable[[], Any], timeout: float = 20, what: str = "") -> Any:
    """The first true answer of `check`, asked every 20 ms; fails after `timeout` seconds."""
    give_up_at = time.monotonic() + timeout
    while True:
        if answer := check():
            return answer
        if time.monotonic() > give_up_at:
            raise AssertionError(f"Not within {timeout} s: {what or check}. The last answer was {answer!r}.")
        time.sleep(0.02)


def record_of(result) -> TaskRecord:
    return TaskRecord.objects.get(task_id=result.id)


def finished(result, timeout: float = 25) -> TaskRecord:
    """The record of a task, once it has ended."""
    ended = TaskRecord.objects.filter(task_id=result.id, state__in=states.READY_STATES)
    return eventually(ended.first, timeout, result.id)


class Manage:
    """`manage.py …` as a process of its own, in a process group of its own."""

    #: Where the project is.
    directory = settings.BASE_DIR
    python = sys.executable

    def __init__(self, *arguments: str, **environment: str):
        self.arguments = arguments
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}  # for `said`
        self.output = tempfile.NamedTemporaryFile("w+b", prefix="taskconsole-", suffix=".log")  # noqa: SIM115

    def __enter__(self) -> "Manage":
        self.process = subprocess.Popen(
            [self.python, "manage.py", *self.arguments],
            cwd=self.directory,
            env=self.environment,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_) -> None:
        self.stop()
        self.output.close()

    def stop(self, timeout: float = 20) -> int:
        """SIGTERM; the exit status. Fails, after a SIGKILL, where that takes longer than `timeout` seconds."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"{self.arguments} did not end {timeout} s after SIGTERM.") from None
        return self.process.returncode

    def kill(self) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        with open(self.output.name, errors="replace") as lines:
            return lines.read()

    def wait_for(self, text: str, timeout: float = 90) -> None:
        """Wait until it says so; a worker with fifty processes takes its time to start on a machine that is busy."""

        def found() -> bool:
            if text not in self.said() and self.process.poll() is not None:
                raise AssertionError(f"{self.arguments} ended with {self.process.returncode}:\n{self.said()}")
            return text in self.said()

        try:
            eventually(found, timeout, f"{text!r} from {self.arguments}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said()}") from None
