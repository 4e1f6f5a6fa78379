from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest
from django.db import connection, transaction

from scheduling_app.models import Schedule
from tests.scheduling_app.ledger.test_firing import due, make

pytestmark = pytest.mark.django_db(transaction=True)


@contextmanager
def held_elsewhere(schedule: Schedule) -> Iterator[None]:
    """Its row is locked by another connection, as by another scheduler that fires it."""
    options = connection.get_connection_params()
    named = {name: options[name] for name in ("host", "port", "user", "dbname", "password") if options.get(name)}
    with psycopg.connect(**named) as other:
        other.execute("SELECT FROM scheduling_app_schedule WHERE id = %s FOR UPDATE", [schedule.pk])
        yield


def without_waiting(rows) -> list[str]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '1s'")
        return [row.name for row in rows]


@pytest.mark.parametrize("newest_first", [False, True])
def test_what_another_scheduler_fires_is_left_to_it_without_waiting(newest_first):
    held, _ = due(timedelta(minutes=2), name="held"), due(timedelta(minutes=1), name="free")
    with held_elsewhere(held):
        assert without_waiting(Schedule.objects.due(9, newest_first)) == ["free"]
    order = ["free", "held"] if newest_first else ["held", "free"]
    assert without_waiting(Schedule.objects.due(9, newest_first)) == order


def test_what_another_scheduler_plans_is_left_to_it_without_waiting():
    held, _ = make(name="held"), make(name="free")
    Schedule.objects.update(max_runs=5)  # which the trigger takes for a change
    with held_elsewhere(held):
        assert without_waiting(Schedule.objects.changed(9)) == ["free"]
    assert without_waiting(Schedule.objects.changed(9)) == ["held", "free"]
