"""What Postgres itself refuses, and the indexes by which it finds what is asked for."""

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from tasks_app import states
from tasks_app.models import TaskRecord

pytestmark = pytest.mark.django_db
objects = TaskRecord.objects


def insert(task_id="t", **fields) -> TaskRecord:
    record = TaskRecord(task_id=task_id, name="sample.echo", queue="celery_queue", root_id=task_id, **fields)
    objects.insert([record])
    return objects.get(task_id=task_id)


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "DONE"},
        {"state": states.SUCCESS, "finished_at": None},
        {"state": states.STARTED, "finished_at": timezone.now()},
    ],
)
def test_postgres_refuses_a_state_that_cannot_be(fields):
    insert()
    with pytest.raises(IntegrityError), transaction.atomic():
        objects.update(**fields)


@pytest.mark.parametrize(
    ("queryset", "index"),
    [
        (lambda: objects.due_for_publishing(10), "task_publish_due"),
        (lambda: objects.filter(state="FAILURE").order_by("-pk")[:10], "task_state"),
        (lambda: objects.filter(name="sample.fail").order_by("-pk")[:10], "task_name"),
        (lambda: objects.unfinished()[:10], "task_state"),
        (lambda: objects.in_workflow("7")[:10], "task_root"),
    ],
)
def test_each_index_is_used_by_the_query_that_it_is_for(queryset, index):
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tasks_app_taskrecord "
            "(task_id, name, args, kwargs, options, queue, root_id, state, finished_at) "
            "SELECT n, 'sample.' || n % 50, '[]', '{}', '{}', 'q', n, 'SUCCESS', now() FROM generate_series(1, 20000) n"
        )
        cursor.execute("ANALYZE tasks_app_taskrecord")
    assert index in queryset().explain()


@pytest.mark.parametrize(
    ("queryset", "index"),
    [(lambda: objects.lost()[:10], "task_lease"), (lambda: objects.unclaimed(60)[:10], "task_published")],
)
def test_the_rescue_reads_no_more_than_what_is_lost(queryset, index):
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tasks_app_taskrecord "
            "(task_id, name, args, kwargs, options, queue, root_id, state, published_at, lease_until) "
            "SELECT 'u' || n, 'sample.echo', '[]', '{}', '{}', 'q', 'u' || n, "
            "CASE WHEN n % 2 = 0 THEN 'PENDING' ELSE 'STARTED' END, now(), now() + interval '1 h' "
            "FROM generate_series(1, 4000) n"
        )
        cursor.execute("ANALYZE tasks_app_taskrecord")
    assert index in queryset().explain()
