"""Which processes a worker kills for runs that others have ended, and which it leaves alone."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from celery import Celery, current_app
from celery.app.task import Context
from celery.worker import state

from tasks_app import leases
from tasks_app.leases import Leases, effective
from tasks_app.models import TaskRecord

pytestmark = pytest.mark.django_db
objects = TaskRecord.objects
PID, OTHER = 1001, 1002


def waiting(task_id: str = "task") -> TaskRecord:
    return objects.create(task_id=task_id, name="sample.sleep", queue="q", root_id=task_id)


def claimed(pid: int = PID, max_lost: int = 1) -> TaskRecord:
    record = waiting()
    assert objects.claim("task", 1, "w", pid, max_lost)
    record.refresh_from_db()
    return record


def taken_away(pid: int = PID, gen: int = 1) -> bool:
    return objects.taken_away({("task", gen): pid}) == {("task", gen)}


def test_a_message_that_was_revoked_before_its_run_is_no_process_to_kill():
    waiting()
    objects.filter(task_id="task").stop("revoked", "SIGTERM")
    assert not taken_away()


def test_a_message_that_was_published_again_before_its_run_is_none_either():
    waiting()
    objects.mark_handed_back([("task", 1)])
    assert not taken_away()


def test_a_run_that_was_revoked_by_another_is_one():
    record = claimed()
    objects.filter(pk=record.pk).stop("revoked")
    current_app.backend.mark_as_lost("task", 1, "its lease ran out")
    record.refresh_from_db()
    assert record.state == "REVOKED"
    assert taken_away()
    assert not taken_away(pid=OTHER)


def test_a_run_that_was_given_up_is_one():
    claimed()
    current_app.backend.mark_as_lost("task", 1, "its lease ran out")
    assert taken_away()


def test_a_run_that_is_repeated_elsewhere_is_one_for_the_process_that_had_it():
    claimed(max_lost=3)
    current_app.backend.mark_as_lost("task", 1, "its lease ran out")
    assert taken_away()
    assert not taken_away(pid=OTHER)
    assert objects.claim("task", 2, "w", OTHER)
    assert taken_away()
    assert not objects.taken_away({("task", 2): OTHER})


def test_a_run_that_has_ended_by_itself_is_none():
    claimed()
    current_app.backend.store_result("task", 1, "SUCCESS", request=Context(id="task", gen=1))
    assert not taken_away()


class FakeRequest(SimpleNamespace):
    """A message that a process of a pool is at, as far as leases look at one."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def held(process):
    """Held by a worker of the console's app, in whose process it runs; gone when the test is over."""
    app = current_app._get_current_object()
    context, task = Context(id="task", gen=1), SimpleNamespace(time_limit=None)
    request = FakeRequest(id="task", app=app, worker_pid=process.pid, _context=context, task=task, time_start=1.0)
    request.time_limits = (None, None)
    state.active_requests.add(request)
    yield request
    state.active_requests.discard(request)


def looks(app=None, times: int = 3) -> None:
    looking = Leases(app or current_app._get_current_object())
    for _ in range(times):
        looking._renew()


def test_the_process_of_a_run_that_others_ended_is_killed(process, held):
    claimed(pid=process.pid)
    current_app.backend.mark_as_lost("task", 1, "its lease ran out")
    looks()
    assert process.wait(10) == -9


def test_one_look_is_not_enough(process, held):
    claimed(pid=process.pid)
    current_app.backend.mark_as_lost("task", 1, "its lease ran out")
    looks(times=1)
    assert process.poll() is None


def test_a_process_that_was_refused_a_revoked_message_is_left_alone(process, held):
    waiting()
    objects.filter(task_id="task").stop("revoked", "SIGTERM")
    looks()
    assert process.poll() is None


def test_a_process_that_went_on_to_another_run_is_left_alone(process, held):
    claimed(pid=process.pid)
    objects.filter(task_id="task").stop("revoked", "SIGKILL")
    state.active_requests.discard(held)
    state.reserved_requests.add(held)
    looks()
    assert process.poll() is None


def test_what_another_apps_worker_holds_is_its_own_affair(process, held):
    claimed(pid=process.pid)
    current_app.backend.mark_as_lost("task", 1, "its lease ran out")
    held.app = Celery("other", set_as_current=False, fixups=[])
    looks()
    assert process.poll() is None


@pytest.mark.parametrize("limits", [{"of_message": 10}, {"of_task": 10}])
def test_the_lease_of_a_run_is_renewed_until_its_worker_should_have_ended_it_by_its_hard_limit(held, limits, settings):
    claimed()
    held.time_limits, held.task.time_limit = (limits.get("of_message"), None), limits.get("of_task")
    renewed = []
    for over in (-1, 1):  # seconds past the limit, and a lease that the worker has for it
        held.time_start = time.time() - 10 - settings.TASK_LEASE - over
        before = objects.get().lease_until
        looks(times=1)
        renewed.append(objects.get().lease_until > before)
    assert renewed == [True, False]


@pytest.mark.parametrize(("asked", "sent"), [(2, 15), (15, 15), (9, 9), (10, 10)])
def test_a_signal_that_children_ignore_is_sent_as_one_that_they_do_not(asked, sent):
    assert effective(asked) == sent


def test_a_process_that_survives_its_termination_is_killed_after_a_while(process, held, monkeypatch):
    job = SimpleNamespace(ready=lambda: False)
    held._apply_result = lambda: job
    monkeypatch.setattr(leases, "terminated", {held: 0.0})
    Leases(current_app)._kill_terminated()
    assert process.wait(10) == -9
    job.ready = lambda: True
    Leases(current_app)._kill_terminated()
    assert leases.terminated == {}


def test_this_process_itself_is_never_killed(held):
    held.worker_pid = os.getpid()
    assert not leases._kill(held, 9)
