"""Marks of what was published, written many at once beside the submitters."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from django.db import DatabaseError, connection, connections

if TYPE_CHECKING:
    from tasks_app.models import TaskRecord

logger = logging.getLogger(__name__)


class Marker:
    """Marks messages as published, many in one statement, from a thread: a submitter need not wait for that.

    What is lost when the process is killed goes out twice, and the claim drops the second.
    """

    #: Seconds to gather marks, well within PUBLISH_GRACE, and to keep an idle connection: less than Postgres waits for
    #: one where a test database is dropped.
    GATHER, IDLE = 0.25, 3

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._start_lock = threading.Lock()
        self._queue: queue.SimpleQueue[list[tuple[str, int]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._hurry, self._resting = threading.Event(), threading.Event()

    def add(self, records: Iterable[TaskRecord]) -> None:
        messages = [(record.task_id, record.gen) for record in records]
        if connection.in_atomic_block:  # a test's, which calls within it what waits for its commit
            return self._mark(messages)
        self._queue.put(messages)
        if self._thread is None:
            with self._start_lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="mark-published", daemon=True)
                    self._thread.start()

    def flush(self) -> None:
        """Mark here and now what waits."""
        if batch := self._drain():
            self._mark(batch)

    def _mark(self, batch: list[tuple[str, int]]) -> None:
        from tasks_app.models import TaskRecord

        try:
            TaskRecord.objects.mark_published(batch)
        except DatabaseError as error:
            logger.warning("%d messages not marked as published, they go out again: %s", len(batch), error)
            connections.close_all()

    def rest(self, timeout: float = 5) -> None:
        """Have the thread mark what waits, and give its connection back; returns when it has, or after `timeout`
        seconds."""
        if self._thread is not None:
            self._resting.clear()
            self._hurry.set()
            self._queue.put([])
            self._resting.wait(timeout)

    def _run(self) -> None:
        while True:
            try:
                first = self._queue.get(timeout=0 if self._hurry.is_set() else self.IDLE)
            except queue.Empty:
                connections.close_all()
                self._hurry.clear()
                self._resting.set()
                first = self._queue.get()
            self._queue.put(first)
            self._hurry.wait(self.GATHER)
            try:
                self.flush()
            except Exception:  # they go out again; a thread that is gone would mark nothing any more
                logger.exception("Messages not marked as published")
                connections.close_all()

    def _drain(self, limit: int = 5000) -> list[tuple[str, int]]:
        batch: list[tuple[str, int]] = []
        while len(batch) < limit:
            try:
                batch += self._queue.get_nowait()
            except queue.Empty:
                break
        return batch


marker = Marker()
os.register_at_fork(after_in_child=marker.reset)
atexit.register(marker.flush)
