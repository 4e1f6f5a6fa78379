"""What a task costs: its worker's statements, counted in Postgres' own log."""

import re

from tasks_app.client import CeleryClient
from tasks_app.models import TaskRecord
from tests.acceptance.processes import Manage, eventually
from tests.servers import postgres

PLAIN, WARM = 30, 10
LOG = postgres.state / "log"


def test_a_plain_run_costs_the_worker_exactly_two_statements(committed):
    with Manage(
        "celery", "worker", "-Q", "counted", "-c", "1", "-n", "counted@%h", PGOPTIONS="-c log_statement=all"
    ) as worker:
        client = CeleryClient(queue="counted")
        run_all(client, WARM)
        start = LOG.stat().st_size
        run_all(client, PLAIN)
        worker.stop()
    with LOG.open("rb") as log:
        log.seek(start)
        statements = re.findall(rb"\[(\d+)\] LOG:  (?:statement|execute [^:]*): \s*(\w+)( closed)?", log.read())
    child = next(pid for pid, _, closed in statements if closed)  # the parent's relay is on another connection
    verbs = [verb for pid, verb, _ in statements if pid == child]
    assert verbs == [b"UPDATE", b"WITH"] * PLAIN


def run_all(client: CeleryClient, number: int) -> None:
    ids = [result.id for result in client.submit_many("sample.echo", [([n], {}) for n in range(number)])]
    done = TaskRecord.objects.filter(task_id__in=ids, state="SUCCESS")
    eventually(lambda: done.count() == number, 30)
