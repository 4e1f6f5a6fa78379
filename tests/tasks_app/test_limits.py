"""Limits across all workers: never more than there are slots, in order, and from what the rows say alone."""

import threading
import time
from datetime import timedelta
from itertools import pairwise

import pytest
from celery import current_app as app
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from tasks_app import limits, states
from tasks_app.exceptions import InvalidSubmission
from tasks_app.models import Limit, TaskRecord
from tasks_app.retries import wait_again

objects = TaskRecord.objects
SECOND = timedelta(seconds=1)


def body(customer, *, region="eu"):
    pass


@pytest.fixture
def declare():
    """Make a task with such options, for one test."""
    names = []

    def declare(name="limited", run=body, **options):
        names.append(name)
        app.task(name=name, shared=False, **options)(run)
        return app.tasks[name]

    yield declare
    for name in names:
        app.tasks.pop(name)


def insert(count=1, name="limited", key="limited", priority=5, prefix="t", **fields) -> list[TaskRecord]:
    records = [
        TaskRecord(
            task_id=f"{prefix}{n}", name=name, queue="q", root_id="r", limit_key=key, priority=priority,
            publish_at=timezone.now(),
        )
        for n in range(count)
    ]  # fmt: skip
    objects.insert(records)
    rows = objects.filter(task_id__in=[record.task_id for record in records])
    if fields:
        rows.update(**fields)
    return list(rows.order_by("pk"))


def park(count=1, **fields) -> None:
    insert(count, **{"publish_at": None, "parked_at": Now()} | fields)


def admitted():
    """The ids of those with a slot, in the order in which they are published."""
    return list(objects.filter(slot_at__isnull=False).order_by("publish_at", "pk").values_list("task_id", flat=True))


def finish(task_id: str) -> None:
    objects.filter(task_id=task_id).update(state=states.SUCCESS, publish_at=None, finished_at=Now())


# Keys


def test_a_task_without_limits_has_no_key(declare):
    assert limits.key_of(declare(), ["a"], {}) is None
    assert limits.key_of(None, ["a"], {}) is None


def test_the_key_is_the_tasks_name_or_made_of_the_arguments(declare):
    assert limits.key_of(declare(concurrency_limit=1), ["a"], {}) == "limited"
    keyed = declare("keyed", rate_limit="1/s", limit_key="customer {customer} in {region}")
    assert limits.key_of(keyed, ["a"], {}) == "customer a in eu"
    assert limits.key_of(keyed, [], {"customer": 7, "region": "us"}) == "customer 7 in us"


def test_a_bound_and_a_coroutine_task_have_their_arguments_by_name_too(declare):
    def bound_body(self, customer):
        pass

    async def wait(self, customer):
        pass

    bound = declare(run=bound_body, bind=True, concurrency_limit=1, limit_key="{customer}")
    waiting = declare("waiting", run=wait, bind=True, concurrency_limit=1, limit_key="{customer}")
    assert [limits.key_of(task, ["a"], {}) for task in (bound, waiting)] == ["a", "a"]


def test_a_long_key_keeps_its_start_and_stays_one_of_its_own(declare):
    task = declare(concurrency_limit=1, limit_key="{customer}")
    keys = {limits.key_of(task, ["ü" * 300 + end], {}) for end in "ab"}
    assert len(keys) == 2
    assert {len(key) for key in keys} == {255}
    assert all(key.startswith("ü" * 200) for key in keys)


def test_a_key_is_never_empty_and_holds_what_postgres_can(declare):
    task = declare(concurrency_limit=1, limit_key="{customer}")
    assert limits.key_of(task, [""], {}) == "limited"
    assert limits.key_of(task, ["a\x00"], {}) == "a\\x00"


@pytest.mark.parametrize(
    ("options", "args", "words"),
    [
        ({"concurrency_limit": 1, "limit_key": "{order}"}, ["a"], "limit_key names 'order', which is no argument"),
        ({"concurrency_limit": 1, "limit_key": "{customer.id}"}, ["a"], "no attribute 'id'"),
        ({"concurrency_limit": 1, "limit_key": "{customer}"}, [], "missing a required argument: 'customer'"),
        ({"concurrency_limit": 0}, ["a"], "concurrency_limit must be"),
        ({"rate_limit": "10/d"}, ["a"], "rate_limit must be"),
    ],
)
def test_a_call_whose_limits_cannot_be_told_is_refused(declare, options, args, words):
    with pytest.raises(InvalidSubmission, match=words):
        limits.key_of(declare(**options), args, {})


# Declarations


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"concurrency_limit": 3},
        {"rate_limit": "10/h"},
        {"rate_limit": 0.5},
        {"concurrency_limit": 3, "rate_limit": "10/m", "limit_key": "{customer[id]} {region!r:>9} {{}}"},
    ],
)
def test_a_right_declaration_has_no_problems(declare, options):
    assert limits.problems(declare(**options)) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency_limit": 0}, "concurrency_limit must be a whole number from 1 up, not 0"),
        ({"concurrency_limit": True}, "concurrency_limit must be"),
        ({"concurrency_limit": "3"}, "concurrency_limit must be"),
        ({"rate_limit": "10/d"}, "rate_limit must be a rate such as '10/s', '10/m' or '10/h', not '10/d'"),
        ({"rate_limit": "-1/s"}, "rate_limit must be"),
        ({"rate_limit": "nan"}, "rate_limit must be"),
        ({"rate_limit": "0.00001/h"}, "rate_limit must be"),
        ({"rate_limit": [1]}, "rate_limit must be"),
        ({"limit_key": "{customer}"}, "limit_key limits nothing"),
        ({"rate_limit": 1, "limit_key": "{order}"}, "limit_key names 'order', which is no argument of it"),
        ({"rate_limit": 1, "limit_key": "{}"}, "limit_key names ''"),
        ({"rate_limit": 1, "limit_key": "{customer"}, "limit_key must be a text with names of arguments in braces"),
        ({"rate_limit": 1, "limit_key": 7}, "limit_key must be a text"),
    ],
)
def test_a_wrong_declaration_is_told(declare, options, words):
    (problem,) = limits.problems(declare(**options))
    assert problem.startswith(words)


def test_tasks_that_share_a_key_have_the_same_limits(declare):
    one = declare("one", concurrency_limit=1, limit_key="{customer}")
    assert limits.problems(one) == []
    declare("same", concurrency_limit=1, limit_key="{customer}")
    assert limits.problems(one) == []
    declare("other", concurrency_limit=2, limit_key="{customer}")
    assert limits.problems(one) == [
        "it shares the limit_key '{customer}' with other, but not its concurrency_limit and rate_limit"
    ]


# Parking


@pytest.mark.django_db
def test_what_is_due_waits_for_a_slot_and_what_has_no_limit_does_not(declare):
    declare(concurrency_limit=1)
    records = [*insert(), *insert(prefix="free", name="sample.echo", key=None), *insert(prefix="held", slot_at=Now())]
    assert [record.task_id for record in limits.admit(records)] == ["free0", "held0"]
    parked = objects.get(task_id="t0")
    assert parked.parked_at is not None
    assert (parked.publish_at, parked.slot_at, parked.phase) == (None, None, "limited")
    assert objects.filter(parked_at__isnull=False).count() == 1


@pytest.mark.django_db
def test_a_task_that_is_not_registered_here_is_left_to_a_relay_that_knows_its_limits():
    records = insert(name="unheard.of")
    assert limits.admit(records) == []
    assert limits.admit_parked() == 0
    TaskRecord.objects.update(parked_at=timezone.now() - limits.UNKNOWN_FOR)
    assert limits.admit_parked() == 1, "there seems to be none"


@pytest.mark.django_db
def test_a_task_whose_limits_were_taken_away_is_published(declare):
    declare()
    records = insert()
    assert limits.admit(records) == records
    park(600, prefix="parked")
    Limit.objects.create(key="limited", next_at=timezone.now() + timedelta(hours=1))
    assert limits.admit_parked() == limits.SLOTS
    assert limits.admit_parked() == 100


# How many at once


@pytest.mark.django_db
def test_there_are_never_more_than_the_limit(declare):
    declare(concurrency_limit=3)
    park(5)
    assert limits.admit_parked() == 3
    assert limits.admit_parked() == 0
    assert admitted() == ["t0", "t1", "t2"]
    objects.filter(task_id="t0").update(state=states.STARTED, publish_at=None)
    assert limits.admit_parked() == 0, "published, waiting for a worker, or running: it holds its slot"
    finish("t0")
    finish("t1")
    assert limits.admit_parked() == 2
    assert objects.unfinished().filter(slot_at__isnull=False).count() == 3


@pytest.mark.django_db
def test_what_got_a_slot_is_published_at_once(declare):
    declare(concurrency_limit=3)
    park(5)
    limits.admit_parked()
    due = objects.due_for_publishing(10)
    assert [record.task_id for record in due] == ["t0", "t1", "t2"]
    assert limits.admit(due) == list(due)
    assert {record.parked_at for record in due} == {None}


@pytest.mark.django_db
def test_fewer_slots_than_are_held_already_give_none(declare):
    declare(concurrency_limit=1)
    insert(3, prefix="held", slot_at=Now())
    park()
    assert limits.admit_parked() == 0


@pytest.mark.django_db
def test_the_most_urgent_comes_first_then_the_oldest(declare):
    declare(concurrency_limit=4)
    park(2, prefix="normal")
    park(2, prefix="whenever", priority=9)
    park(2, prefix="urgent", priority=0)
    limits.admit_parked()
    assert admitted() == ["normal0", "normal1", "urgent0", "urgent1"]


@pytest.mark.django_db
def test_keys_do_not_wait_for_each_other(declare):
    declare(concurrency_limit=1)
    for key in ("a", "b", "c"):
        park(2, key=key, prefix=key)
    assert limits.admit_parked() == 3
    assert sorted(admitted()) == ["a0", "b0", "c0"]


@pytest.mark.django_db
def test_a_retry_gives_its_slot_back_and_waits_for_another(declare):
    declare(concurrency_limit=1)
    park(2)
    limits.admit_parked()
    objects.filter(task_id="t0").update(state=states.STARTED)
    run = objects.get(task_id="t0")
    run.state = states.RETRY
    wait_again(run, publish_in=-1)
    assert limits.admit_parked() == 1
    assert admitted() == ["t1"]
    assert limits.admit([objects.get(task_id="t0")]) == []
    finish("t1")
    assert limits.admit_parked() == 1
    assert objects.get(task_id="t0").slot_at is not None


@pytest.mark.django_db
def test_what_was_revoked_while_it_waited_gets_no_slot(declare):
    declare(concurrency_limit=1)
    park(2)
    objects.filter(task_id="t0").mark_revoked("test")
    assert limits.admit_parked() == 1
    assert objects.get(task_id="t0").state == states.REVOKED
    assert admitted() == ["t1"]


@pytest.mark.django_db
def test_a_revoke_frees_the_slot_of_what_had_not_started(declare):
    declare(concurrency_limit=1)
    park(2)
    limits.admit_parked()
    objects.filter(task_id="t0").mark_revoked("test")
    assert limits.admit_parked() == 1


@pytest.mark.django_db
def test_what_replaces_a_task_has_the_limits_of_its_own(declare, commits, monkeypatch):
    declare(concurrency_limit=1)
    published = []
    monkeypatch.setattr(app, "publish", published.extend)
    insert(name="sample.replaced", key=None, attempt=1, publish_at=None)
    with commits():
        assert app.take_over(app.build_record("limited", ["a"], task_id="t0"))
    record = objects.get()
    assert (record.limit_key, record.slot_at, published) == ("limited", None, [])
    assert limits.admit([record]) == []


@pytest.mark.django_db
def test_a_run_that_came_past_the_limits_counts_too(declare):
    declare(concurrency_limit=1)
    park(2)
    assert objects.claim("t0", 1, "worker@host", 42), "by the message of a relay that does not know the task"
    assert objects.get(task_id="t0").parked_at is None
    assert limits.admit_parked() == 0
    finish("t0")
    assert limits.admit_parked() == 1


# How often


def starts() -> list[float]:
    """When they are published, in seconds after the first."""
    times = list(objects.filter(slot_at__isnull=False).order_by("pk").values_list("publish_at", flat=True))
    return [round((at - times[0]).total_seconds(), 3) for at in times]


def let_pass(seconds: float) -> None:
    shared = Limit.objects.get()
    Limit.objects.update(next_at=shared.next_at - timedelta(seconds=seconds))


@pytest.mark.django_db
def test_starts_are_spaced_evenly_and_settled_a_second_ahead(declare):
    declare(rate_limit="4/s")
    park(20)
    assert limits.admit_parked() == 5
    assert starts() == [0, 0.25, 0.5, 0.75, 1]
    assert limits.admit_parked() == 0
    let_pass(0.6)
    assert limits.admit_parked() in (2, 3)


@pytest.mark.django_db
def test_a_slow_rate_lets_one_start_and_the_next_when_it_is_time(declare):
    declare(rate_limit="2/m")
    park(3)
    assert limits.admit_parked() == 1
    assert limits.admit_parked() == 0
    finish("t0")
    let_pass(28)
    assert limits.admit_parked() == 0, "it has ended, but it is not time yet"
    let_pass(1.5)
    assert limits.admit_parked() == 1
    ahead = objects.get(task_id="t1").publish_at - timezone.now()
    assert timedelta(0) < ahead <= SECOND


@pytest.mark.django_db
def test_time_in_which_nothing_started_is_not_caught_up_with(declare):
    declare(rate_limit="2/s")
    park()
    limits.admit_parked()
    let_pass(3600)
    park(10, prefix="later")
    assert limits.admit_parked() == 3


@pytest.mark.django_db
def test_a_rate_that_was_raised_holds_at_once(declare):
    task = declare(rate_limit="1/h")
    park(3)
    assert limits.admit_parked() == 1
    assert limits.admit_parked() == 0
    task.rate_limit = "1/s"
    assert limits.admit_parked() == 2


@pytest.mark.django_db
def test_both_limits_hold(declare):
    declare(rate_limit="100/s", concurrency_limit=2)
    park(10)
    assert limits.admit_parked() == 2
    assert starts() == [0, 0.01]
    assert limits.admit_parked() == 0


@pytest.mark.django_db
def test_a_limit_that_remembers_nothing_is_deleted_and_made_again(declare):
    declare(rate_limit="1/s")
    park()
    limits.admit_parked()
    assert limits.prune_limits(10) == 0
    let_pass(2 * 86400)
    assert limits.prune_limits(10) == 1
    park(prefix="later")
    assert limits.admit_parked() == 1


# Pages


@pytest.mark.django_db
def test_the_pages_say_what_it_waits_for(declare, admin_client):
    declare(concurrency_limit=1)
    park(2, key="customer <7>")
    page = reverse("tasks:detail", args=["t0"])
    assert "waits for a slot of <code>customer &lt;7&gt;</code>" in admin_client.get(page).text
    assert (
        "waits for a slot of customer &lt;7&gt;" in admin_client.get(reverse("tasks:list"), {"phase": "limited"}).text
    )
    limits.admit_parked()
    text = admin_client.get(page).text
    assert "waits for a slot" not in text
    assert "given a slot" in text


# Relays


def in_threads(*actions) -> list:
    """What each returns, run at the same time on connections of their own."""
    answers, barrier = [], threading.Barrier(len(actions))

    def run(action):
        barrier.wait(10)
        try:
            answers.append(action())
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=[action]) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return answers


@pytest.mark.django_db(transaction=True)
def test_relays_that_race_give_no_slot_twice(declare):
    declare(concurrency_limit=3)
    for n in range(4):
        park(20, key=f"key {n}", prefix=f"{n}-")
    peaks = []

    def relay():
        for _ in range(30):
            limits.admit_parked()
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM tasks_app_taskrecord"
                    " WHERE slot_at IS NOT NULL AND state = 'PENDING' GROUP BY limit_key) AS held"
                )
                peaks.append(cursor.fetchone()[0])
            some = objects.filter(slot_at__isnull=False, state="PENDING").order_by("?").values("pk")[:2]
            objects.filter(pk__in=list(some.values_list("pk", flat=True))).update(
                state=states.SUCCESS, finished_at=Now(), publish_at=None
            )
        return True

    assert in_threads(relay, relay, relay, relay) == [True] * 4
    assert max(peaks) == 3
    assert objects.filter(slot_at__isnull=False).count() > 60, "they did give slots"


@pytest.mark.django_db(transaction=True)
def test_relays_that_race_keep_the_rate(declare):
    declare(rate_limit="20/s")
    park(100)
    deadline = time.monotonic() + 1

    def relay():
        return [limits.admit_parked() for _ in iter(lambda: time.monotonic() < deadline, False)]

    in_threads(relay, relay, relay)
    gaps = [after - before for before, after in pairwise(starts())]
    assert len(gaps) >= 20
    assert min(gaps) > 0.049


@pytest.mark.django_db(transaction=True)
def test_a_relay_passes_over_a_key_that_another_one_is_at(declare):
    declare(concurrency_limit=1)
    park(key="held", prefix="held")
    park(key="free", prefix="free")
    Limit.objects.create(key="held")
    with transaction.atomic():
        Limit.objects.select_for_update().get(key="held")
        assert in_threads(limits.admit_parked) == [1]
    assert admitted() == ["free0"]


@pytest.mark.django_db(transaction=True)
def test_a_relay_passes_over_a_row_that_is_being_revoked(declare):
    declare(concurrency_limit=1)
    park(2)
    with transaction.atomic():
        objects.filter(task_id="t0").mark_revoked("test")
        assert in_threads(limits.admit_parked) == [1]
    assert admitted() == ["t1"]


# Cost


@pytest.mark.django_db
def test_a_turn_with_nothing_parked_is_one_statement(declare):
    declare(concurrency_limit=1)
    insert(5)
    with CaptureQueriesContext(connection) as queries:
        assert limits.admit_parked() == 0
    assert len(queries) == 1


@pytest.mark.django_db
@pytest.mark.parametrize(("options", "given"), [({"concurrency_limit": 3}, 3), ({"rate_limit": "1/m"}, 1)])
def test_a_turn_does_not_cost_more_where_ten_thousand_wait(declare, options, given):
    declare(**options)
    park(10_000)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE tasks_app_taskrecord")
        none = [[], [], []]
        horizon, known = [limits.HORIZON] * 2, ["limited"]
        cursor.execute(f"EXPLAIN {limits._HEADS_WITH_ROOM}", [*none, *horizon, known, limits.UNKNOWN_FOR, limits.KEYS])
        assert str(cursor.fetchall()).count("task_parked") == 2, "one step down the index for a key, however many wait"
    lengths = []
    for expected in (given, 0, 0, 0):
        start = time.perf_counter()
        assert limits.admit_parked() == expected
        lengths.append(time.perf_counter() - start)
    assert min(lengths[1:]) < 0.05, "1 to 8 ms on a machine that is left alone"
