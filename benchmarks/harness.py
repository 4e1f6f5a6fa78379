"""What every part uses: the servers of this run, processes of the console and of the peer, figures and bars."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import redis

from taskconsole.embedded import Postgres, Valkey, dies_with_parent

ROOT = Path(__file__).absolute().parent.parent
#: Environment of a process of the peer; without it, it is one of the console.
PEER = {"DJANGO_SETTINGS_MODULE": "benchmarks.peer.settings"}
#: Cores that others may use when a measurement starts, and seconds to wait for that.
QUIET, PATIENCE = 0.3, 15


class Lab(contextlib.ExitStack):
    """A Postgres and a broker of this run alone, with the console's tables; this process is one of the console's.

    Postgres runs as `manage.py up` runs it: a commit is on disk when it returns. The peer keeps its rows in the same
    database, in the tables of django-celery-results and django-celery-beat.
    """

    def __enter__(self):
        super().__enter__()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped
        self.directory = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="taskconsole-benchmarks-")))
        self.directory.chmod(0o755)
        self.postgres = self.enter_context(Postgres(self.directory / "postgres"))
        self.valkey = self.enter_context(Valkey(self.directory / "broker", persistence=False))
        self.broker = redis.Redis.from_url(self.valkey.url)
        self.results_url = self.valkey.url.removesuffix("/0") + "/1"
        self._mark = (time.time(), *self._busy())
        os.environ.update(
            DJANGO_SETTINGS_MODULE="taskconsole.settings",
            DATABASE_URL=self.postgres.url,
            REDIS_URL=self.valkey.url,
            CELERY_BROKER_URL=self.valkey.url,
            SECRET_KEY="benchmarks",
            DEBUG="0",
            TIME_ZONE="UTC",
            EXTRA_APPS="benchmarks.project",
            EXTRA_QUEUES="",
            WORKER_PREFETCH_MULTIPLIER="4",
            LOG_LEVEL="WARNING",
        )
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        return self

    def empty(self) -> None:
        """Forget all messages and rows."""
        from django.apps import apps

        from tasks_app import broker

        own = ("tasks_app", "scheduling_app", "django_celery_results", "django_celery_beat")
        tables = [model._meta.db_table for app in own for model in apps.get_app_config(app).get_models()]
        self.broker.flushall()
        broker.set_epoch()  # else a relay takes it for a broker that lost its messages, and publishes them again
        self.sql(f"TRUNCATE {', '.join(tables)} CASCADE")

    def sql(self, statement: str) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(statement)

    # Processes

    @contextlib.contextmanager
    def process(self, *arguments: str, **environment: str):
        """A Python process that runs meanwhile. It ends by SIGTERM, as in production, or with this one."""
        with tempfile.TemporaryFile("w+b") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )
            try:
                yield process
            except TimeoutError as error:
                output.seek(0)
                said = output.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"{' '.join(arguments)}: {error}\n{said}") from error
            finally:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def run(self, *arguments: str, **environment: str) -> Any:
        """Run a Python process to its end; what it printed last, as JSON."""
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    # Other people on the same machine

    def quiet(self) -> None:
        """Wait, not for ever, until others leave the machine alone for a second."""
        give_up_at = time.monotonic() + PATIENCE
        self.others()
        while time.monotonic() < give_up_at:
            time.sleep(1)
            if self.others() < QUIET:
                break

    def others(self) -> float:
        """Cores that other people's processes used since the last call."""
        before, now = self._mark, (time.time(), *self._busy())
        self._mark = now
        seconds, busy, own = (new - old for new, old in zip(now, before, strict=True))
        return max(0.0, busy - own) / max(seconds, 1e-3)

    def _busy(self) -> tuple[float, float]:
        times = psutil.cpu_times()
        return sum(times[:8]) - times.idle - times.iowait, cpu_seconds(os.getpid())


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, its descendants and those it has reaped."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        total = root.cpu_times().children_user + root.cpu_times().children_system
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:2])
        return total
    return 0.0


def wait_until(check: Callable[[], Any], timeout: float, process: subprocess.Popen, poll: float = 0.01) -> None:
    """Wait for what `process` is to bring about."""
    give_up_at = time.monotonic() + timeout
    while not check():
        if process.poll() is not None or time.monotonic() > give_up_at:
            raise TimeoutError(f"not done within {timeout:.0f} s, exit status {process.poll()}")
        time.sleep(poll)


# Figures


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median and, of several, (min-max)."""
    middle, low, high = (f"{value:,.{digits}f}" for value in (median(values), min(values), max(values)))
    return f"{middle} ({low}-{high})" if len(values) > 1 else middle


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    print(f"\n{title}")
    for row in (head, ["-" * width for width in widths], *rows):
        first, *others = zip(row, widths, strict=True)
        print(
            "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip(), flush=True
        )


@dataclass(frozen=True)
class Bar:
    """What a measured ratio or time must keep: at least, or at most, the limit."""

    name: str
    measured: float
    limit: float
    at_least: bool = False
    unit: str = "x"

    @property
    def passes(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self):
        verdict, word = "PASS" if self.passes else "FAIL", "at least" if self.at_least else "at most"
        measured, limit = (f"{value:,.2f} {self.unit}" for value in (self.measured, self.limit))
        return f"{verdict}  {self.name}: {measured}, {word} {limit}"
