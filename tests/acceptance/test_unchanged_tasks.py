"""Tasks, bases, hooks and errbacks as others wrote them for Celery, and each documented entry of its API.

The numbers are those of the second list of behaviours (cases 38 to 70 and 84 to 88).
"""

import time
from datetime import date
from uuid import uuid4

import pytest
from celery import chain, chord, group
from celery import current_app as app
from celery.exceptions import Reject, TaskRevokedError
from celery.signals import before_task_publish
from django.db import connection, transaction
from django.utils import timezone
from kombu.utils.json import dumps

from tasks_app.client import CeleryClient
from tasks_app.exceptions import DuplicateTask, InvalidSubmission, TaskNotFound
from tasks_app.execution import request_of
from tasks_app.models import TaskRecord
from tests.acceptance.processes import Manage, eventually, finished, record_of
from tests.acceptance.test_behaviours import worker_of
from tests.sample import unchanged
from tests.sample.behaving import add
from tests.sample.tasks import count, echo, fail, sleep, ten_a_second

pytestmark = pytest.mark.usefixtures("worker")
client = CeleryClient()


def tag() -> str:
    return uuid4().hex


# 38, 39, 46: revoked by each entry


@pytest.mark.parametrize("options", [{}, {"terminate": True}, {"terminate": True, "signal": "SIGKILL"}])
def test_a_result_revokes_its_task(options):
    result = add.apply_async((1, 1), countdown=60)
    result.revoke(**options)
    assert record_of(result).state == "REVOKED"


def test_results_of_a_group_revoke_their_members():
    results = group(echo.si(number) for number in range(3)).apply_async(countdown=60)
    results.revoke()
    assert {record_of(each).state for each in results} == {"REVOKED"}
    result = app.ResultSet([echo.apply_async([1], countdown=60)])
    result.revoke()
    assert record_of(result.results[0]).state == "REVOKED"


def test_a_groups_id_revokes_its_members():
    results = group(echo.si(number) for number in range(3)).apply_async(countdown=60)
    app.control.revoke(results.id)
    assert {record_of(each).state for each in results} == {"REVOKED"}


def test_terminate_is_a_revoke_too():
    result = add.apply_async((1, 1), countdown=60)
    app.control.terminate(result.id)
    assert record_of(result).state == "REVOKED"


@pytest.mark.parametrize("nothing", [[], (), None, ""])
def test_to_revoke_nothing_is_no_error(nothing):
    assert app.control.revoke(nothing) is None


def test_a_chains_and_a_chords_results_revoke_what_is_to_come(executions):
    name = tag()
    chained = chain(sleep.si(1), count.si(name)).apply_async()
    chorded = chord([sleep.si(1), sleep.si(1)], count.si(name)).apply_async()
    for result in (chained, chorded):
        assert client.get_status(result.id) == "PENDING"
        result.revoke()
        assert client.get_status(result.id) == "REVOKED"
    eventually(lambda: not TaskRecord.objects.unfinished().filter(name="sample.sleep").exists())
    assert executions(name) == 0
    assert isinstance(app.AsyncResult(chorded.id).result, TaskRevokedError)


# 40, 43: options


def test_a_repr_of_arguments_is_what_is_shown():
    result = add.apply_async((1, 1), argsrepr="<hidden>", kwargsrepr="<none>", queue="nobody")
    assert record_of(result).options["argsrepr"] == "<hidden>"
    shown = unchanged.sees.apply_async(["argsrepr", "kwargsrepr"], argsrepr="<a>", kwargsrepr="<b>")
    assert client.get_result(shown.id, 20) == ["<a>", "<b>"]


def test_a_run_knows_its_eta_and_when_it_expires():
    result = unchanged.sees.apply_async(["eta", "expires"], countdown=1, expires=60)
    eta, expires = client.get_result(result.id, 20)
    record = record_of(result)
    assert (eta, expires) == (record.eta.isoformat(), record.expires.isoformat())


# 41, 42: rejected


def test_a_rejected_run_has_failed(executions):
    result = app.send_task("sample.rejected", link_error=unchanged.count_errback.s())
    with pytest.raises(Reject):
        result.get(timeout=20)
    assert (result.state, result.ready()) == ("FAILURE", True)
    assert eventually(lambda: executions(f"errback {result.id} False")) == 1


def test_a_requeued_run_says_that_it_was_delivered_before(executions):
    name = tag()
    assert client.get_result(unchanged.rejects_first.delay(name).id, 20) == "second"
    assert executions(name) == 2


def test_a_repeated_lost_run_says_that_it_was_delivered_before():
    result = app.send_task("unchanged.killed_unless_redelivered")
    assert client.get_result(result.id, 30) is True


# 44, 45: stamps, purge


def test_stamped_tasks_that_wait_are_revoked_whenever_their_worker_starts(executions):
    name = tag()
    signature = count.s(name)
    signature.stamp(order=name)
    result = signature.apply_async(queue="stamped")
    other = count.si(f"{name} other").apply_async(queue="stamped")
    app.control.revoke_by_stamped_headers({"order": [name]})
    assert record_of(result).state == "REVOKED"
    with worker_of("stamped", "-c", "1"):
        assert finished(other, 30).state == "SUCCESS"
    assert executions(name) == 0


def test_what_is_purged_is_revoked(executions):
    name = tag()
    waiting = [count.apply_async([name], queue="purged") for _ in range(3)]
    later = count.apply_async([f"{name} later"], queue="purged", countdown=1000)
    for result in waiting:
        eventually(lambda result=result: record_of(result).published_at)
    with Manage("celery", "purge", "-f", "-Q", "purged") as command:
        assert command.process.wait(30) == 0
    assert {(record_of(result).state, record_of(result).exc_message) for result in waiting} == {
        ("REVOKED", "its queue was purged")
    }
    assert record_of(later).state == "PENDING"
    with worker_of("purged", "-c", "1"):
        assert finished(echo.apply_async(["last"], queue="purged"), 30).state == "SUCCESS"
    assert executions(name) == 0
    later.revoke()


# 47, 48


def test_what_is_sent_twice_under_one_id_runs_twice(executions):
    name = tag()
    sent = unchanged.counts.si(name)
    sent.freeze()
    assert client.get_result(sent.apply_async().id, 20) == 1
    again = chain(sleep.si(1), sent).apply_async()
    assert client.get_status(again.id) == "PENDING", "not as the first run has ended"
    assert again.get(timeout=20) == 2
    assert sent.apply_async().get(timeout=20) in (2, 3), "what is there until the next run ends, or that"
    record = finished(again)
    assert [attempt.state for attempt in record.attempts.all()][:2] == ["SUCCESS", "SUCCESS"]


def test_what_is_sent_under_the_id_of_an_unfinished_task_is_refused():
    first = echo.apply_async([1], countdown=60)
    twice = echo.si(2).set(task_id=first.id)
    for send in (twice.apply_async, chain(echo.si(1), twice).apply_async, group(echo.si(1), twice).apply_async):
        with pytest.raises(DuplicateTask, match=first.id):
            send()
    first.revoke()


def test_a_step_whose_id_was_taken_meanwhile_fails_what_follows(executions):
    step = echo.si("step")
    step_id = step.freeze().id
    step.link_error(unchanged.count_errback.s())
    result = chain(sleep.si(1), step, echo.si("last")).apply_async()
    taken = echo.apply_async(["another"], task_id=step_id, queue="nobody")
    assert finished(result, 20).exc_type == "DuplicateTask"
    assert eventually(lambda: executions(f"errback {step_id} False")) == 1
    taken.revoke()


def test_a_forgotten_result_is_pending_as_with_celery():
    result = add.delay(1, 1)
    assert result.get(timeout=20) == 2
    result.forget()
    assert app.AsyncResult(result.id).state == "PENDING"
    assert record_of(result).state == "SUCCESS"


# 50, 51: bases


@pytest.mark.parametrize("task", [unchanged.plain, unchanged.overriding, unchanged.calls_super])
def test_each_base_is_claimed(task, executions):
    name = tag()
    result = task.delay(name)
    record = finished(result, 20)
    assert (record.state, record.attempt, executions(name)) == ("SUCCESS", 1, 1)


def test_the_classes_own_hooks_come_after_the_claim(executions):
    result = unchanged.overriding.delay(tag())
    assert client.get_result(result.id, 20) == ["library", 1]
    assert (executions(f"before {result.id}"), executions(f"call {result.id}")) == (1, 1)


def test_a_task_from_a_class_is_claimed(executions):
    name = tag()
    result = app.send_task("unchanged.classy", [name])
    assert client.get_result(result.id, 20) == result.id
    assert (record_of(result).attempt, executions(name)) == (1, 1)


def test_a_plain_tasks_message_runs_once_and_a_revoked_one_never(executions):
    name = tag()
    revoked = unchanged.plain.apply_async([f"{name} revoked"], queue="plain")
    result = unchanged.plain.apply_async([name], queue="plain")
    record = eventually(lambda: TaskRecord.objects.filter(task_id=result.id, published_at__isnull=False).first())
    app.publish([record])  # a second time
    revoked.revoke()
    with worker_of("plain", "-c", "1"):
        assert finished(result, 30).state == "SUCCESS"
        last = unchanged.plain.apply_async(["last"], queue="plain")
        assert finished(last, 30).state == "SUCCESS"
    assert (executions(name), executions(f"{name} revoked")) == (1, 0)


def test_a_plain_task_is_retried_and_replaced(executions):
    name = tag()
    retried = unchanged.plain.delay(name, failures=2)
    assert client.get_result(retried.id, 20) == retried.id
    assert (executions(name), record_of(retried).attempts.count()) == (3, 2)
    replaced = unchanged.plain_replaced.delay(name)
    assert client.get_result(replaced.id, 20) == replaced.id


def test_a_retry_that_is_asked_for_and_not_raised_is_made(executions):
    name = tag()
    assert client.get_result(unchanged.retries_without_raising.delay(name).id, 20) == "done"
    assert executions(name) == 2


# 56: forged


@pytest.mark.parametrize("forged", ["other task", "other arguments", "other keywords"])
def test_what_runs_is_what_the_record_says(forged, executions):
    name = tag()
    result = count.apply_async(kwargs={"tag": name}, queue="forged")
    eventually(lambda: record_of(result).published_at)
    with app.connection_for_write() as broker:
        channel = broker.default_channel
        item = channel.basic_get("forged")
        channel.basic_ack(item.delivery_tag)
        args, kwargs, embed = item.payload
        headers = dict(item.headers)
        if forged == "other task":
            headers["task"], args, kwargs = "unchanged.plain", [f"{name} forged"], {}
        elif forged == "other arguments":
            args, kwargs = [f"{name} forged"], {}
        else:
            kwargs = {"tag": f"{name} forged"}
        embed["callbacks"] = [dict(count.si(f"{name} forged"))]
        headers["eta"] = None
        producer = app.amqp.Producer(broker)
        producer.publish((args, kwargs, embed), routing_key="forged", headers=headers, serializer="json")
        producer.publish(item.payload, routing_key="forged", headers=item.headers, serializer="json")
    with worker_of("forged", "-c", "1"):
        assert finished(result, 30).state == "SUCCESS"
        last = echo.apply_async(["last"], queue="forged")
        assert finished(last, 30).state == "SUCCESS"
    assert (executions(name), executions(f"{name} forged")) == (1, 0)


# 57: references


def test_no_text_is_taken_for_a_reference():
    waiting = chain(echo.si("order-70"), echo.si("x")).apply_async(countdown=60)
    with pytest.raises(TaskNotFound):
        client.revoke_workflow("order-7")
    with pytest.raises(TaskNotFound):
        client.revoke_workflow("")
    assert client.get_status("a") is None
    assert client.get_status(waiting.id) == "PENDING"
    first = waiting.parent
    assert record_of(first).state == "PENDING"
    app.control.revoke("order-7")
    assert client.get_result(client.submit("sample.echo", [7], task_id="order-7").id, 20) == 7
    waiting.parent.revoke()


# 59 to 61: workflows, errbacks


@pytest.mark.parametrize("after", ["body", "chain"])
def test_a_revoked_chord_whose_members_run_never_comes_to_its_body(after, executions):
    name = tag()
    header = [unchanged.waits_for.si(f"{name} member", 10) for _ in range(2)]
    body = count.si(name) if after == "body" else chain(count.si(name), count.si(name))
    result = (group(header) | body).apply_async() if after == "chain" else chord(header, body).apply_async()
    eventually(lambda: executions(f"{name} member") == 2, 20)
    client.revoke_workflow(result.id)
    ended = finished(result, 20)
    eventually(lambda: not TaskRecord.objects.in_workflow(ended.root_id).unfinished().exists(), 20)
    assert (record_of(result).state, executions(name)) == ("REVOKED", 0)


def test_a_step_does_not_follow_from_a_run_that_was_asked_to_stop_and_succeeds(executions):
    name = tag()
    result = chain(unchanged.waits_for.si(f"{name} first", 10), count.si(name), count.si(name)).apply_async()
    first = result.parent.parent
    eventually(lambda: executions(f"{name} first") == 1, 20)
    first.revoke()
    assert finished(first, 20).state == "SUCCESS"
    assert (finished(result, 20).state, record_of(result.parent).state) == ("REVOKED", "REVOKED")
    assert executions(name) == 0


def test_nested_groups_keep_their_order():
    nested = chord([group(echo.s(1), echo.s(2), echo.s(3)), echo.s(4)], echo.s())
    assert nested.apply_async().get(timeout=30) == [1, 2, 3, 4]


def test_an_errback_spoils_nothing_else_and_waits_as_long_as_it_likes(executions):
    errbacks = [unchanged.bad_sql_errback.s(), unchanged.count_errback.s(), unchanged.old_errback.s()]
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(4242)")
    try:
        result = fail.apply_async(["x"], link_error=[*errbacks, unchanged.locking_errback.s()])
        eventually(lambda: executions(f"errback {result.id} False") == 1, 20)
        eventually(lambda: executions(f"old errback {result.id}") == 1, 20)
        assert record_of(result).state == "FAILURE"
        time.sleep(3)  # longer than any lock timeout of ours
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(4242)")
    eventually(lambda: executions(f"locked {result.id}") == 1)


def test_members_submitted_in_a_long_transaction_go_out_once(executions):
    name = tag()
    with transaction.atomic():
        results = group(count.si(name) for _ in range(50)).apply_async()
        time.sleep(3)
    for result in results:
        finished(result, 30)
    assert executions(name) == 50
    assert set(TaskRecord.objects.filter(group_id=results.id).values_list("gen", flat=True)) == {1}


# 63: what the submitter knows


@pytest.fixture
def announces():
    before_task_publish.connect(unchanged.add_tenant)
    token = unchanged.tenant.set("acme")
    yield
    unchanged.tenant.reset(token)
    before_task_publish.disconnect(unchanged.add_tenant)


SEES = ("tenant", "announced")


@pytest.mark.parametrize("options", [{}, {"countdown": 1}])
def test_a_run_has_what_its_submitter_knew(announces, options):
    result = unchanged.sees.apply_async(SEES, **options)
    assert client.get_result(result.id, 20) == ["acme", 1]


def test_what_the_submitter_knew_goes_through_transactions_limits_and_batches(announces):
    with transaction.atomic():
        atomic = unchanged.sees.delay(*SEES)
    many = client.submit_many("unchanged.sees", [(SEES, {}), (SEES, {})])
    limited = ten_a_second.delay(tag())
    for result in [atomic, *many]:
        assert client.get_result(result.id, 20) == ["acme", 1]
    assert record_of(limited).options["headers"]["tenant"] == "acme"
    body = chord([echo.s(1), echo.s(2)], unchanged.sees.si(*SEES)).apply_async()
    assert body.get(timeout=20) == [None, None], "sent by a worker, who knows no tenant, as with Celery"


# 64, 65: bodies


@pytest.mark.parametrize(
    ("task", "argument", "value"),
    [
        (unchanged.pydantic_async, {"value": 1}, {"value": 2}),
        (unchanged.decorated_async, 3, 3),
        (unchanged.retried_async, 4, 4),
        (unchanged.returns_coroutine, 5, 5),
    ],
)
def test_any_awaitable_is_awaited(task, argument, value):
    assert client.get_result(task.delay(argument).id, 20) == value


@pytest.mark.parametrize(
    ("kind", "exc_type", "words"),
    [
        ("two arguments", "TwoArguments", "one and two"),
        ("local", "Local", "here"),
        ("group", "ExceptionGroup", "several (2 sub-exceptions)"),
        ("lock", "ValueError", "<unlocked _thread.lock object"),
        ("key", "KeyError", "'missing'"),
    ],
)
def test_an_exception_keeps_its_class_and_its_words(kind, exc_type, words):
    result = unchanged.raises.delay(kind)
    record = finished(result, 20)
    assert record.exc_type == exc_type
    assert record.exc_message.startswith(words)
    raised = result.get(timeout=30, propagate=False)
    assert type(raised).__name__ == exc_type
    assert words in str(raised) or kind == "group"


def test_an_exception_that_cannot_be_rebuilt_is_caught_by_its_class():
    with pytest.raises(unchanged.TwoArguments, match="TwoArguments: one and two"):
        unchanged.raises.delay("two arguments").get(timeout=20)


def test_what_is_run_again_shares_the_limit_of_what_it_repeats():
    first = ten_a_second.apply_async([uuid4()], countdown=60, queue="nobody")
    again = client.rerun(first.id)
    assert record_of(again).limit_key == record_of(first).limit_key
    client.revoke(first.id)
    client.revoke(again.id)


def test_a_request_that_is_made_of_a_record_has_what_was_sent():
    given, errback = uuid4(), unchanged.ledger_errback.si(b"name", date(2026, 11, 30))
    result = add.apply_async([given], {"other": date(2026, 11, 30)}, countdown=60, link_error=errback)
    request = request_of(record_of(result))
    assert (request.args, request.kwargs) == ([given], {"other": date(2026, 11, 30)})
    assert request.errbacks[0]["args"] == [b"name", date(2026, 11, 30)]
    result.revoke()


def test_a_workflow_may_name_a_step_in_several_places():
    inner = chord([echo.si(1)] * 3, echo.si(2))
    flow = group([chord([inner], echo.s())])
    assert flow.apply_async().get(timeout=30) == [[2]]


@pytest.mark.parametrize("in_chord", [False, True])
def test_an_errback_has_its_arguments_as_they_were_given(executions, in_chord):
    name = tag()
    errback = unchanged.ledger_errback.si(name.encode(), date(2026, 11, 30))
    failing = chord([fail.si("x")], echo.s()) if in_chord else fail.si("x")
    failing.apply_async(link_error=errback)
    assert eventually(lambda: executions(f"{name} 2026-11-30"), 20) == 1


def test_an_exit_says_so():
    record = finished(unchanged.exits.delay(3), 30)
    assert record.state == "FAILURE"
    assert "exit" in record.exc_message
    assert "3" in record.exc_message


def test_what_failed_bodies_held_is_let_go():
    with worker_of("memory", "-c", "1"):
        finished(unchanged.fails_with_much.apply_async([20], queue="memory"), 30)
        one = client.get_result(unchanged.peak.apply_async(queue="memory").id, 30)
        results = [unchanged.fails_with_much.apply_async([20], queue="memory") for _ in range(30)]
        for result in results:
            finished(result, 60)
        assert client.get_result(unchanged.peak.apply_async(queue="memory").id, 30) < one + 30


# 68


@pytest.mark.parametrize("name", ["unchanged.killed_with_reject", "unchanged.killed_with_retry"])
def test_a_lost_run_is_repeated_by_celerys_own_options_too(name):
    with worker_of("lost", "-c", "1", TASK_LEASE="60"):
        result = app.send_task(name, queue="lost")
        assert client.get_result(result.id, 40) is True, "sooner than the lease ends"
    assert record_of(result).attempt == 2


# 70, 84


@pytest.mark.parametrize("unknown", ["\0", "a" * 300, "", "\ud800"])
def test_an_id_that_cannot_be_is_unknown(unknown):
    assert client.get_status(unknown) is None
    assert client.revoke(unknown) is None
    with pytest.raises(TaskNotFound):
        client.revoke_workflow(unknown)
    with pytest.raises(TaskNotFound):
        client.get_result(unknown, 1)
    with pytest.raises(TaskNotFound):
        client.rerun(unknown)
    with pytest.raises(InvalidSubmission):
        echo.apply_async([1], task_id=unknown or "\0")


def test_the_message_is_what_celery_would_send():
    """Headers that a project's tools read are there, and nothing of the console's but its own one."""
    result = echo.apply_async([1], queue="looked_at", headers={"mine": 1}, shadow="other", time_limit=7)
    eventually(lambda: record_of(result).published_at)
    with app.connection_for_write() as broker:
        item = broker.default_channel.basic_get("looked_at")
        broker.default_channel.basic_ack(item.delivery_tag)
    assert item.headers["mine"] == 1
    assert (item.headers["shadow"], item.headers["timelimit"]) == ("other", [7, None])
    assert item.properties["correlation_id"] == result.id
    assert dumps(item.payload[0]) == "[1]"


def test_a_scheduler_announces_what_it_fires_once_and_outside_of_its_transaction():
    from scheduling_app.ledger import firing
    from scheduling_app.models import Schedule

    told = []

    def handler(headers, **_):
        told.append((headers["id"], connection.in_atomic_block))
        headers["trace"] = "of the scheduler"

    schedule = Schedule.objects.create(
        name=tag(), task="unchanged.sees", args=["trace"], kind="interval", every=1, unit="weeks",
        next_fire_at=timezone.now(), changed_at=None, queue="celery_queue",
    )  # fmt: skip
    Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=timezone.now(), changed_at=None)
    before_task_publish.connect(handler)
    try:
        eventually(lambda: firing.fire_due() or schedule.runs.exists())
    finally:
        before_task_publish.disconnect(handler)
    run = schedule.runs.get()
    assert [(task_id, in_atomic) for task_id, in_atomic in told if task_id == run.record.task_id] == [
        (run.record.task_id, False)
    ]
    assert client.get_result(run.record.task_id, 20) == ["of the scheduler"]
    schedule.delete()
