from datetime import timedelta
from types import SimpleNamespace

import pytest
from celery import current_app as app
from django.core.management import call_command
from django.db import ProgrammingError, connection
from django.urls import reverse
from django.utils import timezone
from kombu import Queue

from tasks_app import queues, states
from tasks_app.models import QueueReader, TaskRecord
from tasks_app.queues import PATIENCE, Reading, Unread, unread
from tasks_app.workers import WorkerRelay

pytestmark = pytest.mark.django_db


def waits(queue: str, ago: timedelta = PATIENCE + timedelta(seconds=1), **fields) -> TaskRecord:
    given = {"publish_at": None, "published_at": timezone.now() - ago, "name": "sample.echo", "queue": queue}
    return TaskRecord.objects.create(task_id=f"in {queue}, {ago}", **given | fields)


def read(queue: str, ago: timedelta) -> None:
    QueueReader.objects.create(queue=queue, read_at=timezone.now() - ago)


def named() -> list[str]:
    return [each.queue for each in unread()]


def test_a_queue_that_no_worker_has_read_for_a_minute_is_named_while_something_waits_in_it():
    assert unread() == []
    record = waits("lonely")
    waits("lonely", timedelta(minutes=2), state=states.SUCCESS, finished_at=timezone.now())
    assert unread() == [Unread("lonely", record.published_at)]
    read("lonely", PATIENCE + timedelta(seconds=1))
    assert named() == ["lonely"]
    QueueReader.objects.update(read_at=timezone.now())
    assert unread() == []


@pytest.mark.parametrize(
    "fields",
    [{"ago": timedelta(seconds=50)}, {"published_at": None}, {"publish_at": timezone.now() + timedelta(hours=1)}],
    ids=["for less than a minute", "not published", "to be published later"],
)
def test_what_waits_elsewhere_or_only_just_names_no_queue(fields):
    waits("lonely", **fields)
    assert unread() == []


def test_a_worker_of_an_older_version_that_runs_something_of_it_reads_it():
    waits("busy")
    waits("busy", timedelta(hours=1), state=states.STARTED, lease_until=timezone.now())
    assert unread() == []


def test_only_some_queues_can_be_asked_about():
    waits("a"), waits("b")
    assert [each.queue for each in unread(["b", "c"])] == ["b"]


def test_a_worker_says_what_it_reads_and_not_each_second(django_assert_num_queries):
    reading = Reading()
    reading.say({"a", "b"})
    assert set(QueueReader.objects.values_list("queue", flat=True)) == {"a", "b"}
    with django_assert_num_queries(0):
        reading.say({"a", "b"})


def test_a_worker_that_goes_on_says_it_again(monkeypatch):
    read("a", timedelta(hours=1))
    monkeypatch.setattr(queues, "SAID_EACH", 0)
    reading = Reading()
    for _ in range(2):
        reading.say({"a"})
    assert QueueReader.objects.get().read_at > timezone.now() - timedelta(seconds=30)


def test_doctor_names_it_and_fails(capsys):
    waits("lonely")
    with pytest.raises(SystemExit):
        call_command("doctor")
    assert "No worker reads the queue lonely, and tasks wait in it" in capsys.readouterr().out


def test_before_the_migration_doctor_says_to_migrate_and_no_more(capsys, monkeypatch):
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE tasks_app_queuereader")
        cursor.execute("DELETE FROM django_migrations WHERE app = 'tasks_app' AND name >= '0006'")
    with pytest.raises(SystemExit):
        call_command("doctor")
    assert "Run `manage.py migrate`" in capsys.readouterr().out


def test_before_the_migration_a_workers_relay_goes_on(monkeypatch):
    def refuse(queues):
        raise ProgrammingError('relation "tasks_app_queuereader" does not exist')

    worker = SimpleNamespace(app=app, consumer=SimpleNamespace(task_consumer=SimpleNamespace(queues=[Queue("a")])))
    relay = WorkerRelay(worker)
    monkeypatch.setattr(relay._reading, "say", refuse)
    assert relay._turn() > 0


def test_the_overview_and_the_tasks_page_name_it(admin_client):
    record = waits("lonely")
    words = "No worker reads the queue <strong>lonely</strong>"
    for page in (reverse("tasks:overview"), reverse("tasks:detail", args=[record.task_id])):
        assert words in admin_client.get(page).text
    read("lonely", timedelta(0))
    for page in (reverse("tasks:overview"), reverse("tasks:detail", args=[record.task_id])):
        assert words not in admin_client.get(page).text
