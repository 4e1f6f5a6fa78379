"""Results, retries, workflows, revocation, times and values, as people expect them of a task queue.

The numbers are those of the list of behaviours; what test_worker.py and test_faults.py hold of it is not repeated.
"""

from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from celery import chain, chord, group
from celery import current_app as app
from celery.exceptions import TaskRevokedError
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from tasks_app.client import CeleryClient
from tasks_app.exceptions import InvalidSubmission
from tasks_app.models import TaskRecord
from tasks_app.tasks import number_sum
from tests.acceptance.conftest import BRISK
from tests.acceptance.processes import Manage, eventually, finished, record_of
from tests.sample.behaving import add, counted_sum, tries
from tests.sample.tasks import count, echo, fail, late_sleep, sleep

pytestmark = pytest.mark.usefixtures("worker")
client = CeleryClient()
SHANGHAI = ZoneInfo("Asia/Shanghai")


@contextmanager
def worker_of(queue: str, *arguments: str, **settings: str):
    """A worker of its own, on a queue of its own; killed at the end, which is sooner than to let it stop."""
    name = f"{queue}{uuid4().hex[:6]}@%h"
    quickly = "--without-mingle", "--without-gossip"
    with Manage(
        "celery", "worker", "-Q", queue, "-n", name, "-l", "INFO", *quickly, *arguments, **BRISK | settings
    ) as one:
        yield one
        one.kill()


@pytest.fixture(scope="module")
def page(committed):
    """The text of the page of that name."""
    user = get_user_model().objects.create_superuser(str(uuid4()))
    browser = Client()
    browser.force_login(user)

    def text(name: str, *arguments: str) -> str:
        response = browser.get(reverse(name, args=arguments))
        assert response.status_code == 200
        return response.content.decode()

    yield text
    user.delete()


# 16: submitted while no worker is up


def test_what_waits_for_a_worker_is_shown_and_keeps_its_id_and_its_time(page):
    results = [client.submit("number_sum", [1, 2], queue="no_worker_yet") for _ in range(5)]
    created = [record_of(result).created_at for result in results]
    eventually(lambda: all(record_of(result).published_at for result in results))
    for result, at in zip(results, created, strict=True):
        assert result.id in page("tasks:list")
        shown = page("tasks:detail", result.id)
        assert all(words in shown for words in ("number_sum", "queued", at.isoformat()))
        assert client.get_status(result.id) == "PENDING"
    with worker_of("no_worker_yet", "-c", "1"):
        assert [client.get_result(result.id, timeout=30) for result in results] == [3] * 5
    assert [(record_of(result).state, record_of(result).created_at) for result in results] == [
        ("SUCCESS", at) for at in created
    ]


# 17: retries


@pytest.mark.parametrize(
    ("failures", "limit", "runs", "state"), [(99, 3, 4, "FAILURE"), (99, 0, 1, "FAILURE"), (2, 3, 3, "SUCCESS")]
)
def test_a_task_runs_once_and_once_more_for_each_retry(executions, page, failures, limit, runs, state):
    tag = str(uuid4())
    result = tries.delay(tag, failures, limit, 0.1)
    record = finished(result)
    assert (record.state, record.retries, record.attempt, executions(tag)) == (state, runs - 1, runs, runs)
    assert list(record.attempts.values_list("attempt", "state")) == [(run, "RETRY") for run in range(1, runs)]
    assert f"<dt>Retries</dt><dd>{runs - 1} " in page("tasks:detail", result.id)
    if state == "FAILURE":
        with pytest.raises(ValueError, match="the original error"):
            client.get_result(result.id, timeout=30)


def test_between_its_runs_a_task_is_shown_as_to_be_retried_and_waits_its_delay(executions, page):
    tag = str(uuid4())
    result = tries.delay(tag, 1, 3, 1)
    eventually(lambda: record_of(result).state == "RETRY")
    shown = page("tasks:detail", result.id)
    assert "retrying" in shown
    assert "ValueError: the original error" in shown
    assert client.get_status(result.id) == "RETRY"
    first = record_of(result).attempts.get()
    assert client.get_result(result.id, timeout=30) == 1
    assert timedelta(seconds=1) <= record_of(result).started_at - first.started_at < timedelta(seconds=2.5)
    assert executions(tag) == 2


# 18: time limits given at submission


@pytest.mark.parametrize(
    ("option", "exc_type"), [("time_limit", "TimeLimitExceeded"), ("soft_time_limit", "SoftTimeLimitExceeded")]
)
def test_a_limit_given_to_a_call_ends_its_run_and_the_worker_goes_on(option, exc_type):
    record = finished(client.submit("sample.sleep", [60], **{option: 1}), 4)
    assert (record.state, record.exc_type, record.attempt) == ("FAILURE", exc_type, 1)
    assert client.get_result(client.submit("number_sum", [1, 1]).id, timeout=30) == 2
    eventually(two_run_at_once, 5, "a process for the one that was killed")


def two_run_at_once() -> bool:
    one, other = [finished(result) for result in [client.submit("sample.sleep", [0.2]) for _ in range(2)]]
    return abs(one.started_at - other.started_at) < timedelta(seconds=0.2)


# 19: empty workflows, those of one, and the order of results


def test_an_empty_group_is_an_empty_list():
    assert client.group().get(timeout=30) == []


def test_the_body_of_an_empty_chord_gets_an_empty_list():
    assert client.get_result(client.chord([], "number_sum").id, timeout=30) == 0
    assert client.get_result(client.chord([], "sample.echo").id, timeout=30) == []


def test_an_empty_chain_is_refused_or_ends_at_once():
    try:
        result = client.chain()
    except (InvalidSubmission, ValueError):
        return
    assert not result or not result.get(timeout=30)


def test_a_workflow_of_one_has_a_list_of_one():
    assert client.group(("number_sum", [1, 1])).get(timeout=30) == [2]
    assert client.get_result(client.chord([("number_sum", [1, 1])], "sample.echo").id, timeout=30) == [2]


def test_results_come_in_the_order_of_submission():
    slow_first = client.group(*[("sample.echo_after", [n, n / 10]) for n in (3, 2, 1)])
    assert slow_first.get(timeout=30) == [3, 2, 1]
    mixed = client.chord([("sample.echo_after", [n, n * 7 % 10 / 50]) for n in range(10)], "sample.echo")
    assert client.get_result(mixed.id, timeout=30) == list(range(10))


# 20: failures and retries within workflows


def members_of(body) -> list[tuple[str, str]]:
    records = TaskRecord.objects.in_workflow(record_of(body).root_id).exclude(task_id=body.id)
    return list(records.values_list("name", "state"))


def test_a_chord_names_the_member_that_failed_and_leaves_the_others_as_they_are(executions):
    tag = str(uuid4())
    failing = fail.s("x")
    failing.freeze()
    body = chord([number_sum.s(1, 1), failing, number_sum.s(2, 2)])(counted_sum.s(tag))
    record = finished(body)
    assert (record.state, record.exc_type) == ("FAILURE", "ChordError")
    assert failing.id in record.exc_message
    assert "ValueError('x')" in record.exc_message
    members = [finished(member) for member in body.parent]
    assert [member.state for member in members] == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert executions(tag) == 0


def test_a_chain_that_fails_in_a_header_fails_the_chord(executions):
    tag = str(uuid4())
    body = chord([chain(fail.s("x"), number_sum.s(1)), number_sum.s(2, 2)])(counted_sum.s(tag))
    record = finished(body)
    assert (record.state, record.exc_type) == ("FAILURE", "ChordError")
    assert "ValueError('x')" in record.exc_message
    assert [finished(member).state for member in body.parent] == ["FAILURE", "SUCCESS"]
    assert executions(tag) == 0


def test_a_member_that_is_retried_counts_once(executions):
    member, tag = str(uuid4()), str(uuid4())
    body = client.chord([("sample.tries", [member, 2, 3, 0.1]), ("number_sum", [1, 1])], counted_sum.s(tag))
    assert client.get_result(body.id, timeout=30) == 4
    assert (executions(member), executions(tag)) == (3, 1)


def test_what_comes_after_a_failed_step_never_runs_and_the_pages_say_so(executions, page):
    tag = str(uuid4())
    last = (number_sum.s(1, 1) | fail.si("x") | count.si(tag)).apply_async()
    third = finished(last)
    assert (third.state, third.attempt, third.started_at) == ("FAILURE", 0, None)
    assert [finished(step).state for step in (last.parent.parent, last.parent)] == ["SUCCESS", "FAILURE"]
    for result in (last, last.parent.parent):
        shown = page("tasks:detail", result.id)
        assert 'data-phase="failed"' in shown
        assert 'data-phase="running"><svg' not in shown
    assert executions(tag) == 0


# 21: long chains and wide groups


def test_long_chains_and_wide_groups_finish(worker, executions):
    tags = [str(uuid4()) for _ in range(21)]
    steps = chain(add.s(0, 1), *[add.s(1) for _ in range(299)]).apply_async()
    wide = group(add.s(n, n) for n in range(1000)).apply_async()
    large = chord(add.s(n, n) for n in range(500))(counted_sum.s(tags[0]))
    twenty = [chord(add.s(n, i) for n in range(50))(counted_sum.s(tags[i + 1])) for i in range(20)]
    assert client.get_result(steps.id, timeout=60) == 300
    assert client.get_result(large.id, timeout=60) == 2 * sum(range(500))
    assert [client.get_result(body.id, timeout=60) for body in twenty] == [1225 + 50 * i for i in range(20)]
    assert wide.get(timeout=60) == [2 * n for n in range(1000)]
    assert [executions(tag) for tag in tags] == [1] * 21
    said = worker.said()
    assert not [words for words in ("RecursionError", "ChordCounter", "counter") if words in said]


# 22: a revoked task never runs


def test_what_was_revoked_while_no_worker_was_up_never_runs(executions):
    tag = str(uuid4())
    result = count.apply_async([tag], queue="nobody_yet")
    client.revoke(result.id)
    assert record_of(result).state == "REVOKED"
    with worker_of("nobody_yet", "-c", "1"):
        finished(echo.apply_async(["later"], queue="nobody_yet"), 30)
    assert executions(tag) == 0


def test_what_was_revoked_before_its_time_does_not_run_in_a_worker_that_started_since(executions):
    tag = str(uuid4())
    with worker_of("restarted", "-c", "1") as process:
        process.wait_for("ready.")
        result = count.apply_async([tag], queue="restarted", countdown=2)
        client.revoke(result.id)
        assert record_of(result).state == "REVOKED"
    after = echo.apply_async(["later"], queue="restarted", countdown=2.1)
    with worker_of("restarted", "-c", "1"):
        finished(after, 30)
    assert (executions(tag), record_of(result).state) == (0, "REVOKED")


# 23: revoking what has ended, what is unknown, and many


def test_a_second_revoke_changes_nothing():
    done, waiting = echo.delay(1), echo.apply_async([2], countdown=60)
    finished(done)
    assert [client.revoke(waiting.id), client.revoke(waiting.id)] == ["REVOKED", "REVOKED"]
    before = record_of(waiting).finished_at
    app.control.revoke([done.id, waiting.id], terminate=True, reply=True, limit=1, timeout=5)
    assert (client.revoke(done.id, terminate=True), client.get_result(done.id, timeout=30)) == ("SUCCESS", 1)
    assert record_of(waiting).finished_at == before
    with pytest.raises(TaskRevokedError):
        client.get_result(waiting.id, timeout=30)


@pytest.mark.parametrize("terminate", [False, True])
def test_a_revoked_id_that_is_unknown_stays_unknown(terminate):
    unknown = str(uuid4())
    assert client.revoke(unknown, terminate=terminate) is None
    assert app.control.revoke(unknown, terminate=terminate, reply=True, limit=1, timeout=5), (
        "the worker has heard of it"
    )
    assert client.get_status(unknown) is None


# 24: the visibility timeout


def restore_unacknowledged() -> None:
    """Hand out again what has been unacknowledged for a second. A worker does so itself every 100 s, by its timeout."""
    with app.connection_for_read(transport_options={"visibility_timeout": 1}) as connection:
        connection.default_channel.qos.restore_visible(num=None, interval=1)


def test_neither_a_long_delay_nor_a_long_run_is_run_twice_by_the_visibility_timeout(executions):
    delayed, long = str(uuid4()), str(uuid4())
    with (
        worker_of("visible", "-c", "2", VISIBILITY_TIMEOUT="1") as one,
        worker_of("visible", "-c", "2", VISIBILITY_TIMEOUT="1") as two,
    ):
        one.wait_for("ready.")
        two.wait_for("ready.")
        later = count.apply_async([delayed], queue="visible", countdown=4)
        running = late_sleep.apply_async([long, 3], queue="visible")
        eventually(lambda: executions(long) == 1)
        eventually(lambda: restore_unacknowledged() or redelivered(running, one, two), 3, "a second delivery")
        assert record_of(running).state == "STARTED"
        restore_unacknowledged()
        assert [finished(running).attempt, finished(later).attempt] == [1, 1]
        restore_unacknowledged()
        finished(echo.apply_async(["after"], queue="visible", priority=9))
    record = record_of(later)
    assert timedelta(0) <= record.started_at - record.eta < timedelta(seconds=2)
    assert (executions(delayed), executions(long), record_of(running).lost_count) == (1, 1, 0)


def redelivered(result, *workers: Manage) -> bool:
    return any(f"{result.id}] ignored" in worker.said() for worker in workers)


# 25: priorities


def test_the_urgent_start_before_what_was_submitted_sooner():
    """Except at most one, which the worker had fetched."""
    with worker_of("urgency", "-c", "1") as process:
        process.wait_for("ready.")
        busy = sleep.apply_async([2], queue="urgency")
        eventually(lambda: record_of(busy).state == "STARTED")
        low = [echo.apply_async([n], queue="urgency", priority=9) for n in range(5)]
        high = [echo.apply_async([n], queue="urgency", priority=0) for n in range(5)]
        started = {result.id: finished(result).started_at for result in low + high}
    last = max(started[result.id] for result in high)
    assert len([result for result in low if started[result.id] < last]) <= 1


@pytest.mark.parametrize("priority", [-1, 10, 50, "high"])
def test_a_priority_that_is_none_is_refused_and_nothing_is_queued(priority):
    task_id = str(uuid4())
    with pytest.raises(InvalidSubmission, match=r"from 0 \(most urgent\) to 9"):
        client.submit("sample.echo", [1], task_id=task_id, priority=priority)
    assert not TaskRecord.objects.filter(task_id=task_id).exists()


# 26: start and expiry, with and without a zone


@pytest.fixture
def in_shanghai(settings):
    settings.TIME_ZONE = "Asia/Shanghai"
    yield
    connection.close()  # whose zone it was


def spellings(at: datetime) -> list:
    local = at.astimezone(SHANGHAI)
    return [at.astimezone(UTC), local, local.isoformat(), local.replace(tzinfo=None), f"{local:%Y-%m-%dT%H:%M:%S.%f}"]


def test_a_start_time_means_the_same_however_it_is_written(in_shanghai, executions, page):
    tag, at = str(uuid4()), timezone.now() + timedelta(seconds=1.5)
    results = [count.apply_async([tag], eta=eta) for eta in spellings(at)]
    assert {record_of(result).eta for result in results} == {at}
    shown = page("tasks:detail", results[-1].id)
    assert f"{at.astimezone(SHANGHAI):%a %Y-%m-%d %H:%M:%S}" in shown
    assert "+08:06" not in shown
    late = [finished(result).started_at - at for result in results]
    assert all(timedelta(0) <= each < timedelta(seconds=2) for each in late), late
    assert executions(tag) == 5


def test_an_expiry_means_the_same_however_it_is_written(in_shanghai, executions):
    tag, at = str(uuid4()), timezone.now() + timedelta(seconds=60)
    results = [count.apply_async([tag], expires=expires) for expires in spellings(at)]
    assert {record_of(result).expires for result in results} == {at}
    assert {finished(result).state for result in results} == {"SUCCESS"}
    assert executions(tag) == 5


def test_a_start_in_the_past_is_now_and_an_expiry_in_the_past_is_never(in_shanghai, executions):
    now, never, past = str(uuid4()), str(uuid4()), timezone.now() - timedelta(hours=1)
    expired = [count.apply_async([never], expires=expires) for expires in spellings(past)]
    ran = [finished(count.apply_async([now], eta=eta)) for eta in spellings(past)]
    assert all(record.started_at - record.created_at < timedelta(seconds=2) for record in ran)
    assert {(finished(each).state, record_of(each).exc_message) for each in expired} == {("REVOKED", "expired")}
    assert (executions(now), executions(never)) == (5, 0)


# 27: values that JSON cannot carry


@pytest.mark.parametrize(
    ("value", "comes_back_as"),
    [
        pytest.param(value, back, id=type(value).__name__)
        for value, back in [
            (Decimal("1.10"), Decimal("1.10")),
            (datetime(2030, 1, 1, 12, 0, 0, 1, SHANGHAI), datetime.fromisoformat("2030-01-01T12:00:00.000001+08:00")),
            (date(2030, 1, 1), date(2030, 1, 1)),
            (UUID(int=7), UUID(int=7)),
            (b"\xff\x00 bytes", b"\xff\x00 bytes"),
            (float("nan"), float("nan")),
            (2**70, 2**70),
            ({1: "a"}, {"1": "a"}),
            ((1, 2), [1, 2]),
        ]
    ],
)
def test_a_value_comes_back_equal_or_as_documented(value, comes_back_as):
    result = client.submit("sample.echo", [value])
    assert repr(client.get_result(result.id, timeout=30)) == repr(comes_back_as)


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), 1j, float, ValueError("x")], ids=lambda value: type(value).__name__
)
def test_a_value_that_cannot_travel_is_refused_at_submission(value):
    task_id = str(uuid4())
    with pytest.raises(InvalidSubmission, match="JSON"):
        client.submit("sample.echo", [value], task_id=task_id)
    assert client.get_status(task_id) is None


# 28: text of all the world


def test_text_of_any_script_is_readable_wherever_it_comes_back(page):
    text = "北京 – Ærø – 😀 – العربية"  # noqa: RUF001
    result = client.submit("sample.echo", [text])
    assert client.get_result(result.id, timeout=30) == text
    failed = finished(client.submit("sample.fail", [text]))
    assert failed.exc_message == text
    with pytest.raises(ValueError, match=text):
        client.get_result(failed.task_id, timeout=30)
    assert page("tasks:list").count(text) >= 4  # arguments and outcome of both
    assert page("tasks:detail", result.id).count(text) >= 2
    assert text in page("tasks:detail", failed.task_id)
