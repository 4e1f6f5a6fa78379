"""Points in time as rows give them: aware and in UTC, in whatever project."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.db.models import Max
from django.db.models.functions import TruncMinute

from tasks_app import moments, statements
from tasks_app.models import TaskRecord

pytestmark = pytest.mark.django_db
#: The clocks of Berlin show 02:30 at both.
TWICE = [datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)]


@pytest.fixture(params=[True, False], ids=["USE_TZ", "no USE_TZ"])
def in_berlin(request, settings, monkeypatch):
    """A project of that zone; its connection is in it where Django's times are naive."""
    monkeypatch.delattr(connection.connection, "console_cursor", raising=False)
    settings.USE_TZ, settings.TIME_ZONE = request.param, "Europe/Berlin"
    yield
    monkeypatch.delattr(connection.connection, "console_cursor", raising=False)


@pytest.fixture
def records(in_berlin) -> list[TaskRecord]:
    make = TaskRecord.objects.create
    return [make(task_id=str(at), name="sample.echo", queue="q", root_id="r", eta=at) for at in TWICE]


def test_what_is_read_is_what_was_written_in_utc_also_in_a_repeated_hour(records):
    for found in (
        list(TaskRecord.objects.order_by("pk").values_list("eta", flat=True)),
        [record.eta for record in statements.load(TaskRecord.objects.order_by("pk"))],
        [record.eta for record in TaskRecord.objects.raw("SELECT * FROM tasks_app_taskrecord ORDER BY id")],
        list(
            TaskRecord.objects.order_by("pk")
            .annotate(minute=TruncMinute("eta", tzinfo=UTC))
            .values_list("minute", flat=True)
        ),
    ):
        assert found == TWICE
        assert {moment.utcoffset() for moment in found} == {timedelta(0)}
    assert TaskRecord.objects.aggregate(last=Max("eta"))["last"] == TWICE[1]
    assert TaskRecord.objects.get(eta=TWICE[1]).task_id == str(TWICE[1])


def test_the_databases_own_time_is_aware(in_berlin):
    record = TaskRecord.objects.create(task_id="1", name="sample.echo", queue="q", root_id="1")
    found = TaskRecord.objects.annotate(now=moments.Now()).get(pk=record.pk)
    assert abs(found.now - moments.now()) < timedelta(minutes=1)
    assert abs(found.created_at - moments.now()) < timedelta(minutes=1)


def test_a_field_of_ours_is_djangos_to_a_migration():
    path = TaskRecord._meta.get_field("eta").deconstruct()[1]
    assert path == "django.db.models.DateTimeField"
