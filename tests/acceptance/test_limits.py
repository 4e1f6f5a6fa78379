"""Limits over two real workers: the ledger tells what ran when."""

from itertools import accumulate, pairwise
from uuid import uuid4

import pytest
from django.db import connection

from tasks_app import states
from tasks_app.client import CeleryClient
from tasks_app.models import TaskRecord
from tests.acceptance.processes import Manage, eventually
from tests.sample.tasks import one_at_once, ten_a_second, two_at_once

pytestmark = pytest.mark.usefixtures("worker", "second_worker")


@pytest.fixture(scope="module")
def second_worker(committed):
    with Manage("celery", "worker", "-c", "2", "-n", "second@%h", "-l", "INFO") as process:
        process.wait_for("ready.")
        yield process


def records_of(results):
    return TaskRecord.objects.filter(task_id__in=[result.id for result in results])


def wait_for(results, timeout: float = 20) -> None:
    eventually(lambda: not records_of(results).unfinished().exists(), timeout, list(records_of(results).values()))


def ledger(tag: str) -> list[tuple]:
    """What ran whose tag holds `tag`, and when in seconds."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tag, extract(epoch FROM at)::float FROM ledger WHERE tag LIKE %s ORDER BY at", [f"%{tag}%"]
        )
        return cursor.fetchall()


def test_four_processes_run_two_at_once():
    tag = str(uuid4())
    results = [two_at_once.delay(tag) for _ in range(10)]
    wait_for(results)
    lines = ledger(tag)
    running = list(accumulate(1 if line.startswith("+") else -1 for line, _ in lines))
    assert len(lines) == 20
    assert max(running) == 2
    assert lines[-1][1] - lines[0][1] < 4, "the end of one starts the next: nobody waits for a poll"


def test_starts_are_spaced_over_all_workers():
    tag = str(uuid4())
    results = CeleryClient().submit_many("sample.ten_a_second", [([tag], {}) for _ in range(15)])
    wait_for(results)
    published = sorted(records_of(results).values_list("published_at", flat=True))
    ran = [at for _, at in ledger(tag)]
    assert len(ran) == 15
    assert 1.3 < ran[-1] - ran[0] < 4
    assert sum((after - before).total_seconds() < 0.05 for before, after in pairwise(published)) <= 2, "no bursts"


def test_what_is_retried_lets_the_next_one_run_meanwhile():
    tag = str(uuid4())
    first = one_at_once.delay(tag, failures=1)
    second = one_at_once.delay(tag)
    wait_for([first, second])
    assert [line for line, _ in ledger(tag)] == [
        f"{tag} {first.id} 0",
        f"{tag} {second.id} 0",
        f"{tag} {first.id} 1",
    ]


def test_what_waits_for_a_slot_says_so_and_can_be_revoked():
    tag = str(uuid4())
    running = [two_at_once.delay(tag, seconds=2) for _ in range(2)]
    waiting = two_at_once.delay(tag)
    eventually(lambda: records_of([waiting]).get().phase == "limited")
    eventually(lambda: records_of(running).filter(state=states.STARTED).count() == 2)
    assert CeleryClient().revoke(waiting.id) == states.REVOKED
    wait_for([*running, waiting])
    assert records_of([waiting]).get().state == states.REVOKED
    assert len(ledger(tag)) == 4


def test_a_task_without_limits_does_not_wait_behind_those_that_have():
    tag = str(uuid4())
    limited = [ten_a_second.delay(tag) for _ in range(20)]
    result = CeleryClient().submit("number_sum", [1, 2])
    assert result.get(timeout=30) == 3
    assert records_of(limited).filter(parked_at__isnull=False).exists()
    wait_for(limited)
