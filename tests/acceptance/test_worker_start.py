"""What a worker and a scheduler say, or refuse, when they start."""

import pytest

from tasks_app.client import CeleryClient
from tests.acceptance.processes import Manage, eventually

pytestmark = pytest.mark.usefixtures("committed")
TROUBLED = {"DJANGO_SETTINGS_MODULE": "tests.sample.troubled_settings"}


@pytest.mark.parametrize(
    ("arguments", "environment", "pool"),
    [
        (["-P", "gevent"], {}, "gevent"),
        (["--pool=eventlet"], {}, "eventlet"),
        ([], {"DJANGO_SETTINGS_MODULE": "tests.sample.gevent_settings"}, "gevent"),
    ],
)
def test_a_pool_of_green_threads_is_refused_in_a_line_before_any_message_is_taken(arguments, environment, pool):
    with Manage("celery", "worker", "-Q", "green", *arguments, **environment) as worker:
        assert worker.process.wait(30) == 1
        said = worker.said()
    assert said.splitlines()[-1].startswith(f"Error: The pool {pool} does not work with the console: each of its green")
    assert "Traceback" not in said
    assert "ready" not in said


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_the_pools_within_the_workers_own_process_run_tasks_and_end_at_once(pool):
    client = CeleryClient(queue=f"in_{pool}")
    with Manage("celery", "worker", "-Q", f"in_{pool}", "-c", "2", "-P", pool, "-n", f"{pool}@%h") as worker:
        results = [client.submit("sample.echo", [n]) for n in range(20)] + [client.submit("sample.async_sleep", [0])]
        assert [client.get_result(result.id, timeout=20) for result in results] == [*range(20), 0]
        assert worker.stop(10) == 0
        assert worker.said().count("sample hook: child started") == 1
        assert worker.said().count("sample hook: child ended") == 1


@pytest.mark.parametrize("command", [("celery", "worker", "-Q", "told", "-c", "1", "-n", "told@%h"), ("runscheduler",)])
def test_what_the_checks_find_is_said_and_it_starts_all_the_same(command):
    with Manage(*command, **TROUBLED) as process:
        eventually(lambda: "tasks_app.W002" in process.said(), timeout=30, what="what the checks found")
        process.wait_for("Scheduler started." if command == ("runscheduler",) else "child started")
        said = process.said()
    assert said.count("troubled.limited: concurrency_limit") == 1
    assert said.count("The Celery app 'plain' is no RecordingCelery") == 1
