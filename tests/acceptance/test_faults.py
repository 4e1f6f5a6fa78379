"""One fault, one outcome: what becomes of tasks whose processes, messages, results or connections are lost."""

import os
import signal
import time
from contextlib import contextmanager
from uuid import uuid4

import pytest
from celery import current_app as app
from django.db import connection
from django_celery_results.models import TaskResult

from tasks_app.broker import has_epoch
from tasks_app.client import CeleryClient
from tasks_app.models import TaskRecord
from tests.acceptance.conftest import BRISK
from tests.acceptance.processes import Manage, eventually, finished, record_of
from tests.sample.tasks import echo, killed, late_sleep, tagged_sleep
from tests.servers import broker

pytestmark = pytest.mark.usefixtures("worker")  # it also rescues what other workers leave
client = CeleryClient()


@contextmanager
def victim(*arguments: str, **settings: str):
    """A worker of its own, on a queue of its own."""
    with Manage(
        "celery", "worker", "-Q", "victim", "-c", "2", "-l", "INFO", "-n", f"victim{uuid4().hex[:6]}@%h", *arguments,
        **BRISK | settings,
    ) as process:  # fmt: skip
        process.wait_for("ready.")
        yield process


def signal_all(process: Manage, number: int) -> None:
    os.killpg(process.process.pid, number)


# A process that is lost


def test_a_run_whose_process_is_killed_is_repeated_if_its_task_says_so(executions):
    tag = str(uuid4())
    result = killed.delay(tag, 2)
    assert client.get_result(result.id, timeout=15) == 3
    record = record_of(result)
    assert (record.lost_count, record.attempt, executions(tag)) == (2, 3, 3)
    assert set(record.attempts.values_list("exc_type", flat=True)) == {"WorkerLostError"}


def test_a_task_that_kills_each_of_its_processes_is_given_up(executions):
    tag = str(uuid4())
    record = finished(killed.delay(tag, 99))
    assert (record.state, record.exc_type, record.lost_count, executions(tag)) == ("FAILURE", "WorkerLostError", 3, 3)
    assert client.get_result(client.submit("sample.echo", [1]).id, timeout=30) == 1


def test_a_run_whose_process_is_killed_is_a_failure_where_it_may_not_be_repeated(executions):
    tag = str(uuid4())
    record = finished(client.submit("sample.killed_once_for_all", [tag]))
    assert (record.state, record.exc_type, executions(tag)) == ("FAILURE", "WorkerLostError", 1)


def test_runs_of_a_worker_that_is_gone_are_rescued_by_another(executions):
    once, again = str(uuid4()), str(uuid4())
    with victim() as process:
        may_not = tagged_sleep.apply_async([once, 60], queue="victim")
        may = late_sleep.apply_async([again, 60], queue="victim")
        eventually(lambda: executions(once) + executions(again) == 2)
        process.kill()
    assert finished(may_not).exc_type == "WorkerLostError"
    record = eventually(lambda: TaskRecord.objects.filter(task_id=may.id, state="RETRY", gen=2).first())
    assert record.lost_count == 1
    assert "lease" in record.exc_message
    client.revoke(may.id)


def test_a_run_that_takes_longer_than_its_lease_is_not_taken_for_lost(executions):
    tag = str(uuid4())
    result = tagged_sleep.delay(tag, 5)  # the lease is 3 s
    assert client.get_result(result.id, timeout=15) == 5
    assert (record_of(result).attempt, executions(tag)) == (1, 1)


def test_a_task_that_an_old_worker_does_not_know_waits_for_a_new_one():
    with victim(TASK_UNREGISTERED_GRACE="60"):
        result = app.send_task("sample.new", ["x"], queue="victim")
        waits = eventually(lambda: TaskRecord.objects.filter(task_id=result.id, exc_type="NotRegistered").first())
        assert waits.state == "PENDING"
    with victim(SAMPLE_IS_NEW="1"):
        assert client.get_result(result.id, timeout=15) == "x"


def test_messages_that_a_killed_worker_held_are_published_again(executions):
    """Two are run; what was fetched besides is in the broker's `unacked`, where it would stay for an hour."""
    tag = str(uuid4())
    with victim() as process:
        busy = [tagged_sleep.apply_async([tag, 60], queue="victim") for _ in range(2)]
        eventually(lambda: executions(tag) == 2)
        held = [echo.apply_async([n], queue="victim") for n in range(4)]
        time.sleep(1.5)  # they are fetched, and their leases renewed
        process.kill()
    with victim():
        assert [client.get_result(result.id, timeout=20) for result in held] == [0, 1, 2, 3]
    assert {finished(result).exc_type for result in busy} == {"WorkerLostError"}


def test_a_worker_that_was_frozen_for_longer_than_its_lease_changes_nothing(executions):
    tag = str(uuid4())
    with victim() as process:
        result = late_sleep.apply_async([tag, 2], queue="victim")
        eventually(lambda: executions(tag) == 1)
        signal_all(process, signal.SIGSTOP)
        eventually(lambda: record_of(result).gen == 2, 15, "rescue")
        with victim():  # the second run
            assert finished(result).state == "SUCCESS"
            signal_all(process, signal.SIGCONT)
            eventually(lambda: "refused" in process.said() or "went elsewhere" in process.said(), 15, process.said)
    assert (record_of(result).attempt, record_of(result).state) == (2, "SUCCESS")


def test_a_worker_told_to_end_lets_short_runs_finish_and_hands_back_the_others(executions):
    tags = short, long, once = [str(uuid4()) for _ in range(3)]
    with victim("-c", "3") as process:
        results = [
            late_sleep.apply_async([short, 1], queue="victim"),
            late_sleep.apply_async([long, 30], queue="victim"),
            tagged_sleep.apply_async([once, 30], queue="victim"),
        ]
        eventually(lambda: sum(map(executions, tags)) == 3)
        held = [echo.apply_async([n], queue="victim") for n in range(3)]
        time.sleep(1)
        process.process.send_signal(signal.SIGTERM)
        process.process.wait(10)  # the grace time is 2 s
    assert record_of(results[0]).state == "SUCCESS"
    handed_back = record_of(results[1])
    assert (handed_back.state, handed_back.lost_count, handed_back.attempts.count()) == ("RETRY", 0, 1)
    assert record_of(results[2]).exc_type == "WorkerLostError"
    with victim():
        assert [client.get_result(result.id, timeout=15) for result in held] == [0, 1, 2]
        client.revoke(results[1].id, terminate=True)


# A task that does what workers are not made for


def test_running_out_of_memory_is_a_failure_of_the_task_alone(worker):
    assert finished(client.submit("sample.out_of_memory")).exc_type == "MemoryError"
    assert finished(client.submit("sample.allocates", [4096])).exc_type == "MemoryError"
    assert client.get_result(client.submit("sample.echo", [1]).id, timeout=30) == 1
    assert worker.process.poll() is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [("set", "{1}"), ("cyclic", "Recursion on list"), ("unprintable", "Unprintable"), ("object", "<object")],
)
def test_a_result_that_json_cannot_carry_is_kept_as_its_repr(kind, value):
    result = client.submit("sample.odd_result", [kind])
    assert value in client.get_result(result.id, timeout=30)
    record = record_of(result)
    assert record.state == "SUCCESS"
    assert record.note.startswith("Not JSON")


@pytest.mark.parametrize(("kind", "value"), [("nul", "a\x00b"), ("surrogate", "a\ud800b"), ("bytes", b"\xff")])
def test_odd_results_come_back_as_they_were(kind, value):
    result = client.submit("sample.odd_result", [kind])
    assert client.get_result(result.id, timeout=30) == value
    assert record_of(result).note == ""


def test_odd_text_in_an_exception_keeps_its_type_and_is_escaped():
    record = finished(client.submit("sample.odd_failure"))
    assert (record.exc_type, record.exc_message) == ("LookupError", "nul \\x00 and surrogate \\ud800")


def test_a_long_result_is_cut_and_says_so():
    result = client.submit("sample.text_of", [1_100_000])
    assert "1,048,576 are kept" in client.get_result(result.id, timeout=30)
    assert record_of(result).note.startswith("Cut")
    exact = client.submit("sample.text_of", [1_048_574])  # and two quotes
    assert client.get_result(exact.id, timeout=30) == "x" * 1_048_574


def test_a_result_that_cannot_be_handed_on_fails_the_task_that_returned_it():
    chain = client.chain(("sample.odd_result", ["set"]), "sample.echo")
    first = finished(chain.parent)
    assert (first.state, first.exc_type) == ("FAILURE", "EncodeError")
    assert "sample.echo" in first.exc_message
    assert finished(chain).state == "FAILURE"


def test_a_chord_of_a_result_that_was_cut_fails(executions):
    chord = client.chord([("sample.text_of", [1_100_000]), ("sample.echo", [1])], "sample.echo")
    record = finished(chord)
    assert (record.state, record.exc_type) == ("FAILURE", "ChordError")
    assert "too long" in record.exc_message


def test_a_workflow_hands_on_more_than_may_be_submitted():
    chain = client.chain(("sample.text_of", [1_000_000]), ("sample.echo",))
    assert len(client.get_result(chain.id, timeout=15)) == 1_000_000
    chord = client.chord([("sample.text_of", [700_000])] * 2, app.signature("sample.echo"))
    finished(chord, 20)
    assert record_of(chord).state == "SUCCESS"


# Revoke


def test_a_running_task_that_is_asked_to_stop_can_see_it(executions):
    tag = str(uuid4())
    result = client.submit("sample.stops_when_asked", [tag])
    eventually(lambda: executions(tag) == 1)
    client.revoke(result.id)  # it may have stopped when this returns
    record = finished(result)
    assert (record.state, record.cancel_at is None) == ("SUCCESS", False)


def test_a_task_that_retries_itself_ends_when_it_is_revoked(executions):
    tag = str(uuid4())
    result = client.submit("sample.retries_for_ever", [tag])
    eventually(lambda: executions(tag) >= 2)
    TaskRecord.objects.filter(task_id=result.id).stop("revoked")  # its worker is not told
    assert finished(result).state == "REVOKED"


def test_a_revoke_reaches_a_worker_that_the_broker_does_not_reach(executions):
    tag = str(uuid4())
    with victim("--without-mingle", "--without-gossip") as process:
        result = tagged_sleep.apply_async([tag, 60], queue="victim")
        eventually(lambda: executions(tag) == 1)
        TaskRecord.objects.filter(task_id=result.id).stop("revoked", "SIGTERM")  # and no message
        assert finished(result).state == "REVOKED"
        assert client.get_result(client.submit("sample.echo", [1], queue="victim").id, timeout=30) == 1
        assert process.process.poll() is None


def test_a_revoked_workflow_goes_no_further(executions):
    tags = first, second, third = [str(uuid4()) for _ in range(3)]
    chain = client.chain(
        ("sample.tagged_sleep", [first, 1]),
        app.signature("sample.count", [second], immutable=True),
        app.signature("sample.count", [third], immutable=True),
    )
    eventually(lambda: executions(first) == 1)
    assert client.revoke_workflow(chain.id) >= 1
    assert finished(chain).state == "REVOKED"
    assert [executions(tag) for tag in tags] == [1, 0, 0]
    assert finished(chain.parent.parent).state == "SUCCESS"


def test_a_workflow_is_known_by_any_of_its_tasks(executions):
    tag = str(uuid4())
    group = client.group(*[("sample.echo", [n]) for n in range(3)])
    chord = client.chord([("number_sum", [1]), ("number_sum", [2])], ("number_sum",))
    step = app.signature("sample.count", [tag], immutable=True)
    waiting = client.chord([("sample.echo", [1]), app.signature("sample.echo", [2], options={"countdown": 60})], step)
    finished(chord)
    for result, number in ((group[0], 3), (chord, 3)):
        assert TaskRecord.objects.in_workflow(record_of(result).root_id).count() == number
    assert client.revoke_workflow(waiting.id) == 1
    body = finished(waiting)
    assert (body.state, body.exc_type) == ("REVOKED", "TaskRevokedError")
    assert executions(tag) == 0


def test_fifty_running_tasks_are_terminated_at_once():
    with victim("-c", "50"):
        results = [client.submit("sample.sleep", [600], queue="victim") for _ in range(50)]
        running = TaskRecord.objects.filter(task_id__in=[result.id for result in results], state="STARTED")
        eventually(lambda: running.count() == 50, 60)
        app.control.revoke([result.id for result in results], terminate=True)
        assert {finished(result, 60).state for result in results} == {"REVOKED"}
        assert client.get_result(client.submit("number_sum", [1, 1], queue="victim").id, timeout=60) == 2


# Workflows


def test_an_errback_of_either_kind_is_called(executions):
    failing = app.signature("sample.fail", ["x"])
    failing.link_error(app.signature("sample.new_errback"))
    failing.link_error(app.signature("sample.count", immutable=False))
    result = failing.apply_async()
    finished(result)
    eventually(lambda: executions(f"errback {result.id}") == 1)
    eventually(lambda: executions(result.id) == 1)


def test_a_lost_member_fails_its_chord(executions):
    tag = str(uuid4())
    chord = client.chord([("sample.killed_once_for_all", [tag]), ("sample.echo", [1])], app.signature("sample.echo"))
    record = finished(chord)
    assert (record.state, record.exc_type) == ("FAILURE", "ChordError")
    assert "WorkerLostError" in record.exc_message


def test_an_ignored_member_fails_its_chord():
    assert finished(client.chord([("sample.ignored",), ("sample.echo", [1])], "sample.echo")).exc_type == "ChordError"


def test_a_failed_chord_within_another_fails_that_too():
    inner = app.signature("sample.echo", [1])
    from celery import chord, group

    nested = chord(
        group(chord(group(app.signature("sample.fail", ["deep"]), inner), app.signature("sample.echo")), inner),
        app.signature("sample.echo"),
    ).apply_async()
    assert finished(nested).exc_type == "ChordError"


def test_each_step_is_recorded_once_and_nothing_is_left_open():
    from django_celery_results.models import ChordCounter

    chords = [client.chord([("number_sum", [n, i]) for i in range(10)], ("number_sum",)) for n in range(10)]
    assert [client.get_result(c.id, timeout=30) for c in chords] == [10 * n + 45 for n in range(10)]
    assert not ChordCounter.objects.filter(group_id__in=[c.parent.id for c in chords]).exists()
    assert TaskResult.objects.filter(task_id__in=[c.id for c in chords]).count() == 10


# The broker


def test_what_a_broker_forgot_that_restarted_empty_is_published_again():
    eventually(has_epoch)
    results = [echo.apply_async([n], queue="wiped") for n in range(30)]
    waiting = TaskRecord.objects.filter(queue="wiped")
    eventually(lambda: not waiting.filter(published_at=None).exists())
    app.connection_for_write().default_channel.client.flushall()
    eventually(lambda: waiting.filter(gen__gt=1).count() == 30, 3, "sooner than by a census")
    with Manage("celery", "worker", "-Q", "wiped", "-c", "1", "-n", "wiped@%h", **BRISK):
        assert [client.get_result(result.id, timeout=30) for result in results] == list(range(30))


def test_a_message_that_the_broker_lost_is_published_again():
    eventually(has_epoch)
    result = echo.apply_async(["lost"], queue="lossy")
    eventually(lambda: record_of(result).published_at)
    redis = app.connection_for_write().default_channel.client
    for key in redis.keys("lossy*"):
        redis.delete(key)
    with Manage("celery", "worker", "-Q", "lossy", "-c", "1", "-n", "lossy@%h", **BRISK):
        assert client.get_result(result.id, timeout=30) == "lost"
    assert record_of(result).gen > 1


def test_a_hung_broker_costs_a_submit_a_second_once():
    os.kill(broker.process.pid, signal.SIGSTOP)
    try:
        took = []
        results = []
        for n in range(30):
            start = time.monotonic()
            results.append(echo.delay(n))
            took.append(time.monotonic() - start)
    finally:
        os.kill(broker.process.pid, signal.SIGCONT)
    assert sorted(took)[-2] < 0.2, took
    assert took[0] < 2.5
    assert [client.get_result(result.id, timeout=15) for result in results] == list(range(30))


def test_lost_connections_to_postgres_cost_no_task(executions):
    results = [client.submit("sample.sleep", [0.2]) for _ in range(10)]
    for _ in range(3):
        time.sleep(0.4)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
    assert [client.get_result(result.id, timeout=20) for result in results] == [0.2] * 10
    assert client.get_result(client.submit("sample.echo", [1]).id, timeout=30) == 1
