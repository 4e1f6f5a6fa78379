"""A worker's word for what it holds: the leases of its runs, renewed while they live, and handed back at its end.

A thread of the worker's parent process renews, in one statement, the leases of the runs that its children are at, and
of the messages that it holds for them. A run that ends before the first renewal costs nothing. The same statement
tells which of them somebody asked to stop; and which are no longer this worker's, since it had been out of reach for
longer than a lease: their processes are killed.
"""

import logging
import os
import signal
import threading
import time
from contextlib import suppress

from celery import current_app
from celery.platforms import signals
from celery.worker import state
from django.conf import settings
from django.db import DatabaseError, connections

from tasks_app.execution import gen_of
from tasks_app.models import TaskRecord
from tasks_app.moves import LEASE

logger = logging.getLogger(__name__)

#: Seconds from SIGTERM until a worker lets go of what it still runs.
SHUTDOWN_GRACE: float = getattr(settings, "WORKER_SHUTDOWN_GRACE", 25.0)


class Leases(threading.Thread):
    """Renews each third of a lease; `hand_back_after` begins the end."""

    def __init__(self):
        super().__init__(name="leases", daemon=True)
        self._woken = threading.Event()
        self._hand_back_at: float | None = None
        self._ended = False
        self._is_complete = True

    def run(self) -> None:
        while not self._ended:
            try:
                self._renew()
            except DatabaseError as error:
                logger.warning("Leases not renewed: %s", str(error).strip())
                connections.close_all()
            except Exception:
                logger.exception("Leases not renewed")
            if self._hand_back_at is not None and time.monotonic() >= self._hand_back_at:
                self._end()
            self._woken.wait(self._pause())
            self._woken.clear()
        connections.close_all()

    def hand_back_after(self, seconds: float) -> None:
        """Let what runs go on for `seconds`; then hand back what has not ended, and end the process."""
        self._hand_back_at = time.monotonic() + seconds
        self._woken.set()

    def stop(self) -> None:
        self._ended = True
        self._woken.set()

    def _pause(self) -> float:
        if self._hand_back_at is None:
            return LEASE / 3 if self._is_complete else min(1.0, LEASE / 3)  # some may be locked by others just now
        return min(LEASE / 3, max(self._hand_back_at - time.monotonic(), 0))

    def _renew(self) -> None:
        # What runs is no longer reserved once the broker's connection was lost: Celery forgets what it had fetched.
        known = _snapshot(state.reserved_requests) | _snapshot(state.active_requests)
        held = {(request.id, _gen(request)): request for request in known if _in_time(request)}
        if not held:
            return
        mine = TaskRecord.objects.renew(held)
        gone = [message for message, request in held.items() if request.id not in mine]  # most have ended just now
        taken_away = TaskRecord.objects.taken_away(gone) if gone else set()
        for request in held.values():
            runs, stop_signal = mine.get(request.id, (False, ""))
            if runs and stop_signal:
                self._stop_run(request, stop_signal)
            elif request.id in taken_away and _kill(request, signal.SIGKILL):
                logger.warning("Task %s was revoked, or went elsewhere meanwhile: killed.", request.id)
        self._is_complete = not gone

    def _stop_run(self, request, stop_signal: str) -> None:
        """From here, and not from the worker's own thread: that one may be waiting for a broker to come back."""
        if _kill(request, signals.signum(stop_signal)):
            current_app.backend.mark_as_revoked(request.id, "terminated", request._context)

    def _end(self) -> None:
        self._hand_back_at = None
        last_resort = threading.Timer(3, os._exit, [0])  # Celery's own end may hang on what the killed left unread
        last_resort.daemon = True
        last_resort.start()
        try:
            self._hand_back()
        except Exception:
            logger.exception("Not handed back, to be found by their leases")

    def _hand_back(self) -> None:
        """Hand back what is held. A run whose task may be repeated waits for another worker; any other has failed."""
        reason = f"its worker was told to end, and the run took longer than {SHUTDOWN_GRACE:g} s"
        running = _snapshot(state.active_requests)
        waiting = _snapshot(state.reserved_requests) - running
        for request in running:
            current_app.backend.mark_as_released(request.id, _gen(request), reason)
        TaskRecord.objects.mark_handed_back([(request.id, _gen(request)) for request in waiting])
        logger.warning("Ends with %d runs and %d messages handed back.", len(running), len(waiting))
        for request in running:
            _kill(request, signal.SIGKILL)


def _snapshot(requests) -> set:
    while True:
        with suppress(RuntimeError):  # the worker's own thread changes it meanwhile
            return set(requests)


def _gen(request) -> int:
    return gen_of(request._context)


def _in_time(request) -> bool:
    """Whether it can still be at work: one past its hard limit, whose worker does nothing about it, is given up."""
    limit = request.time_limits[0] or request.task.time_limit
    return not (limit and request.time_start and time.time() > request.time_start + limit + LEASE)


def _kill(request, number: int) -> bool:
    """Signal the child that is at a run; False where there is none any more, or where the run has no child."""
    if request not in _snapshot(state.active_requests) or request.worker_pid in (None, os.getpid()):
        return False
    with suppress(ProcessLookupError):
        os.kill(request.worker_pid, number)
        return True
    return False
