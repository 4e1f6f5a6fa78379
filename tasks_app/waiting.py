"""Waiting for results: by looks at Postgres that grow rarer, each one statement for all that is waited for.

A look returns nothing of what has not ended, and the results of what has: nothing needs to be read after it. A wait
uses the connection that its thread has. It sees what that sees: within a transaction that is REPEATABLE READ or
SERIALIZABLE nothing that came after its first statement, so give a `timeout` there; within the transaction that submits
a task there is no end of it to see, for its message goes out on commit, and a wait says so.
"""

import binascii
import itertools
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

from celery.exceptions import TaskRevokedError, TimeoutError
from celery.result import AsyncResult, ResultSet
from celery.states import PROPAGATE_STATES
from django.db import InterfaceError, OperationalError, connection
from django_celery_results.models import TaskResult
from kombu.exceptions import DecodeError

from tasks_app import states
from tasks_app.execution import DATABASE_PATIENCE
from tasks_app.models import FORGOTTEN, TaskRecord
from tasks_app.seams.celery import Result, known_of, learn, parents_of
from tasks_app.seams.results import ResultsBackend
from tasks_app.statements import execute
from tasks_app.storable import printable

logger = logging.getLogger(__name__)

#: What is known of a task, as Celery's results take it.
Meta = dict[str, Any]
OnMessage = Callable[[Meta], object] | None
OnInterval = Callable[[], object] | None

#: Seconds between two looks: a tenth of what has been waited, from the shortest to the longest; where it takes longer,
#: twice the look's own time. A hundred processes that wait for a minute look 400 times a second.
SHORTEST, LONGEST = 0.001, 0.3
#: Celery's default of `interval`, which nobody asked for. A longer one is a wish for fewer looks.
DEFAULT_INTERVAL = 0.5
#: Ids that one look asks for.
BATCH = 1000

#: Of a meta: whether its task has ended, though it does not say so (its result was to be ignored); and of what is
#: stored: that its result was.
ENDED, IGNORED = "has_ended", "is_ignored"
#: States of a record that are told where there is no result.
_TOLD = (states.RETRY,)

_STORED = (
    "task_name", "task_args", "task_kwargs", "status", "result", "date_done", "traceback", "meta", "worker",
    "content_type", "content_encoding",
)  # fmt: skip
_OURS = ("state", "exc_type", "exc_message")
#: What Celery's other backends keep with a result, and django-celery-results does not.
_OF_RECORD = ("name", "queue", "retries", "group_id", "parent_id")
_COLUMNS = ("task_id", *_OURS, *_OF_RECORD, *_STORED)
_FOUND = ", ".join([*(f"record.{name}" for name in (*_OURS, *_OF_RECORD)), *(f"stored.{name}" for name in _STORED)])
_READY = ", ".join(f"'{state}'" for state in states.READY_STATES)
#: (A task that others sent and ran, past the console, has a result and no record. LATERAL: the planner, which takes a
#: JSON array for 100 rows whatever it holds, would rather read the whole of a table that it believes to be small.)
_LOOK = f"""
SELECT wanted.task_id, {_FOUND}
FROM json_array_elements_text(%s) AS wanted(task_id)
LEFT JOIN LATERAL (
    SELECT * FROM {TaskRecord._meta.db_table} WHERE task_id = wanted.task_id AND note <> '{FORGOTTEN}' LIMIT 1
) AS record ON true
LEFT JOIN LATERAL (SELECT * FROM {TaskResult._meta.db_table} WHERE task_id = wanted.task_id LIMIT 1) AS stored ON true
WHERE %s OR record.state IN ({_READY}) OR stored.status IN ({_READY})
"""
#: Of these tasks, one that the transaction at hand has written: a row that it sees although who wrote it goes on.
#: (Rows hold the lower half of a transaction's number; what seems to be far ahead is of the round before.)
_OWN = f"""
SELECT record.task_id
FROM json_array_elements_text(%s) AS wanted(task_id)
JOIN {TaskRecord._meta.db_table} AS record ON record.task_id = wanted.task_id,
    LATERAL (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next) AS snapshot,
    LATERAL (SELECT next - next %% 4294967296 + record.xmin::text::bigint AS number) AS writer,
    LATERAL (SELECT CASE WHEN number > next + 1000000 THEN number - 4294967296 ELSE number END AS whole) AS rounded
WHERE pg_xact_status(greatest(whole, 3)::text::xid8) = 'in progress'
LIMIT 1
"""


class WaitingBackend(ResultsBackend):
    """What Celery's results ask of a backend while they wait: as its Redis backend does it, from Postgres."""

    supports_native_join = True
    is_async = True  # so that `then` of a group is called
    READY_STATES = frozenset(states.READY_STATES)

    def wait_for_pending(
        self, result: AsyncResult, timeout: float | None = None, interval: float | None = DEFAULT_INTERVAL,
        no_ack: bool = True, on_message: OnMessage = None, on_interval: OnInterval = None, callback: Any = None,
        propagate: bool = True,
    ) -> Any:  # fmt: skip
        """Wait for one result, and look at its parents meanwhile where `get` follows them: its value.

        Raises celery.exceptions.TimeoutError after `timeout` seconds, and the task's exception, or that of a parent;
        RuntimeError where there is no timeout and the task was submitted in the transaction at hand.
        """
        self.refuse_eager()
        follows = getattr(on_interval, "fun", None)  # Celery's own: it raises the exception of a parent
        parents = {parent.id: parent for parent in _unknown(_parents(result))} if follows else {}
        own = on_message and (lambda meta: on_message(meta) if meta["task_id"] == str(result.id) else None)
        asked = {"timeout": timeout, "interval": interval, "on_message": own, "on_interval": on_interval}
        for task_id, _ in self._fill([*parents.values(), result], **asked):
            if task_id == result.id:
                break
            parents[task_id].maybe_throw()
        return result.maybe_throw(propagate=propagate, callback=callback)

    def wait_for(
        self, task_id: str, timeout: float | None = None, interval: float | None = DEFAULT_INTERVAL,
        no_ack: bool = True, on_interval: OnInterval = None,
    ) -> Meta:  # fmt: skip
        """Wait for one task; its meta."""
        return next(self.get_many([task_id], timeout, interval, no_ack, on_interval=on_interval))[1]

    def iter_native(
        self, result: ResultSet, timeout: float | None = None, interval: float | None = DEFAULT_INTERVAL,
        no_ack: bool = True, on_message: OnMessage = None, on_interval: OnInterval = None,
    ) -> Iterator[tuple[str, Any]]:  # fmt: skip
        """(id, meta) of each member of a ResultSet as it ends; (id, members) of a group in it, once all of it has."""
        self.refuse_eager()
        waiting = defaultdict(list)
        unknown = []
        for node in result.results:
            leaves = _unknown([node])
            unknown += leaves
            if not leaves:
                yield node.id, _outcome(node)
            left = {leaf.id for leaf in leaves}
            for task_id in left:
                waiting[task_id].append((node, left))
        asked = {"timeout": timeout, "interval": interval, "on_message": on_message, "on_interval": on_interval}
        for task_id, meta in self._fill(unknown, **asked):
            for node, left in waiting[task_id]:
                left.remove(task_id)
                if not left:
                    yield node.id, _outcome(node, meta)

    def get_many(
        self, task_ids: Iterable[Any], timeout: float | None = None, interval: float | None = DEFAULT_INTERVAL,
        no_ack: bool = True, on_message: OnMessage = None, on_interval: OnInterval = None,
        max_iterations: int | None = None,
    ) -> Iterator[tuple[Any, Meta]]:  # fmt: skip
        """(id, meta) of each of these tasks as it ends, in their order where a look finds several.

        `timeout`, `interval`: seconds. `on_message` is called with each meta that is new or has changed, `on_interval`
        after each look that was not the last. `max_iterations`: looks, after which it stops. Raises
        celery.exceptions.TimeoutError, and Django's database errors within a transaction.
        """
        left = {str(task_id): task_id for task_id in task_ids}
        told: dict[str, tuple[str, Any]] = {}
        looks = self._looks(left, timeout, interval, on_interval, is_told=on_message is not None)
        for metas in itertools.islice(looks, max_iterations):
            for meta in metas:
                task_id, mark = meta["task_id"], (meta["status"], meta["date_done"])
                if on_message and mark != told.get(task_id, (states.PENDING, None)):
                    told[task_id] = mark
                    on_message(meta)
                if meta["status"] in self.READY_STATES or meta.get(ENDED):
                    yield left.pop(task_id), meta

    def read_ended(self, results: Iterable[AsyncResult]) -> None:
        """Let each of these that has ended know its outcome, by one look."""
        for _ in self._fill(_unknown(results), max_iterations=1):
            pass

    def _fill(self, results: Iterable[AsyncResult], **asked: Any) -> Iterator[tuple[Any, Meta]]:
        """`get_many` of their ids, with each result told its meta."""
        waiting = defaultdict(list)
        for result in results:
            waiting[result.id].append(result)
        for task_id, meta in self.get_many(waiting, **asked):
            for result in waiting[task_id]:
                learn(result, meta)
            yield task_id, meta

    def _looks(
        self, left: Collection[str], timeout: float | None, interval: float | None, on_interval: OnInterval,
        is_told: bool,
    ) -> Iterator[list[Meta]]:  # fmt: skip
        """What each look at what is left finds, with the pauses between them, until nothing is left."""
        started = seen_at = asked_at = time.monotonic()
        while left:
            away = None
            try:
                found = list(self._metas(left, also_unended=is_told))
                seen_at = time.monotonic()
            except (OperationalError, InterfaceError) as error:
                found, away = [], error
                _bear(error, asked_at - seen_at, timeout)
            took = time.monotonic() - asked_at
            yield found
            waited = time.monotonic() - started
            if not left:
                return
            if timeout is not None and waited >= timeout:
                raise TimeoutError(_not_ended(left, timeout)) from away
            if timeout is None and asked_at == started and (reason := _never_ending(left)):
                raise RuntimeError(reason)
            if on_interval:
                on_interval()
            pause = 1.0 if away else _pause(waited, took, interval)
            time.sleep(pause if timeout is None else min(pause, timeout - waited))
            asked_at = time.monotonic()

    def meta_for(self, task_id: str) -> Meta:
        """As django-celery-results tells it; where that has no result, as the record does."""
        known = next(self._metas([str(task_id)], also_unended=True), None)
        return known or {"task_id": task_id, "status": states.PENDING, "result": None}

    def _metas(self, task_ids: Iterable[str], also_unended: bool) -> Iterator[Meta]:
        """What is known of these tasks, of those that have ended or of all, in their order."""
        possible = _possible(task_ids)
        for start in range(0, len(possible), BATCH):
            batch = possible[start : start + BATCH]
            rows = {row[0]: row for row in execute(_LOOK, [json.dumps(batch), also_unended]).fetchall()}
            yield from (self._meta(rows[task_id]) for task_id in batch if task_id in rows)

    def _meta(self, row: tuple[Any, ...]) -> Meta:
        known = dict(zip(_COLUMNS, row, strict=True))
        state, exc_type, exc_message = (known.pop(name) for name in _OURS)
        coding = SimpleNamespace(content_type=known.pop("content_type"), content_encoding=known.pop("content_encoding"))
        decode = partial(self.decode_content, coding)
        known.update(decode(known.pop("meta")) or {}, result=decode(known["result"]))
        for name in ("args", "kwargs"):
            with suppress(DecodeError, binascii.Error):
                known[f"task_{name}"] = decode(known[f"task_{name}"])
            known[name] = known[f"task_{name}"]
        self._go_by_record(known, state, exc_type, exc_message)
        return self.meta_from_decoded(known)

    def _go_by_record(self, known: Meta, state: str | None, exc_type: str, exc_message: str) -> None:
        """Let what is stored say what plain Celery would: a record tells of more, and of less."""
        stored, is_ignored = known["status"], known.pop(IGNORED, False)
        known[ENDED] = state in states.READY_STATES
        is_stale = state in states.UNREADY_STATES and stored in states.READY_STATES  # of an earlier run under its id
        if stored is None or is_stale or is_ignored:
            known.update(status=states.PENDING, result=None, traceback=None)
        if state in PROPAGATE_STATES and stored not in states.READY_STATES:  # it ended without a worker
            module = TaskRevokedError.__module__ if exc_type == TaskRevokedError.__name__ else "builtins"
            known["result"] = {"exc_type": exc_type, "exc_message": [exc_message], "exc_module": module}
            known["status"] = state
        elif stored is None and state in _TOLD + ((states.STARTED,) if self.app.conf.task_track_started else ()):
            known["status"] = state


class RecordedResult(Result):
    """Celery's, which reads each parent by itself, before a wait and at each look of it."""

    def raise_for_parents(self) -> None:
        if known_of(self) is not None:  # else the wait that follows looks at them
            self.backend.read_ended(_parents(self))
        for parent in _parents(self):
            if known_of(parent) is not None:
                parent.maybe_throw()


def _leaves(nodes: Iterable[Any]) -> Iterator[AsyncResult]:
    """The tasks of results, of groups and of groups in groups."""
    for node in nodes:
        if isinstance(node, ResultSet):
            yield from _leaves(node.results)
        else:
            yield node


def _parents(result: AsyncResult) -> list[AsyncResult]:
    """The tasks that came before, the first of them first."""
    return list(_leaves(reversed(parents_of(result))))


def _unknown(nodes: Iterable[Any]) -> list[AsyncResult]:
    """Of the tasks of these, those whose end has not been seen, and is to be."""
    return [leaf for leaf in _leaves(nodes) if known_of(leaf) is None and not leaf.ignored]


def _outcome(node: Any, meta: Meta | None = None) -> Any:
    if isinstance(node, ResultSet):
        return list(node.results)
    return meta or known_of(node) or {"task_id": node.id, "status": states.PENDING, "result": None}  # ignored


def _possible(task_ids: Iterable[str]) -> list[str]:
    """Those of these ids that can be in Postgres."""
    return [task_id for task_id in task_ids if printable(task_id) == task_id]


def _pause(waited: float, took: float, interval: float | None) -> float:
    """Seconds until the next look, after a wait of `waited` and a look that took `took`."""
    interval = DEFAULT_INTERVAL if interval is None else interval
    wanted = interval if interval > DEFAULT_INTERVAL else min(waited / 10, interval, LONGEST)
    return max(wanted, SHORTEST, min(2 * took, 1))


def _bear(error: Exception, away: float, timeout: float | None) -> None:
    """Go on waiting without the database, up to the timeout; within a transaction there is nothing to go on with."""
    if connection.in_atomic_block or (timeout is None and away > DATABASE_PATIENCE):
        raise error
    connection.close()
    logger.warning("Waiting for results goes on without the database: %s", str(error).strip())


def _not_ended(left: Collection[str], timeout: float) -> str:
    first = next(iter(left))
    others = f" and {len(left) - 1} more" if len(left) > 1 else ""
    reason = _never_ending(left)
    return f"Not ended within {timeout} s: task {first:.300}{others}" + (f". {reason}" if reason else "")


def _never_ending(left: Collection[str]) -> str:
    """Why one of these cannot end while it is waited for; "" where nothing is known against it."""
    if not connection.in_atomic_block:
        return ""
    own = execute(_OWN, [json.dumps(_possible(left))]).fetchone()
    if own is None:
        return ""
    return (
        f"Task {own[0]} was submitted, or changed, in this transaction, which has not committed: no worker sees it. "
        "Wait for its result after the `atomic` block."
    )
