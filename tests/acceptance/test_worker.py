"""A real worker process: outcomes, retries, canvas, delay, revocation, transactions."""

import time
from uuid import uuid4

import pytest
from celery import current_app as app
from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from celery.result import AsyncResult
from django.db import transaction
from django.utils import timezone
from django_celery_results.models import TaskResult

from scheduling_app.ledger.firing import run_now
from scheduling_app.models import Schedule
from tasks_app.client import CeleryClient
from tasks_app.exceptions import TaskNotFound
from tasks_app.models import QueueReader, TaskRecord
from tests.acceptance.processes import Manage, eventually, finished, record_of
from tests.sample.tasks import count, echo, flaky, sleep

pytestmark = pytest.mark.usefixtures("worker")
client = CeleryClient()


def test_a_task_succeeds_and_its_result_and_record_are_kept():
    result = client.submit("sample.echo", [{"a": [1, "ü", None]}])
    assert client.get_result(result.id, timeout=30) == {"a": [1, "ü", None]}
    record, stored = record_of(result), TaskResult.objects.get(task_id=result.id)
    assert (record.state, stored.status, stored.task_name) == ("SUCCESS", "SUCCESS", "sample.echo")
    assert record.attempt == 1
    assert record.created_at <= record.published_at <= record.started_at <= record.finished_at
    assert record.worker.startswith("celery@")
    assert record.result_preview == '{"a": [1, "\\u00fc", null]}'


def test_a_worker_tells_of_the_queues_that_it_reads_also_of_one_that_it_was_told_of_later():
    def read() -> set[str]:
        return set(QueueReader.objects.values_list("queue", flat=True))

    eventually(lambda: {"celery_queue", "cron_queue"} <= read(), 10, "what the worker reads")
    app.control.add_consumer("added_later", reply=True)
    try:
        eventually(lambda: "added_later" in read(), 30, "a queue that was added")
    finally:
        app.control.cancel_consumer("added_later", reply=True)


def test_a_failure_keeps_the_exception_and_the_traceback():
    result = client.submit("sample.fail", ["boom"])
    with pytest.raises(ValueError, match="boom"):
        client.get_result(result.id, timeout=30)
    assert isinstance(client.get_result(result.id, timeout=30, propagate=False), ValueError)
    record = record_of(result)
    assert (record.state, record.exc_type, record.exc_message) == ("FAILURE", "ValueError", "boom")
    assert "raise ValueError(message)" in TaskResult.objects.get(task_id=result.id).traceback


def test_a_retried_task_keeps_its_id_and_the_history_of_its_runs():
    result = flaky.delay(2)
    assert client.get_result(result.id, timeout=30) == 2
    record = record_of(result)
    assert (record.state, record.retries, record.attempt, record.exc_type) == ("SUCCESS", 2, 3, "")
    assert list(record.attempts.values_list("attempt", "state", "exc_message")) == [
        (1, "RETRY", "failure 1"),
        (2, "RETRY", "failure 2"),
    ]


def test_a_message_can_ask_for_retries_of_a_task_that_has_none():
    policy = {"retry_policy": {"max_retries": 2, "backoff": 0}}
    record = finished(client.submit("sample.fail", ["boom"], headers=policy))
    assert (record.state, record.retries, record.attempt, record.exc_message) == ("FAILURE", 2, 3, "boom")


def test_a_scheduled_task_knows_its_due_time_also_after_a_retry():
    fields = {"kwargs": {"failures": 1}, "due_kwarg": "day", "max_retries": 1}
    schedule = Schedule.objects.create(
        name="knows", task="sample.due_time", kind="cron", cron="0 0 1 1 *", enabled=False, **fields
    )
    run = run_now(schedule)
    at = run.scheduled_for.isoformat()
    assert client.get_result(run.record_id, timeout=30) == [at, at]
    schedule.delete()


def test_a_task_that_fails_for_good_has_run_once_more_than_its_retries():
    result = flaky.delay(99, delay=0.05)
    record = finished(result)
    assert (record.state, record.retries, record.attempt, record.exc_message) == ("FAILURE", 3, 4, "failure 4")


def test_number_sum_takes_numbers_and_lists_and_works_in_each_canvas():
    chain = client.chain(("number_sum", [1, 2]), ("number_sum", [3]), ("number_sum", [4]))
    group = client.group(*[("number_sum", [n, n]) for n in (1, 2, 3)])
    chord = client.chord([("number_sum", [1, 1]), ("number_sum", [2, 2])], ("number_sum", [5]))
    assert client.get_result(chain.id, timeout=30) == 10
    assert group.get(timeout=30) == [2, 4, 6]
    assert client.get_result(chord.id, timeout=30) == 11
    assert record_of(chain).root_id != chain.id, "the last step knows the workflow's first"


def test_a_failed_header_fails_the_chords_body_without_running_it(executions):
    tag = str(uuid4())
    chord = client.chord(
        [("number_sum", [1, 1]), ("sample.fail", ["x"])], app.signature("sample.count", [tag], immutable=True)
    )
    record = finished(chord)
    assert (record.state, record.exc_type) == ("FAILURE", "ChordError")
    assert executions(tag) == 0


def test_a_failed_step_ends_its_chain_visibly():
    chain = client.chain(
        ("number_sum", [1, 1]), app.signature("sample.fail", ["x"], immutable=True), ("number_sum", [5])
    )
    assert finished(chain).state == "FAILURE"
    assert finished(chain.parent).exc_message == "x"


def test_a_replaced_task_goes_on_under_its_id():
    result = client.submit("sample.replaced", ["x"])
    assert client.get_result(result.id, timeout=30) == "x"
    assert (record_of(result).name, record_of(result).attempt) == ("sample.echo", 2)


@pytest.mark.parametrize(
    ("name", "result"), [("sample.replaced_by_chain", "x"), ("sample.replaced_by_group", ["x", "x"])]
)
def test_a_task_replaced_by_a_workflow_goes_on_under_its_id(name, result):
    sent = client.submit(name, ["x"])
    assert client.get_result(sent.id, timeout=30) == result
    assert record_of(sent).state == "SUCCESS"


def test_a_coroutine_past_its_soft_limit_does_not_go_on_beside_the_next_one(executions):
    tag = str(uuid4())
    limited = client.submit("sample.async_limited", [tag])
    assert finished(limited).exc_type == "SoftTimeLimitExceeded"
    for _ in range(2):  # one for each child
        client.get_result(client.submit("sample.async_sleep", [1]).id, timeout=30)
    assert executions(tag) == 0


def test_a_connection_that_is_lost_during_the_body_costs_no_result():
    sent = client.submit("sample.without_connection", ["kept"])
    assert client.get_result(sent.id, timeout=30) == "kept"
    assert record_of(sent).attempt == 1


def test_a_task_that_puts_itself_back_runs_again(executions):
    tag = str(uuid4())
    record = finished(client.submit("sample.requeued", [tag]))
    assert (record.state, record.attempt, executions(tag)) == ("SUCCESS", 2, 2)


def test_a_task_cannot_send_another_under_its_own_id():
    assert finished(client.submit("sample.beside_itself")).exc_type == "DuplicateTask"


def test_a_state_of_failure_that_a_task_gives_itself_is_kept():
    assert finished(client.submit("sample.own_failure")).state == "FAILURE"


def test_a_tasks_own_wish_for_no_result_holds_however_it_is_sent():
    sent = client.submit_many("sample.noop", [((), {})])[0]
    finished(sent)
    assert not TaskResult.objects.filter(task_id=sent.id).exists()


def test_a_chord_whose_member_is_revoked_fails(executions):
    tag = str(uuid4())
    late = app.signature("sample.echo", ["never"], options={"countdown": 60})
    chord = client.chord([("number_sum", [1, 1]), late], app.signature("sample.count", [tag], immutable=True))
    waiting = eventually(
        lambda: TaskRecord.objects.waiting().filter(group_id__isnull=False, eta__gt=timezone.now()).last()
    )
    client.revoke(waiting.task_id)
    assert finished(chord).exc_type == "ChordError"
    assert executions(tag) == 0


def test_a_coroutine_is_a_task():
    result = client.submit("sample.async_sleep", [0.01])
    assert client.get_result(result.id, timeout=30) == 0.01


def test_a_coroutine_can_send_a_task(executions):
    tag = str(uuid4())
    assert finished(client.submit("sample.async_sends", [tag])).state == "SUCCESS"
    eventually(lambda: executions(tag) == 1)


def test_ignore_and_reject_end_the_record():
    assert finished(client.submit("sample.ignored")).state == "IGNORED"
    assert finished(client.submit("sample.rejected")).state == "FAILURE"


def test_a_task_that_ignores_its_result_is_recorded_without_one():
    result = client.submit("sample.noop")
    assert finished(result).state == "SUCCESS"
    assert not TaskResult.objects.filter(task_id=result.id).exists()
    assert AsyncResult(result.id).state == "PENDING", "as with Celery"
    assert client.get_result(result.id, timeout=30) is None


def test_a_hard_time_limit_is_one_failure_that_names_it():
    result = client.submit("sample.time_limited")
    with pytest.raises(TimeLimitExceeded):
        client.get_result(result.id, timeout=30)
    assert (record_of(result).state, record_of(result).attempt) == ("FAILURE", 1)
    assert client.get_result(client.submit("sample.echo", [1]).id, timeout=30) == 1


def test_a_countdown_runs_once_after_its_time(executions):
    tag, start = str(uuid4()), time.monotonic()
    record = finished(count.apply_async([tag], countdown=1.5))
    assert 1.5 <= time.monotonic() - start < 10  # mostly less than two
    assert record.started_at >= record.eta
    assert executions(tag) == 1


def test_an_id_of_ones_own_is_kept():
    result = client.submit("sample.echo", ["x"], task_id=f"order 7/ü {uuid4()}")
    assert client.get_result(result.id, timeout=30) == "x"
    assert record_of(result).state == "SUCCESS"


def test_eight_of_a_rolled_back_transaction_never_run_and_eight_of_a_committed_one_do(executions):
    lost, kept = str(uuid4()), str(uuid4())
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        for _ in range(8):
            count.delay(lost)
        raise ZeroDivisionError
    with transaction.atomic():
        for _ in range(8):
            count.delay(kept)
    eventually(lambda: executions(kept) == 8, what="eight executions")
    finished(echo.delay("whatever was queued before this has run"))
    assert (executions(kept), executions(lost)) == (8, 0)


def test_a_task_revoked_while_it_waits_never_runs(executions):
    tag = str(uuid4())
    waiting = count.apply_async([tag], countdown=1)
    assert client.revoke(waiting.id) == "REVOKED"
    busy = [sleep.delay(1) for _ in range(2)]
    queued = count.delay(tag)
    assert client.revoke(queued.id) == "REVOKED"
    for result in busy:
        finished(result)
    finished(echo.apply_async(["later than both"], countdown=1.2))
    assert executions(tag) == 0
    with pytest.raises(TaskRevokedError):
        client.get_result(waiting.id, timeout=30)


def test_a_running_task_is_terminated_on_request():
    result = sleep.delay(60)
    eventually(lambda: record_of(result).state == "STARTED")
    client.revoke(result.id, terminate=True)
    assert finished(result).state == "REVOKED"
    assert client.get_result(client.submit("sample.echo", [1]).id, timeout=30) == 1


def test_a_revoke_of_a_finished_task_changes_nothing():
    result = client.submit("sample.echo", [1])
    finished(result)
    assert client.revoke(result.id) == "SUCCESS"
    assert client.get_result(result.id, timeout=30) == 1


def test_what_expired_before_it_was_started_is_revoked():
    record = finished(echo.apply_async(["x"], countdown=60, expires=timezone.now()))
    assert (record.state, record.exc_message, record.attempt) == ("REVOKED", "expired", 0)


def test_a_message_that_comes_twice_runs_once(executions):
    tag = str(uuid4())
    result = count.delay(tag)
    finished(result)
    record = record_of(result)
    app.publish([record, record, record])
    finished(echo.delay("after them"))
    finished(echo.delay("and again, for the other child"))
    assert executions(tag) == 1
    assert record_of(result).attempt == 1


def test_a_task_of_a_foreign_producer_is_adopted():
    from celery import Celery

    with Celery(broker=app.conf.broker_url, set_as_current=False) as foreign:
        sent = foreign.send_task("sample.echo", ["hello"], queue="celery_queue")
    finished(sent)
    assert client.get_result(sent.id, timeout=30) == "hello"
    assert (record_of(sent).state, record_of(sent).args, record_of(sent).queue) == (
        "SUCCESS",
        ["hello"],
        "celery_queue",
    )


def test_a_task_that_no_worker_knows_fails_visibly():
    record = finished(app.send_task("no.such.task", task_id=str(uuid4())))
    assert (record.state, record.exc_type) == ("FAILURE", "NotRegistered")


@pytest.mark.parametrize("task_id", ["abc", str(uuid4()), "x" * 300])
def test_an_id_that_was_never_recorded_is_told_apart_from_a_waiting_one(task_id):
    assert client.get_status(task_id) is None
    with pytest.raises(TaskNotFound):
        client.get_result(task_id, timeout=1)


def test_async_result_goes_on_working():
    result = sleep.delay(2)
    eventually(lambda: client.get_status(result.id) == "STARTED")
    assert AsyncResult(result.id).state == "PENDING", "as with Celery, whose task_track_started is off"
    assert AsyncResult(result.id).get(timeout=30) == 2


def test_tasks_submitted_while_no_worker_is_up_run_when_one_comes():
    """Their queue is one that the session's worker does not consume."""
    results = [echo.apply_async([n], queue="later") for n in range(5)]
    assert {record_of(result).state for result in results} == {"PENDING"}
    with Manage("celery", "worker", "-Q", "later", "-c", "1", "-n", "later@%h"):
        assert [client.get_result(result.id, timeout=30) for result in results] == [0, 1, 2, 3, 4]


def test_a_worker_alone_publishes_what_a_submitter_left():
    record = app.build_record("sample.echo", ["left"])
    TaskRecord.objects.insert([record])
    assert client.get_result(record.task_id, timeout=30) == "left"
