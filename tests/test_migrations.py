"""The console's tables can be taken away and made again, as docs/leaving.md says."""

import pytest
from django.core.management import call_command
from django.db import connection

pytestmark = pytest.mark.django_db


def indexes() -> dict[str, str]:
    """The indexes of both apps' tables, by name."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexname, indexdef FROM pg_indexes WHERE tablename ~ '^(tasks|scheduling)_app_'")
        return dict(cursor.fetchall())


def test_they_go_and_come_again_as_they_were():
    before = indexes()
    for app in ("scheduling_app", "tasks_app"):
        call_command("migrate", app, "zero", verbosity=0)
    assert indexes() == {}
    call_command("migrate", verbosity=0)
    assert indexes() == before


def test_steps_have_no_index_for_like_which_nothing_reads():
    assert [name for name in indexes() if name.startswith("tasks_app_taskstep_") and name.endswith("_like")] == []
