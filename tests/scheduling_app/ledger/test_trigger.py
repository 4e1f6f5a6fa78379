from importlib.resources import files

import pytest
from django.core.management import call_command
from django.db import connection

pytestmark = pytest.mark.django_db

TRIGGER = files("scheduling_app.ledger").joinpath("trigger.sql").read_text("utf-8")


def defined() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("""
            SELECT pg_get_functiondef('scheduling_app_schedule_changed'::regproc)
            UNION ALL (
                SELECT pg_get_triggerdef(oid) FROM pg_trigger
                WHERE tgrelid = 'scheduling_app_schedule'::regclass AND NOT tgisinternal ORDER BY tgname
            )
        """)
        return [row[0] for row in cursor.fetchall()]


def test_the_migrations_leave_the_trigger_as_its_file_has_it():
    migrated = defined()
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER schedule_inserted ON scheduling_app_schedule")
        cursor.execute("DROP TRIGGER schedule_updated ON scheduling_app_schedule")
        cursor.execute("DROP FUNCTION scheduling_app_schedule_changed")
        cursor.execute(TRIGGER)
    assert len(migrated) == 3
    assert defined() == migrated


@pytest.mark.django_db(transaction=True)
def test_the_migrations_of_the_trigger_go_back_and_forth():
    migrated = defined()
    try:
        call_command("migrate", "scheduling_app", "0004", verbosity=0)
        before = defined()
    finally:
        call_command("migrate", "scheduling_app", verbosity=0)
    assert before[0] != migrated[0]
    assert "NEW.missed" not in before[0]
    assert defined() == migrated
