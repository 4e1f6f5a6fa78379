"""Canvases: those of the console's apps are its own, those of any other app are Celery's."""

import pytest
from celery import Celery, canvas, chain, chord, group

from tasks_app.models import TaskRecord
from tests.sample.tasks import echo


@pytest.fixture
def other_app():
    """Another app of this process, which records nothing."""
    app = Celery("plain", set_as_current=False, fixups=[], broker="memory://", backend="cache+memory://")
    yield app
    app.close()


def in_nested_groups(app) -> group:
    tasks = [app.signature("sample.echo", [number], app=app) for number in range(4)]
    return group(tasks[0], group(tasks[1:3], app=app), tasks[3], app=app)


def order_of(workflow: group) -> list[int]:
    workflow.freeze()
    return [task.args[0] for task in workflow.tasks]


def test_the_tasks_of_nested_groups_keep_their_order():
    assert order_of(in_nested_groups(echo.app)) == [0, 1, 2, 3]


def test_those_of_another_app_have_the_order_that_celery_gives_them(other_app, monkeypatch):
    found = order_of(in_nested_groups(other_app))
    monkeypatch.setattr(canvas.group, "_freeze_unroll", canvas.group._freeze_unroll.__wrapped__)
    assert found == order_of(in_nested_groups(other_app))


@pytest.mark.django_db
@pytest.mark.parametrize("make", [chain, group, lambda *tasks, app: chord(tasks, tasks[0], app=app)])
def test_a_workflow_of_another_app_is_sent_as_celery_sends_it(other_app, make, django_assert_num_queries):
    @other_app.task(name="own", shared=False)
    def own(*args):
        pass

    with django_assert_num_queries(0):
        result = make(own.si(), own.si(), app=other_app).apply_async()
    assert result.id
    assert not TaskRecord.objects.exists()
