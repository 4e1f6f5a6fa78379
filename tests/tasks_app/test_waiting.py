"""Waiting for results, by a clock that only waiting moves on; tests/acceptance/test_waiting.py has a real worker."""

import json
import pickle
import uuid
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
from celery import current_app as app
from celery.exceptions import ChordError, TimeoutError
from celery.result import AsyncResult, EagerResult, ResultSet
from django.db import OperationalError, connection, transaction
from django.utils import timezone
from django_celery_results.models import TaskResult

from tasks_app import states, waiting
from tasks_app.models import TaskRecord
from tests.sample.tasks import echo

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Seconds since the test began; what is in `then` happens at its time."""
    clock = SimpleNamespace(now=0.0, then=[])

    def sleep(seconds: float) -> None:
        clock.now += seconds
        assert clock.now < 100, "waits for ever"
        while clock.then and clock.then[0][0] <= clock.now:
            clock.then.pop(0)[1]()

    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


@pytest.fixture
def looks(monkeypatch, clock, django_assert_num_queries):
    """The times of the statements by which is waited; there are no others."""
    times = []
    execute = waiting.execute

    def noted(sql, params):
        if sql == waiting._LOOK:
            times.append(clock.now)
        return execute(sql, params)

    monkeypatch.setattr(waiting, "execute", noted)
    with django_assert_num_queries(0):
        yield times


def ended(task_id: str, value=None, state: str = "SUCCESS") -> AsyncResult:
    """A task that has ended."""
    result = json.dumps({"exc_type": "ValueError", "exc_message": [value], "exc_module": "builtins"})
    result = result if state == "FAILURE" else json.dumps(value)
    waiting.execute(
        f"INSERT INTO {TaskResult._meta.db_table} (task_id, status, result, content_type, content_encoding,"
        " date_created, date_done) VALUES (%s, %s, %s, 'application/json', 'utf-8', now(), now())",
        [task_id, state, result],
    )
    return app.AsyncResult(task_id)


def failed(task_id: str, message: str) -> AsyncResult:
    return ended(task_id, message, "FAILURE")


def of_record(task_id: str, **values) -> AsyncResult:
    """A task that has a record and no result."""
    TaskRecord.objects.insert([TaskRecord(task_id=task_id, name="sample.echo", queue="q", root_id=task_id)])
    move(task_id, **values)
    return app.AsyncResult(task_id)


def move(task_id: str, state: str, **values) -> None:
    finished_at = timezone.now() if state in states.READY_STATES else None
    TaskRecord.objects.filter(task_id=task_id).update(state=state, finished_at=finished_at, **values)


def group(*results) -> ResultSet:
    return app.GroupResult("group", list(results))


def never(task_id: str = "never") -> AsyncResult:
    return app.AsyncResult(task_id)


# What it costs


def test_a_minute_costs_a_process_at_most_five_looks_a_second(looks):
    with pytest.raises(TimeoutError):
        never().get(timeout=60)
    assert 180 < len(looks) <= 300
    assert looks[-1] == 60


def test_what_ends_soon_is_seen_soon_and_never_later_than_a_third_of_a_second(looks):
    with pytest.raises(TimeoutError):
        never().get(timeout=60)
    gaps = [(later - earlier, earlier) for earlier, later in pairwise(looks)]
    assert all(gap <= max(0.001, 0.11 * at) + 1e-9 for gap, at in gaps)
    assert max(gaps)[0] < 0.34


def test_a_longer_interval_than_celerys_default_is_a_wish_for_fewer_looks(looks):
    with pytest.raises(TimeoutError):
        never().get(timeout=20, interval=5)
    assert looks == [0, 5, 10, 15, 20]


def test_a_shorter_interval_is_kept_too(looks):
    with pytest.raises(TimeoutError):
        never().get(timeout=10, interval=0.05)
    assert max(later - earlier for earlier, later in pairwise(looks)) == pytest.approx(0.05)


def test_a_slow_look_is_followed_by_a_longer_pause(looks, clock, monkeypatch):
    execute = waiting.execute

    def slow(*args):
        clock.now += 0.4
        return execute(*args)

    monkeypatch.setattr(waiting, "execute", slow)
    with pytest.raises(TimeoutError):
        never().get(timeout=12)
    assert len(looks) == 11


def test_a_result_that_is_there_takes_one_look(looks):
    assert ended("a", {"x": 1}).get() == {"x": 1}
    assert len(looks) == 1


def test_many_are_read_together_a_thousand_at_a_time(looks):
    results = [ended(f"t{n}", n) for n in range(5)] + [never(f"t{n}") for n in range(5, 1_200)]
    looks.clear()
    with pytest.raises(TimeoutError, match="task t5 and 1194 more"):
        group(*results).get(timeout=0)
    assert len(looks) == 2


def test_what_has_ended_is_not_asked_for_again(monkeypatch, looks):
    asked = []
    execute = waiting.execute
    monkeypatch.setattr(waiting, "execute", lambda sql, params: asked.append(params[0]) or execute(sql, params))
    results = [ended("a", 1), never("b")]
    asked.clear()
    with pytest.raises(TimeoutError):
        group(*results).get(timeout=0.001)
    assert asked[:2] == ['["a", "b"]', '["b"]']


def test_a_look_brings_nothing_of_what_has_not_ended(monkeypatch):
    rows, execute = [], waiting.execute

    def counted(sql, params):
        cursor = execute(sql, params)
        rows.append((sql, cursor.rowcount))
        return cursor

    monkeypatch.setattr(waiting, "execute", counted)
    with pytest.raises(TimeoutError):
        group(of_record("a", state="STARTED"), ended("b", 2, "PROGRESS"), never()).get(timeout=0)
    assert (waiting._LOOK, 0) in rows
    assert (waiting._LOOK, 1) not in rows


def test_a_look_goes_down_two_indexes():
    TaskRecord.objects.insert(
        [TaskRecord(task_id=f"r{n}", name="sample.echo", queue="q", root_id="r") for n in range(2_000)]
    )
    TaskResult.objects.bulk_create([TaskResult(task_id=f"r{n}") for n in range(2_000)])
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {TaskRecord._meta.db_table}, {TaskResult._meta.db_table}")
        cursor.execute(f"EXPLAIN {waiting._LOOK}", ['["r1"]', False])
        plan = str(cursor.fetchall())
    assert "Seq Scan" not in plan
    assert plan.count("Index Scan") == 2


# One result


def test_a_result_comes_as_soon_as_it_is_there(clock):
    clock.then = [(0.5, lambda: ended("late", "x"))]
    assert never("late").get(timeout=10) == "x"
    assert clock.now < 0.56


def test_a_timeout_names_the_task():
    with pytest.raises(TimeoutError, match=r"Not ended within 2 s: task never$"):
        never().get(timeout=2)


def test_a_timeout_of_none_at_all_still_returns_what_is_there():
    assert ended("a", 1).get(timeout=0) == 1
    with pytest.raises(TimeoutError):
        never().get(timeout=0)
    with pytest.raises(TimeoutError):
        never().get(timeout=-1)


def test_a_failure_is_raised_or_returned():
    with pytest.raises(ValueError, match="bad"):
        failed("f", "bad").get()
    assert isinstance(never("f").get(propagate=False), ValueError)


def test_a_task_of_which_no_result_is_kept_ends_with_its_record():
    assert of_record("a", state="SUCCESS").get(timeout=0) is None
    assert of_record("i", state="IGNORED").get(timeout=0) is None
    assert of_record("j", state="REJECTED").get(timeout=0) is None
    failure = of_record("f", state="FAILURE", exc_type="ValueError", exc_message="gone")
    with pytest.raises(ValueError, match="gone"):
        failure.get(timeout=0)


def test_what_is_known_of_a_task_beside_its_result_is_known_as_with_redis():
    of_record("t", state="SUCCESS", group_id="g", parent_id="p", retries=2)
    result = ended("t", 1)
    assert result.get(timeout=0) == 1
    assert (result.name, result.queue, result.retries) == ("sample.echo", "q", 2)
    assert (result._cache["group_id"], result._cache["parent_id"]) == ("g", "p")


def test_a_task_that_runs_or_is_to_run_again_is_waited_for():
    for state in ("PENDING", "STARTED", "RETRY"):
        with pytest.raises(TimeoutError):
            of_record(state, state=state).get(timeout=0)
    with pytest.raises(TimeoutError):
        ended("p", {"done": 1}, "PROGRESS").get(timeout=0)


@pytest.mark.parametrize("task_id", ["nul \0", "surrogate \ud800", "x" * 300, ""])
def test_an_id_that_no_task_can_have_is_waited_for_like_any_other(task_id):
    with pytest.raises(TimeoutError):
        app.AsyncResult(task_id).get(timeout=1)
    with pytest.raises(TimeoutError):
        group(ended("a", 1), app.AsyncResult(task_id)).get(timeout=1)


def test_an_id_may_be_a_uuid():
    task_id = uuid.uuid4()
    ended(str(task_id), 1)
    assert app.AsyncResult(task_id).get(timeout=0) == 1
    assert group(app.AsyncResult(task_id)).get(timeout=0) == [1]


def test_celerys_own_class_of_results_waits_too():
    parent = AsyncResult(failed("f", "before").id)
    assert AsyncResult(ended("a", 1).id).get(timeout=0) == 1
    with pytest.raises(ValueError, match="before"):
        AsyncResult("never", parent=parent).get(timeout=0)


def test_a_result_can_be_pickled():
    result = pickle.loads(pickle.dumps(app.AsyncResult("a", parent=app.AsyncResult("b"))))
    assert (result, result.parent, type(result)) == ("a", "b", app.AsyncResult)


def test_each_look_calls_on_interval_until_it_has_ended(clock):
    clock.then, called = [(0.0025, lambda: ended("late"))], []
    app.backend.wait_for("late", on_interval=lambda: called.append(clock.now))
    assert called == pytest.approx([0, 0.001, 0.002])


def test_an_error_of_on_interval_ends_the_wait():
    def stop():
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        never().get(on_interval=stop)
    with pytest.raises(KeyError, match="enough"):
        group(never()).get(on_interval=stop)


def test_on_message_tells_of_each_change(clock, tracks_started):
    tracks_started()
    of_record("t", state="PENDING")

    def progress(done: int):
        return lambda: TaskResult.objects.store_result(
            "application/json", "utf-8", "t", f'{{"done": {done}}}', "PROGRESS"
        )

    started, ended = partial(move, "t", "STARTED"), partial(move, "t", "FAILURE", exc_type="ValueError")
    clock.then = [(0.1, started), (0.2, progress(1)), (0.3, progress(2)), (0.4, ended)]
    told = []
    never("t").get(timeout=9, propagate=False, on_message=lambda meta: told.append((meta["status"], meta["result"])))
    assert told[:3] == [("STARTED", None), ("PROGRESS", {"done": 1}), ("PROGRESS", {"done": 2})]
    assert [status for status, _ in told[3:]] == ["FAILURE"]


def test_on_message_of_a_result_tells_nothing_of_its_parents():
    told = []
    result = app.AsyncResult(ended("a", 1).id, parent=ended("b", 2))
    assert result.get(timeout=0, on_message=lambda meta: told.append(meta["task_id"])) == 1
    assert told == ["a"]


def test_a_callback_is_given_each_value():
    called = []
    ended("a", 1).get(callback=lambda *args: called.append(args))
    assert group(ended("b", 2), ended("c", 3)).get(callback=lambda *args: called.append(args)) is None
    assert called == [("a", 1), ("b", 2), ("c", 3)]


# Parents


def chained(*results: AsyncResult) -> AsyncResult:
    for parent, child in pairwise(results):
        child.parent = parent
    return results[-1]


def test_parents_are_looked_at_in_the_same_statement(looks):
    last = chained(*[ended(f"t{n}", n) for n in range(25)], *[never(f"t{n}") for n in range(25, 50)])
    looks.clear()
    with pytest.raises(TimeoutError):
        last.get(timeout=60)
    assert len(looks) <= 300


def test_the_failure_of_a_parent_is_raised_when_it_is_seen(clock):
    clock.then = [(1, lambda: failed("first", "broken"))]
    with pytest.raises(ValueError, match="broken"):
        chained(never("first"), never("second"), never("third")).get(timeout=60)
    assert clock.now < 1.2


def test_the_failure_of_a_parent_goes_before_the_results_own(looks):
    result = chained(failed("a", "the cause"), failed("b", "what followed"))
    with pytest.raises(ValueError, match="the cause"):
        result.get()
    assert result.ready()
    looks.clear()
    with pytest.raises(ValueError, match="the cause"):
        chained(never("a"), result).get()
    assert len(looks) == 1


def test_parents_are_left_alone_where_they_are_not_followed():
    result = chained(failed("a", "the cause"), ended("b", 1))
    assert result.get(timeout=0, follow_parents=False) == 1
    assert isinstance(chained(never("a"), failed("c", "own")).get(propagate=False), ValueError)


def test_the_failure_of_a_chords_header_is_raised_by_its_body(looks):
    header = app.GroupResult("header", [ended("a", 1), failed("b", "in the header"), never("c")])
    body = app.AsyncResult("body", parent=header)
    looks.clear()
    with pytest.raises(ValueError, match="in the header"):
        body.get(timeout=9)
    assert len(looks) == 1


# Several results


def test_the_results_of_a_group_come_in_its_order(clock):
    clock.then = [(0.1, lambda: ended("b", 2)), (0.2, lambda: ended("a", 1))]
    assert group(never("a"), never("b"), ended("c", 3)).get(timeout=9) == [1, 2, 3]
    assert group(never("a"), never("b")).join(timeout=9) == [1, 2]
    assert group().get(timeout=9) == []
    assert ResultSet([never("b"), never("a")]).get(timeout=9) == [2, 1]


def test_the_first_failure_is_raised_while_others_go_on(clock):
    clock.then = [(0.5, lambda: failed("b", "early"))]
    with pytest.raises(ValueError, match="early"):
        group(never("a"), never("b"), never("c")).get(timeout=60)
    assert clock.now < 0.6


def test_a_failure_in_a_group_can_be_returned():
    one, two = group(ended("a", 1), failed("b", "returned")).get(propagate=False)
    assert (one, str(two)) == (1, "returned")


def test_groups_in_groups_are_waited_for_together(looks):
    inner = app.GroupResult("inner", [ended("a", 1), app.GroupResult("innermost", [ended("b", 2)])])
    outer = group(inner, ended("c", 3), app.GroupResult("empty", []))
    looks.clear()
    assert outer.get(timeout=9) == [[1, [2]], 3, []]
    assert len(looks) == 1
    with pytest.raises(TimeoutError):
        group(app.GroupResult("inner", [never()])).get(timeout=9)


def test_results_are_given_as_they_end(clock):
    clock.then = [(0.1, lambda: ended("b", 2)), (0.2, lambda: ended("a", 1))]
    found = group(never("a"), never("b")).iter_native(timeout=9)
    assert [(task_id, meta["result"], clock.now < 0.25) for task_id, meta in found] == [("b", 2, True), ("a", 1, True)]


def test_the_same_task_twice_in_a_group_is_given_twice():
    twice = ended("a", 1)
    assert len(list(group(twice, never("a"), twice).iter_native(timeout=9))) == 3


def test_results_that_are_ignored_are_not_waited_for(looks):
    ignored = never()
    ignored.ignored = True
    assert group(ignored).get(timeout=9) == [None]
    assert not looks


def test_what_was_to_follow_on_a_group_follows():
    called = []
    result = group(ended("a", 1), ended("b", 2))
    result.then(called.append)
    result.get(timeout=9)
    assert len(called) == 1


def test_get_many_can_look_once():
    assert dict(app.backend.get_many([ended("a", 1).id, "never"], max_iterations=1)).keys() == {"a"}
    assert list(app.backend.get_many([])) == []


def test_a_failed_body_of_a_chord_tells_why():
    of_record("body", state="FAILURE", exc_type="ChordError", exc_message="Dependency x raised")
    with pytest.raises(Exception, match="Dependency x raised") as caught:
        never("body").get(timeout=0)
    assert type(caught.value).__name__ == ChordError.__name__


def test_eager_results_need_no_look(looks):
    results = [EagerResult(f"t{n}", n, "SUCCESS") for n in range(3)]
    assert group(*results).get() == [0, 1, 2]
    assert group(*results).join_native() == [0, 1, 2]
    assert not looks


# Within a transaction


def test_a_wait_for_what_the_same_transaction_submits_says_that_it_would_be_for_ever():
    with transaction.atomic():
        submitted = echo.delay(1)
    with pytest.raises(RuntimeError, match=f"Task {submitted.id} was submitted, or changed, in this transaction"):
        submitted.get()
    with pytest.raises(RuntimeError, match="after the `atomic` block"):
        group(never(), submitted).get()
    with pytest.raises(TimeoutError, match="no worker sees it"):
        submitted.get(timeout=3)


# Without the database


def test_within_a_transaction_a_lost_database_is_raised(monkeypatch):
    def away(*args):
        raise OperationalError("gone")

    monkeypatch.setattr(waiting, "execute", away)
    with pytest.raises(OperationalError, match="gone"):
        never().get(timeout=9)
