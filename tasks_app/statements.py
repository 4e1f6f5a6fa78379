"""Statements past Django's layers, where their cost counts: prepared by the server, with many rows as one value."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
from django.db import connection, models, transaction
from django.db.models.base import ModelState
from psycopg.types.datetime import TimestamptzLoader

from tasks_app.ambient import ambient, having
from tasks_app.seams.psycopg import Cursor


def execute(sql: str, params: Sequence[Any], is_long: bool = False) -> psycopg.Cursor:
    """Run one of the statements that every task pays for: bound and prepared by the server, past Django's layers.

    The cursor is the connection's own, kept: what it fetches is to be read before the next call.
    `is_long`: while Postgres is at it, this process does the work of `meanwhile`, if there is any.
    """
    connection.close_if_health_check_failed()
    connection.ensure_connection()
    raw = connection.connection
    if (cursor := getattr(raw, "console_cursor", None)) is None:
        cursor = raw.console_cursor = Cursor(raw)
        in_utc = connection.timezone_name == "UTC"
        cursor.adapters.register_loader(
            "timestamptz", TimestamptzLoader if in_utc else _UtcLoader
        )  # not Django's slow one
    with connection.wrap_database_errors:
        if is_long and (work := ambient().meanwhile):
            return cursor.execute_meanwhile(sql, params, work)
        return cursor.execute(sql, params)


class _UtcLoader(TimestamptzLoader):
    """Times of a connection that is in another zone (see moments.py)."""

    def load(self, data: Any) -> datetime:
        return super().load(data).astimezone(UTC)


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Call `work`, which must leave the database alone, while Postgres is at each of the long statements within."""
    with having(meanwhile=work):
        yield


def load(rows: models.QuerySet[Any]) -> list[Any]:
    """The rows as instances, at a third of what the ORM takes: past its signals, and with psycopg's own times.

    Raises Error where the database does; no `select_related`, no column under another name than its field's.
    """
    cursor = execute(*rows.query.sql_with_params())
    names = [column.name for column in cursor.description or ()]
    fields = rows.model._meta.concrete_fields
    converters = [(field.attname, field.from_db_value) for field in fields if hasattr(field, "from_db_value")]
    instances = []
    for row in cursor.fetchall():
        instance: models.Model = object.__new__(rows.model)
        values = instance.__dict__
        values.update(zip(names, row, strict=True), _state=ModelState())
        instance._state.adding, instance._state.db = False, connection.alias
        for name, convert in converters:
            values[name] = convert(values[name], None, connection)
        instances.append(instance)
    return instances


def execute_many(
    sql: str, columns: Iterable[str], rows: Iterable[tuple[Any, ...]], before: Sequence[Any] = ()
) -> psycopg.Cursor:
    """The same for a statement that reads `rowset`: as JSON, since psycopg puts arrays together in Python.

    `before`: what stands before that in the statement.
    """
    given = [{name: value for name, value in zip(columns, row, strict=True) if value is not None} for row in rows]
    return execute(sql, [*before, json.dumps(given, default=str)], is_long=True)


def rowset(columns: dict[str, str]) -> str:
    """The rows of `execute_many`, as `new`, in SQL; `columns`: their types by their names."""
    return f"json_to_recordset(%s) AS new ({', '.join(f'{name} {kind}' for name, kind in columns.items())})"


def check_constraints() -> None:
    """Have Postgres check now what it would check at the commit, during which nothing else could be done."""
    execute("SET CONSTRAINTS ALL IMMEDIATE", [], is_long=True)
    execute("SET CONSTRAINTS ALL DEFERRED", [])


@contextmanager
def brief_transaction(idle: int = 5) -> Iterator[None]:
    """A transaction that Postgres ends if its process freezes within it for `idle` seconds, or waits for a lock for
    two: it must keep no rows from the others, nor wait for them without end."""
    with transaction.atomic():
        execute(_BRIEF, [f"{idle}s"])
        yield


_BRIEF = """
SELECT set_config('idle_in_transaction_session_timeout', %s, true), set_config('lock_timeout', '2s', true)
"""
