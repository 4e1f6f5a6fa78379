"""The broker, Postgres or the network between goes away and comes back: nothing is lost, and nobody is restarted.

On servers of this module's own, with a worker and a scheduler. This process uses them too, as a submitter.
"""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from celery import current_app
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import OperationalError, connection, connections
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from redis import Redis

from scheduling_app.models import Schedule, ScheduleRun
from taskconsole.embedded import Postgres, Server, Valkey
from tasks_app.client import CeleryClient
from tasks_app.marking import marker
from tasks_app.models import TaskRecord
from tests.acceptance.conftest import BRISK
from tests.acceptance.processes import Manage, eventually
from tests.acceptance.proxy import Proxy
from tests.acceptance.test_behaviours import finished, record_of
from tests.sample.behaving import mark
from tests.sample.tasks import LEDGER, count, echo, late_sleep
from tests.servers import directory

app = current_app._get_current_object()
client = CeleryClient()
LISTENING = "query LIKE 'LISTEN%'"


class Installation:
    """Servers to be ill-treated, and a worker and a scheduler that use them; within it, this process does too."""

    def __init__(self, directory: Path):
        directory.mkdir(mode=0o755)
        self.postgres = Postgres(directory / "postgres", settings={"fsync": "off"})
        self.broker = Valkey(directory / "broker")
        self.broker_url = ""
        self.processes: list[Manage] = []
        self._stack = ExitStack()

    def __enter__(self) -> "Installation":
        with ExitStack() as stack:
            for server in (self.postgres, self.broker):
                stack.callback(server.stop, immediate=True)
                server.start()
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            stack.callback(forget_connections)
            patch.setenv("DATABASE_URL", self.postgres.url)
            address = urlsplit(self.postgres.url)
            for name, value in (("NAME", address.path[1:]), ("PORT", address.port), ("PASSWORD", address.password)):
                patch.setitem(connection.settings_dict, name, value)
            self._patch = patch
            stack.callback(self._stop_processes)
            forget_connections()
            call_command("migrate", verbosity=0)
            with connection.cursor() as cursor:
                cursor.execute(LEDGER)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def connect(self, broker_url: str) -> None:
        """Have everybody use the broker by that address."""
        if broker_url == self.broker_url and self.ended() == "":
            return
        self._stop_processes()
        self.broker_url = broker_url
        for name in ("REDIS_URL", "CELERY_BROKER_URL"):
            self._patch.setenv(name, broker_url)
        forget_connections()
        commands = {"worker": ["celery", "worker", "-c", "2", "-l", "INFO"], "scheduler": ["runscheduler"]}
        self.processes = [
            Manage(*command, **BRISK, PGAPPNAME=name).__enter__()  # Postgres tells whose a session is
            for name, command in commands.items()
        ]
        for process, words in zip(self.processes, ("ready.", "Scheduler started."), strict=True):
            process.wait_for(words)

    def _stop_processes(self) -> None:
        for process in self.processes:
            if process.process.poll() is None:
                process.kill()
            process.__exit__()

    def ended(self) -> str:
        """What those said that are no longer there."""
        return "\n".join(each.said()[-3000:] for each in self.processes if each.process.poll() is not None)

    @property
    def worker(self) -> Manage:
        return self.processes[0]

    def sessions(self) -> dict[str, int]:
        """How many sessions the worker and the scheduler have."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT application_name, count(*) FROM pg_stat_activity WHERE application_name <> '' GROUP BY 1"
            )
            return dict(cursor.fetchall())


def forget_connections() -> None:
    """Of this process, as a fork would: the next ones go by what the settings say now."""
    connections.close_all()
    app.publisher.reset()
    marker.reset()
    app._pool = app.amqp._producer_pool = None


@pytest.fixture(scope="module")
def installation(committed):
    with Installation(directory / "faults") as each:
        yield each


@pytest.fixture
def direct(installation):
    """The installation. At the end of the test its two processes are those that were there before."""
    installation.connect(installation.broker.url)
    yield installation
    assert not (said := installation.ended()), said


@pytest.fixture(scope="module")
def proxy(installation):
    with Proxy(installation.broker.port) as each:
        yield each


@pytest.fixture
def proxied(installation, proxy):
    """The same, with a proxy between the broker and everybody."""
    installation.connect(installation.broker.url.replace(f":{installation.broker.port}/", f":{proxy.port}/"))
    yield installation
    assert not (said := installation.ended()), said


@contextmanager
def down(server: Server, immediate: bool = False):
    server.stop(immediate=immediate)
    try:
        yield
    finally:
        server.start()
        connection.close()


@pytest.fixture
def schedule(installation):
    made = []

    def make(**fields) -> Schedule:
        made.append(Schedule.objects.create(name=str(uuid4()), task="sample.noop", **fields))
        return made[-1]

    yield make
    Schedule.objects.filter(pk__in=[each.pk for each in made]).delete()


@pytest.fixture
def every_second(schedule):
    start = timezone.now().replace(microsecond=0)
    each = schedule(kind="interval", every=1, unit="seconds", start_at=start, catch_up="all")
    eventually(lambda: fired(each))
    return each


def fired(schedule: Schedule) -> list:
    """The due times that fired, oldest first."""
    return [run.scheduled_for for run in runs_of(schedule).order_by("scheduled_for")]


def runs_of(schedule: Schedule):
    return ScheduleRun.objects.filter(schedule=schedule, outcome="fired")


def fires_on(schedule: Schedule) -> None:
    """Wait for what is due from now on; none before it was passed over, or fired twice, and each task has run."""
    now = timezone.now()
    eventually(lambda: fired(schedule)[-1] > now + timedelta(seconds=1), 10, "runs after the fault")
    Schedule.objects.filter(pk=schedule.pk).set_enabled(False)
    times = fired(schedule)
    assert {later - earlier for earlier, later in pairwise(times)} == {timedelta(seconds=1)}
    task_ids = [run.record_id for run in runs_of(schedule)]
    ran = TaskRecord.objects.filter(task_id__in=task_ids, state="SUCCESS")
    eventually(lambda: ran.count() == len(task_ids), 20, "each run's task")  # a worker reconnects in its own time


def sessions_where(condition: str, what: str = "pid") -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {what} FROM pg_stat_activity "
            f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}"
        )
        return len(cursor.fetchall())


def kill_sessions(condition: str) -> int:
    return sessions_where(condition, "pg_terminate_backend(pid)")


def runs_in(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


# The broker restarts (behaviours 11 and 36)


def test_worker_and_scheduler_go_on_after_two_restarts_of_the_broker_in_a_row(direct, every_second, executions):
    """The worker holds a message meanwhile that is not acknowledged."""
    tag = str(uuid4())
    running = late_sleep.delay(tag, 2)
    eventually(lambda: executions(tag) == 1)
    for _ in range(2):
        with down(direct.broker):
            pass
    assert client.get_result(client.submit("number_sum", [2, 3]).id, timeout=30) == 5
    assert (client.get_result(running.id, timeout=30), executions(tag)) == (2, 1)
    fires_on(every_second)


def test_what_was_due_while_the_broker_was_down_is_sent_when_it_is_back(direct, every_second):
    with down(direct.broker):
        since = timezone.now()
        eventually(lambda: fired(every_second)[-1] > since + timedelta(seconds=2))
        missed = [run.record_id for run in runs_of(every_second) if run.scheduled_for > since]
        assert set(TaskRecord.objects.filter(task_id__in=missed).values_list("state", "published_at")) == {
            ("PENDING", None)
        }
    fires_on(every_second)


def submit_in_a_thread(value):
    try:
        start = time.monotonic()
        result = client.submit("sample.echo", [value])
        return result, time.monotonic() - start
    finally:
        connections.close_all()


def test_submissions_and_pages_do_not_wait_for_a_broker_that_is_down(direct, schedule):
    browser = Client()
    browser.force_login(get_user_model().objects.create_superuser(str(uuid4())))
    hourly = schedule(kind="interval", every=1, unit="hours", start_at=timezone.now())
    with down(direct.broker), ThreadPoolExecutor(10) as threads:
        submitted = list(threads.map(submit_in_a_thread, range(10)))
        assert max(took for _, took in submitted) < 2.5
        results = [result for result, _ in submitted]
        assert {(record_of(result).state, record_of(result).published_at) for result in results} == {("PENDING", None)}
        start = time.monotonic()
        assert browser.post(reverse("schedules:run", args=[hourly.pk])).status_code == 302
        for address in (reverse("tasks:list"), reverse("tasks:detail", args=[results[0].id]), reverse("admin:login")):
            assert browser.get(address, follow=True).status_code == 200
        assert "is published" in browser.get(reverse("tasks:detail", args=[results[0].id])).content.decode()
        assert time.monotonic() - start < 3
    assert [client.get_result(result.id, timeout=30) for result in results] == list(range(10))
    eventually(lambda: TaskRecord.objects.filter(schedule_run__schedule=hourly, state="SUCCESS").exists())


# Messages that are missing, or there more than once (faults 4 and 5)

KILLED_AFTER_COMMIT = """
import os
from celery import current_app
from tests.sample.tasks import count

current_app._get_current_object().publish = lambda records: os.kill(os.getpid(), 9)
count.delay({tag!r})
"""


def test_what_a_submitter_had_committed_that_was_killed_before_it_published_runs(direct, executions):
    tag = str(uuid4())
    with Manage("shell", "-c", KILLED_AFTER_COMMIT.format(tag=tag)) as submitter:
        assert submitter.process.wait(20) == -signal.SIGKILL
    record = TaskRecord.objects.get(name="sample.count", args__contains=tag)
    record = finished(client.app.AsyncResult(record.task_id), 5)
    assert record.started_at - record.created_at < timedelta(seconds=4)
    assert (record.state, executions(tag)) == ("SUCCESS", 1)


def test_copies_of_messages_run_no_body_twice(direct, executions):
    tag = str(uuid4())
    results = [count.apply_async([tag], queue="copied") for _ in range(20)]
    with Redis.from_url(direct.broker_url) as redis:
        (key,) = redis.keys("copied*")
        eventually(lambda: redis.llen(key) == 20)
        for message in redis.lrange(key, 0, -1) * 5:
            redis.lpush(key.replace(b"copied", b"celery_queue"), message)
        redis.delete(key)
    dropped = [f"{result.id}] ignored" for result in results]
    eventually(lambda: sum(direct.worker.said().count(words) for words in dropped) == 80, 15, "each but one of five")
    assert {record_of(result).state for result in results} == {"SUCCESS"}
    assert executions(tag) == 20


# Postgres restarts (behaviour 29, faults 8 to 10)


@pytest.mark.parametrize(("immediate", "seconds"), [(True, 0), (False, 4)], ids=["crash", "stop"])
def test_runs_and_schedules_outlive_a_restart_of_postgres(direct, every_second, tmp_path, immediate, seconds):
    """A stop lasts until after the end of what runs."""
    before = direct.sessions()
    results = [mark.delay(str(tmp_path / name), 2) for name in "ab"]
    eventually(lambda: all(runs_in(tmp_path / name) for name in "ab"))
    with down(direct.postgres, immediate):
        time.sleep(seconds)
    assert [client.get_result(result.id, timeout=15) for result in results] == [2, 2]
    assert {(record_of(result).attempt, record_of(result).lost_count) for result in results} == {(1, 0)}
    assert [runs_in(tmp_path / name) for name in "ab"] == [1, 1]
    fires_on(every_second)
    eventually(lambda: is_near(direct.sessions(), before), 10, f"sessions as before, {before}")


def is_near(sessions: dict[str, int], before: dict[str, int]) -> bool:
    return sessions.keys() == before.keys() and all(abs(sessions[name] - before[name]) <= 2 for name in before)


def test_killed_sessions_lose_no_run_and_leave_none_behind(direct, every_second):
    before = direct.sessions()
    for _ in range(4):
        eventually(lambda: kill_sessions("application_name IN ('worker', 'scheduler')") >= 2)
    fires_on(every_second)
    eventually(lambda: is_near(direct.sessions(), before), 10, f"sessions as before, {before}")


def test_a_schedule_whose_scheduler_lost_its_idle_sessions_fires_on_time(direct, schedule):
    once = schedule(kind="date", run_at=timezone.now() + timedelta(seconds=2))
    eventually(lambda: Schedule.objects.filter(pk=once.pk, next_fire_at__isnull=False).exists())
    assert kill_sessions("application_name = 'scheduler'") >= 2
    run = eventually(lambda: runs_of(once).first())
    assert run.fired_at - run.scheduled_for < timedelta(seconds=2)


def test_a_submission_without_postgres_is_an_error_and_leaves_nothing(direct, executions):
    tag, ids = str(uuid4()), [str(uuid4()) for _ in range(2)]
    with down(direct.postgres):
        connection.close()
        with pytest.raises(OperationalError):
            client.submit("sample.count", [tag], task_id=ids[0], queue="nothing")
        with pytest.raises(OperationalError):
            client.submit_many("sample.count", [([tag], {})] * 3, queue="nothing")
        with pytest.raises(OperationalError):
            client.group(count.s(tag), count.s(tag), task_id=ids[1], queue="nothing")
    with Redis.from_url(direct.broker_url) as redis:
        assert not redis.keys("nothing*")
    assert not TaskRecord.objects.filter(queue="nothing").exists()
    assert client.get_result(client.submit("sample.echo", [1]).id, timeout=30) == 1
    assert executions(tag) == 0


def test_no_body_runs_unclaimed_while_postgres_is_down(direct, tmp_path):
    path = tmp_path / "runs"
    record = app.build_record("sample.mark", [str(path)])
    TaskRecord.objects.insert([record])
    waits = f"Task {record.task_id} waits: no database"
    with down(direct.postgres):
        app.publish([record])
        direct.worker.wait_for(waits, 10)
        time.sleep(3)  # nothing is to happen
        assert direct.worker.said().count(waits) <= 5, "about one try a second"
        assert runs_in(path) == 0
    assert client.get_result(record.task_id, timeout=15) == 0
    assert (runs_in(path), record_of(app.AsyncResult(record.task_id)).attempt) == (1, 1)


def test_without_listen_what_is_due_waits_for_the_poll_and_no_longer(direct):
    eventually(lambda: sessions_where(f"{LISTENING} AND query LIKE '%tasks_due%'") == 2, 5, "both relays listen")
    for _ in range(3):
        record = record_of(echo.apply_async([1], countdown=0.2))
        eventually(lambda record=record: kill_sessions(LISTENING) < 0 or is_started(record), 5)
        assert record.started_at - record.eta < timedelta(seconds=1.6)


def is_started(record: TaskRecord) -> bool:
    record.refresh_from_db()
    return record.started_at is not None


def test_an_edit_is_seen_within_seconds_though_the_schedulers_listen_was_lost(direct, schedule):
    kill_sessions(f"application_name = 'scheduler' AND {LISTENING}")
    added = schedule(kind="interval", every=1, unit="seconds", start_at=timezone.now())
    eventually(lambda: fired(added), 6, "it is seen, by a poll or by a new LISTEN")


# The network between (fault 7)


def paced(seconds: float, per_second: int = 20):
    """Numbers, so many a second."""
    start = time.monotonic()
    for number in range(int(seconds * per_second)):
        time.sleep(max(start + number / per_second - time.monotonic(), 0))
        yield number


def test_a_broker_that_falls_silent_costs_submissions_no_time_and_no_message(proxied, proxy):
    took, results = [], []
    assert client.get_result(client.submit("sample.echo", [1]).id, timeout=30) == 1
    proxy.mode = "silent"
    try:
        for number in paced(8):
            start = time.monotonic()
            results.append(client.submit("sample.echo", [number]))
            took.append(time.monotonic() - start)
    finally:
        proxy.mode = "open"
    assert took[0] < 2.5
    assert sorted(took[1:])[int(len(took) * 0.99) - 1] < 0.2, took
    sent = TaskRecord.objects.filter(task_id__in=[result.id for result in results])
    eventually(lambda: not sent.filter(published_at=None).exists(), 10, "all published")
    eventually(lambda: sent.filter(state="SUCCESS").count() == len(results), 20, "all run")
    assert set(sent.values_list("attempt", "lost_count", "retries")) == {(1, 0, 0)}


def cut_now_and_then(proxy, number: int) -> None:
    if number % 5 == 2:
        proxy.reset()


def cut_all(proxy, number: int) -> None:
    proxy.mode = "cutting"


def slow_down(proxy, number: int) -> None:
    proxy.delay = 0.05


@pytest.mark.parametrize("fault", [cut_now_and_then, cut_all, slow_down])
def test_a_bad_network_fails_no_submission_and_loses_none(proxied, proxy, fault):
    results = []
    try:
        for number in paced(1):
            fault(proxy, number)
            results.append(client.submit("sample.echo", [number]))
    finally:
        proxy.mode, proxy.delay = "open", 0
    assert [client.get_result(result.id, timeout=15) for result in results] == list(range(20))
