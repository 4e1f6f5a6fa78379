"""The result backend: result and record closed together, by the run that holds the claim alone."""

import pytest
from celery import current_app as app
from celery.app.task import Context
from celery.exceptions import Ignore, TaskRevokedError
from django.db import OperationalError
from django_celery_results.models import TaskResult

from tasks_app import states
from tasks_app.gathering import begin_ending, gathering
from tasks_app.models import TaskRecord
from tasks_app.steps import insert_steps, steps_of

pytestmark = pytest.mark.django_db
objects = TaskRecord.objects


@pytest.fixture
def run():
    """A claimed run of task "t": its request, as the worker has it."""
    objects.insert([TaskRecord(task_id="t", name="sample.echo", queue="celery_queue", root_id="t")])
    objects.claim("t", 1, "worker@host", 42)
    return Context(id="t", gen=1, task="sample.echo", args=[1], kwargs={}, called_directly=False, claimed=True)


def test_success_closes_record_and_result(run):
    app.backend.mark_as_done("t", {"x": 1}, run)
    record, result = objects.get(), TaskResult.objects.get()
    assert (record.state, record.result_preview) == ("SUCCESS", '{"x": 1}')
    assert (result.status, result.result, result.task_name, result.worker) == (
        "SUCCESS",
        '{"x": 1}',
        "sample.echo",
        "worker@host",
    )
    assert result.date_started == record.started_at


def test_a_result_of_a_lost_run_is_refused(run, caplog):
    objects.update(gen=2)  # the task went elsewhere meanwhile
    app.backend.mark_as_done("t", "late", run)
    assert objects.get().state == states.STARTED
    assert not TaskResult.objects.exists()
    assert "refused" in caplog.text


def test_what_follows_from_an_outcome_does_not_follow_from_a_refused_one(run, monkeypatch):
    counted = []
    monkeypatch.setattr(app.backend, "on_chord_part_return", lambda *args: counted.append(args[1]))
    run.chord = {"task": "sample.echo"}
    app.backend.mark_as_done("t", 1, run)
    app.backend.mark_as_failure("t", ValueError("late"), request=run)
    assert counted == ["SUCCESS"]


def test_a_second_outcome_changes_nothing(run):
    app.backend.mark_as_done("t", 1, run)
    app.backend.mark_as_failure("t", ValueError("late"), request=run)
    assert objects.get().state == states.SUCCESS
    assert TaskResult.objects.get().status == "SUCCESS"


def test_an_exception_with_text_that_postgres_cannot_hold_keeps_its_type(run):
    app.backend.mark_as_failure("t", ValueError("nul \x00 and \ud800"), traceback="tb \x00", request=run)
    record = objects.get()
    assert (record.state, record.exc_type, record.exc_message) == ("FAILURE", "ValueError", "nul \\x00 and \\ud800")
    assert TaskResult.objects.get().traceback == "tb \\x00"


def test_a_task_without_a_record_gets_one_with_its_outcome():
    app.backend.mark_as_failure("never sent", ValueError("x"), request=Context(id="never sent", task="sample.echo"))
    record = objects.get()
    assert (record.task_id, record.name, record.state) == ("never sent", "sample.echo", "FAILURE")


def test_a_state_of_a_tasks_own_is_told_and_does_not_close_it(run):
    app.backend.store_result("t", {"done": 50}, "PROGRESS", request=run)
    assert objects.get().state == states.STARTED
    assert app.AsyncResult("t").state == "PROGRESS"
    app.backend.mark_as_done("t", 1, run)
    assert app.AsyncResult("t").state == "SUCCESS"


def test_async_result_knows_what_only_the_record_does(run, tracks_started):
    assert app.AsyncResult("t").state == "PENDING", "as Celery has it"
    tracks_started()
    assert app.AsyncResult("t").state == "STARTED"
    objects.insert([TaskRecord(task_id="r", name="sample.echo", queue="celery_queue", root_id="r")])
    objects.filter(task_id="r").mark_revoked("revoked")
    assert app.AsyncResult("r").state == "REVOKED"
    assert isinstance(app.AsyncResult("r").result, TaskRevokedError)
    assert app.AsyncResult("nobody").state == "PENDING"


def test_a_broken_consequence_does_not_keep_a_task_from_ending(run, caplog):
    run.chain = [5]
    app.backend.mark_as_failure("t", ValueError("mine"), request=run)
    assert (objects.get(task_id="t").state, objects.get(task_id="t").exc_message) == ("FAILURE", "mine")
    assert "could not be done" in caplog.text


def test_a_lost_run_with_a_broken_consequence_ends_too(run):
    objects.update(options={"link_error": [{"task": 5}], "chain": [{"options": {"task_id": 7, "chord": 8}}]})
    app.backend.mark_as_lost("t", 1, "gone")
    assert objects.get(task_id="t").exc_type == "WorkerLostError"


def test_a_lost_run_that_was_asked_to_stop_is_revoked(run):
    objects.filter(task_id="t").stop("not needed")
    app.backend.mark_as_lost("t", 1, "gone")
    assert (objects.get().state, objects.get().lost_count) == ("REVOKED", 1)


def test_a_retry_keeps_text_that_postgres_cannot_hold(run):
    run.next_run = TaskRecord(args=[1], retries=1)
    app.backend.mark_as_retry("t", ValueError("nul \x00"), "tb \x00 \ud800", run)
    assert objects.get().state == "RETRY"
    assert objects.get().attempts.get().traceback == "tb \\x00 \\ud800"


def test_a_run_that_fails_after_it_was_asked_to_stop_is_revoked(run):
    objects.filter(task_id="t").stop("not needed")
    app.backend.mark_as_failure("t", ValueError("interrupted"), request=run)
    assert (objects.get().state, app.AsyncResult("t").state) == ("REVOKED", "REVOKED")


def test_a_run_that_succeeds_after_it_was_asked_to_stop_has_succeeded(run):
    objects.filter(task_id="t").stop("not needed")
    app.backend.mark_as_done("t", "done", run)
    assert objects.get().state == "SUCCESS"


def test_a_run_is_released_to_run_again_where_that_is_allowed(run):
    objects.update(max_lost=3)
    app.backend.mark_as_released("t", 1, "the worker ends")
    record = objects.get()
    assert (record.state, record.gen, record.lost_count) == ("RETRY", 2, 0)
    assert record.attempts.get().exc_message == "the worker ends"


def test_steps_that_follow_are_written_with_the_outcome_or_not_at_all(run, monkeypatch):
    def broken(records):
        raise OperationalError("connection lost")

    for is_broken in (True, False):
        if is_broken:
            monkeypatch.setattr(app, "submit_new", broken)
        begin_ending(app.tasks["sample.echo"])
        gathering().records.append(app.build_record("sample.echo", [1], task_id="next"))
        if is_broken:
            with pytest.raises(OperationalError):
                app.backend.mark_as_done("t", 1, run)
            assert objects.get().state == "STARTED"
            monkeypatch.undo()
        else:
            app.backend.mark_as_done("t", 1, run)
    assert dict(objects.values_list("task_id", "state")) == {"t": "SUCCESS", "next": "PENDING"}


def test_a_late_run_sends_no_further_steps(run):
    objects.update(gen=2)
    begin_ending(app.tasks["sample.echo"])
    gathering().records.append(app.build_record("sample.echo", [1], task_id="next"))
    app.backend.mark_as_done("t", "late", run)
    assert not objects.filter(task_id="next").exists()


def test_a_late_run_tells_no_progress_either(run):
    objects.update(gen=2)
    app.backend.store_result("t", {"done": 50}, "PROGRESS", request=run)
    assert not TaskResult.objects.exists()


def test_a_replaced_task_fails_when_a_step_before_it_does(run):
    objects.mark_replaced("t", 1)
    step = app.build_record("sample.echo", [1], task_id="step")
    app.submit([step])
    objects.claim("step", 1, "worker@host", 42)
    chain = [{"task": "sample.echo", "options": {"task_id": "t"}, "args": [], "kwargs": {}}]
    request = Context(id="step", gen=1, task="sample.echo", chain=chain, called_directly=False, claimed=True)
    app.backend.mark_as_failure("step", ValueError("x"), request=request)
    assert objects.get(task_id="t").state == "FAILURE"


def test_a_member_that_gave_itself_its_state_counts_for_its_chord(run):
    app.backend.apply_chord(app.GroupResult("g", [app.AsyncResult("t"), app.AsyncResult("u")]), app.signature("x"))
    run.group, run.chord = "g", dict(app.signature("sample.echo", task_id="body"))
    app.backend.store_result("t", "why", "FAILURE", request=run)
    app.backend.mark_as_dropped(run, "IGNORED", Ignore())
    assert objects.get(task_id="body").exc_type == "ChordError"


def test_a_step_that_is_revoked_before_it_comes_does_not_start(run):
    app.control.revoke("next")
    assert not objects.filter(task_id="next").exists(), "nobody knows of it"
    chain = [app.signature("sample.count", task_id="last"), app.signature("sample.fail", task_id="next")]
    objects.update(options={"chain": chain})
    insert_steps(steps_of(objects.get()))
    app.control.revoke("next")
    assert (objects.get(task_id="next").name, app.AsyncResult("next").state) == ("sample.fail", "REVOKED")
    begin_ending(app.tasks["sample.echo"])
    app.build_record("sample.fail", ["x"], task_id="next")
    gathering().records.append(app.build_record("sample.fail", ["x"], task_id="next", chain=chain[:1]))
    app.backend.mark_as_done("t", 1, run)
    assert dict(objects.values_list("task_id", "state")) == {"t": "SUCCESS", "next": "REVOKED", "last": "REVOKED"}


def test_a_chord_that_a_failed_chain_will_not_come_to_is_no_task(run):
    run.chain = [dict(app.signature("celery.chord", task_id="chord"), subtask_type="chord", kwargs={})]
    app.backend.mark_as_failure("t", ValueError("x"), request=run)
    assert list(objects.values_list("task_id", "state")) == [("t", "FAILURE")]


def test_an_id_without_a_record_is_told_as_revoked_and_gets_none():
    app.backend.keep_revoked("unknown")
    assert app.AsyncResult("unknown").state == "REVOKED"
    with pytest.raises(TaskRevokedError):
        app.AsyncResult("unknown").get(timeout=1)
    assert not TaskRecord.objects.filter(task_id="unknown").exists()


def test_a_state_that_another_stored_stays_when_its_id_is_revoked():
    app.backend.store_result("elsewhere", {"hostname": "other"}, "STARTED")
    app.backend.keep_revoked("elsewhere")
    assert app.AsyncResult("elsewhere").state == "STARTED"
