"""Statements past Django's layers: what is done while Postgres is at one."""

import time

import pytest
from django.db import DataError, transaction

from tasks_app.statements import execute, meanwhile

pytestmark = pytest.mark.django_db


def test_while_postgres_is_at_a_long_statement_something_else_is_done():
    done = []
    with meanwhile(lambda: done.append(time.monotonic())):
        execute("SELECT 1", [])
        assert not done
        row = execute("SELECT %s, pg_sleep(0.2)", ["a"], is_long=True).fetchone()
        ended = time.monotonic()
    assert row[0] == "a"
    assert ended - done[0] > 0.1
    execute("SELECT 1", [], is_long=True)
    assert len(done) == 1


def test_an_error_of_a_statement_is_raised_by_it_also_where_something_else_was_done():
    done = []
    with meanwhile(lambda: done.append(1)), pytest.raises(DataError), transaction.atomic():
        execute("SELECT 1 / %s::int", [0], is_long=True)
    assert done
    assert execute("SELECT 1", []).fetchone() == (1,)
