"""What is known beside the system: what was submitted, what came of it, what ran. Nothing of the product reads it.

submits   what the submitter was about to submit, and afterwards how long that took
expected  each task of a committed submission, and what may come of it, written in the submission's transaction
answers   what `revoke` said, after it said so
runs      the beginning and the end of each execution of a body, written by the body
audit     each change of a record's state, gen and attempt, written by a trigger
"""

import os
import time
from collections.abc import Sequence
from typing import Any

import psycopg

TABLES = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.submits (
    number int PRIMARY KEY, kind text, doomed bool, at timestamptz DEFAULT clock_timestamp(), seconds float
);
CREATE TABLE chaos.expected (
    task_id text PRIMARY KEY, number int, kind text, repeats bool, needs text[], members text[], value jsonb,
    ends text[]
);
CREATE TABLE chaos.answers (task_id text, state text, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE chaos.runs (
    run uuid, edge text, task_id text, gen int, attempt int, retries int, pid int, at timestamptz,
    PRIMARY KEY (run, edge)
);
CREATE TABLE chaos.audit (
    seq bigserial PRIMARY KEY, task_id text, name text, old_state text, state text, old_gen int, gen int,
    old_attempt int, attempt int, worker text, exc_type text, at timestamptz DEFAULT clock_timestamp()
);
CREATE INDEX ON chaos.audit (task_id, seq);

CREATE FUNCTION chaos.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO chaos.audit (task_id, name, old_state, old_gen, old_attempt)
        VALUES (OLD.task_id, OLD.name, OLD.state, OLD.gen, OLD.attempt);
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO chaos.audit (task_id, name, state, gen, attempt)
        VALUES (NEW.task_id, NEW.name, NEW.state, NEW.gen, NEW.attempt);
    ELSE
        INSERT INTO chaos.audit (task_id, name, old_state, state, old_gen, gen, old_attempt, attempt, worker, exc_type)
        VALUES (NEW.task_id, NEW.name, OLD.state, NEW.state, OLD.gen, NEW.gen, OLD.attempt, NEW.attempt, NEW.worker,
            NEW.exc_type);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_made AFTER INSERT OR DELETE ON tasks_app_taskrecord FOR EACH ROW EXECUTE FUNCTION chaos.note();
CREATE TRIGGER chaos_moved AFTER UPDATE ON tasks_app_taskrecord FOR EACH ROW
    WHEN ((OLD.state, OLD.gen, OLD.attempt, OLD.finished_at)
        IS DISTINCT FROM (NEW.state, NEW.gen, NEW.attempt, NEW.finished_at))
    EXECUTE FUNCTION chaos.note();
"""

#: Seconds for which a line is tried again while Postgres is away.
PATIENCE = 90

_connections: dict[int, psycopg.Connection] = {}


def execute(sql: str, params: Sequence[Any] = ()) -> psycopg.Cursor:
    """Run a statement on this process's own connection, which commits by itself, until it is known to be done."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        try:
            return _connection().execute(sql, params)
        except psycopg.OperationalError:
            _connections.clear()
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.2)


def _connection() -> psycopg.Connection:
    pid = os.getpid()
    if pid not in _connections:
        _connections.clear()  # those of a parent are not closed, for it uses them
        _connections[pid] = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True, connect_timeout=5)
    return _connections[pid]
