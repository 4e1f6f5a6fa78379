"""A whole installation of its own: Postgres, Valkey, workers, schedulers and the submitter, each to be ill-treated."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from taskconsole.embedded import Postgres, Server, Valkey, dies_with_parent
from tests.chaos.ledger import TABLES

ROOT = Path(__file__).resolve().parents[2]
#: Seconds that a program may take to end after SIGTERM, before it is killed.
STOP_PATIENCE = 20


class Program:
    """A process of the project, in a group of its own, started as often as it takes."""

    def __init__(self, name: str, arguments: list[str], log: Path, environment: dict[str, str]):
        self.name, self.arguments, self.log, self.environment = name, arguments, log, environment
        self.process: subprocess.Popen[bytes] | None = None
        self.frozen = self.stopping = False

    def start(self) -> None:
        if self.is_alive:
            return
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self.arguments],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )
        self.frozen = self.stopping = False

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def is_up(self) -> bool:
        """Alive, and neither frozen nor asked to end."""
        return self.is_alive and not self.frozen and not self.stopping

    def signal(self, number: int) -> None:
        """To the whole group: its pool children too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)
        self.frozen = number == signal.SIGSTOP

    def terminate(self) -> None:
        if self.process:
            self.process.terminate()

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()

    def children(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return sorted(map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()))
        return []

    def said(self, lines: int = 15) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Cluster:
    """Used as a context; at its end everything that it started is gone."""

    def __init__(self, directory: Path, settings: dict[str, str] | None = None):
        self.directory = directory
        self.postgres = Postgres(directory / "postgres", settings={"fsync": "off", "max_connections": "200"})
        self.broker = Valkey(directory / "broker", persistence=False)
        self.broker_frozen = False
        self.settings = settings or {}
        self.programs: dict[str, Program] = {}

    def __enter__(self) -> "Cluster":
        try:
            self.postgres.start()
            self.broker.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL") if name in os.environ},
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "taskconsole.settings",
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self.broker.url,
            "CELERY_BROKER_URL": self.broker.url,
            "SECRET_KEY": "chaos",
            "DEBUG": "0",
            "TIME_ZONE": "UTC",
            "EXTRA_APPS": "tests.chaos",
            "EXTRA_QUEUES": "",
            "BEAT_ENABLED": "0",
            "TASK_LEASE": "3",
            "TASK_MAX_LOST": "3",
            "TASK_CENSUS_GRACE": "2",
            "WORKER_SHUTDOWN_GRACE": "2",
            **self.settings,
        }

    def make_tables(self, sql: str = "") -> None:
        self.manage("migrate", "-v", "0")
        with self.database() as connection:
            connection.execute(TABLES + sql)

    def manage(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"manage.py {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def add(self, name: str, *arguments: str) -> Program:
        log = self.directory / f"{name}.log"
        self.programs[name] = program = Program(name, list(arguments), log, self.environment | {"PGAPPNAME": name})
        program.start()
        return program

    def start_all(self, *load: object) -> None:
        """`load`: the first arguments of tests.chaos.load, and its kinds."""
        for name in ("worker1", "worker2"):
            self.add(name, "manage.py", "celery", "worker", "-n", f"{name}@chaos", "-c", "2", "-l", "INFO")
        for name in ("scheduler1", "scheduler2"):
            self.add(name, "manage.py", "runscheduler")
        self.wait_until_ready()
        seed, seconds, rate, *kinds = map(str, load)
        self.add("load", "-m", "tests.chaos.load", seed, seconds, rate, str(time.time() + 1), *kinds)

    def wait_until_ready(self, timeout: float = 60) -> None:
        give_up_at = time.monotonic() + timeout
        for name, program in self.programs.items():
            word = "started." if name.startswith("scheduler") else "ready."
            while word not in program.said(1000):
                if time.monotonic() > give_up_at or not program.is_up:
                    raise RuntimeError(f"{name} does not start:\n{program.said()}")
                time.sleep(0.1)

    def database(self) -> psycopg.Connection:
        options = "-c lock_timeout=2s -c statement_timeout=10s"
        return psycopg.connect(self.postgres.url, autocommit=True, connect_timeout=5, options=options)

    def redis(self) -> redis.Redis:
        """Raises RedisError at once where the broker is down or frozen: who does the faults must not wait."""
        if not self.broker_is_up:
            raise redis.ConnectionError("by a fault")
        return redis.Redis.from_url(self.broker.url, socket_timeout=2, retry=Retry(NoBackoff(), 0))

    # The broker and Postgres

    @property
    def broker_is_up(self) -> bool:
        return _is_alive(self.broker) and not self.broker_frozen

    @property
    def postgres_is_up(self) -> bool:
        return _is_alive(self.postgres)

    def kill_broker(self) -> None:
        assert self.broker.process
        self.broker.process.kill()
        self.broker.process.wait()

    def start_broker(self) -> None:
        """It comes back empty, on its port."""
        if not _is_alive(self.broker):
            self.broker.start()

    def freeze_broker(self) -> None:
        os.kill(self.broker.pid, signal.SIGSTOP)
        self.broker_frozen = True

    def thaw_broker(self) -> None:
        if self.broker_frozen:
            os.kill(self.broker.pid, signal.SIGCONT)
        self.broker_frozen = False

    def start_postgres(self) -> None:
        if not _is_alive(self.postgres):
            self.postgres.start()

    # All together

    def heal(self) -> None:
        """Whatever is down or frozen runs again; the submitter is left alone once it has ended by itself."""
        self.thaw_broker()
        self.start_broker()
        self.start_postgres()
        for program in self.programs.values():
            if program.is_alive:
                program.signal(signal.SIGCONT)
            elif not self.load_has_ended or program.name != "load":
                program.start()

    @property
    def load_has_ended(self) -> bool:
        load = self.programs.get("load")
        return load is None or (load.process is not None and load.process.poll() == 0)

    def stop(self) -> None:
        for program in self.programs.values():
            program.kill()
        self.thaw_broker()
        self.broker.stop(immediate=True)
        self.postgres.stop(immediate=True)


def _is_alive(server: Server) -> bool:
    return server.process is not None and server.process.poll() is None
