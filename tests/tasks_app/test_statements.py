"""Statements past Django's layers: what is done while Postgres is at one, and for how long it is waited for."""

import time

import psycopg
import pytest
from django.db import DataError, OperationalError, connection, transaction

from tasks_app import statements
from tasks_app.seams import psycopg as seam
from tasks_app.statements import brief_transaction, execute, meanwhile
from tests.acceptance.processes import eventually

pytestmark = pytest.mark.django_db


def test_while_postgres_is_at_a_long_statement_something_else_is_done():
    done = []
    with meanwhile(lambda: done.append(time.monotonic())):
        execute("SELECT 1", [])
        assert not done
        row = execute("SELECT %s, pg_sleep(1)", ["a"], is_long=True).fetchone()
        ended = time.monotonic()
    assert row[0] == "a"
    assert ended - done[0] > 0.1
    execute("SELECT 1", [], is_long=True)
    assert len(done) == 1


def test_with_a_psycopg_that_lets_nobody_in_between_it_is_done_before(monkeypatch):
    monkeypatch.delattr("psycopg._cursor_base.BaseCursor._execute_gen")
    assert seam.chosen() is seam.PlainCursor
    monkeypatch.undo()

    monkeypatch.setattr(statements, "Cursor", seam.PlainCursor)
    connection.ensure_connection()
    monkeypatch.delattr(connection.connection, "console_cursor", raising=False)
    done = []
    with meanwhile(lambda: done.append(execute("SELECT 1", []).fetchone())):
        assert execute("SELECT %s", [2], is_long=True).fetchone() == (2,)
    assert done == [(1,)]


def test_a_process_that_freezes_meanwhile_is_idle_in_its_transaction():
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid

    def is_idle() -> bool:
        with psycopg.connect(**connection.get_connection_params()) as other, other.cursor() as cursor:
            cursor.execute("SELECT state, wait_event FROM pg_stat_activity WHERE pid = %s", [pid])
            return cursor.fetchone() == ("idle in transaction", "ClientRead")

    done = []
    with meanwhile(lambda: done.append(eventually(is_idle))):
        assert execute("SELECT length(%s)", ["x" * 1_000_000], is_long=True).fetchone() == (1_000_000,)
    assert done


def test_what_uses_the_database_meanwhile_has_an_error_and_does_no_harm():
    done = []

    def work():
        with pytest.raises(OperationalError, match="already in progress"), connection.cursor() as cursor:
            cursor.execute("SELECT 2")
        done.append(1)

    with meanwhile(work):
        assert execute("SELECT 1, pg_sleep(0.1)", [], is_long=True).fetchone()[0] == 1
    assert done


def test_an_error_of_a_statement_is_raised_by_it_also_where_something_else_was_done():
    done = []
    with meanwhile(lambda: done.append(1)), pytest.raises(DataError), transaction.atomic():
        execute("SELECT 1 / %s::int", [0], is_long=True)
    assert done
    assert execute("SELECT 1", []).fetchone() == (1,)


def test_a_brief_transaction_waits_for_what_another_has_locked_for_two_seconds_at_most():
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute("SELECT pg_advisory_xact_lock(1)")
        with pytest.raises(OperationalError) as refused, brief_transaction():
            execute("SET LOCAL statement_timeout = '5s'", [])  # by which it ends otherwise
            execute("SELECT pg_advisory_xact_lock(1)", [])
    assert isinstance(refused.value.__cause__, psycopg.errors.LockNotAvailable)


def test_a_brief_transaction_ends_where_its_process_freezes():
    with brief_transaction(idle=3):
        assert execute("SHOW idle_in_transaction_session_timeout", []).fetchone() == ("3s",)
