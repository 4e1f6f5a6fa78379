"""A worker's word for what it holds: the leases of its runs, renewed while they live, and handed back at its end.

A thread of the worker's parent process renews, in one statement, the leases of the runs that its children are at, and
of the messages that it holds for them. A run that ends before the first renewal costs nothing. The same statement
tells which of them somebody asked to stop; and which are no longer this worker's, since it had been out of reach for
longer than a lease: the processes that are at them still are killed.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from celery import Celery
from celery.platforms import signals
from celery.worker import state
from celery.worker.request import Request
from django.db import DatabaseError, connections

from tasks_app.conf import conf
from tasks_app.execution import busy_threads, gen_of
from tasks_app.models import TaskRecord
from tasks_app.seams.celery import context_of, itself, job_of

logger = logging.getLogger(__name__)

#: Seconds after which a run that was terminated, by a signal that its process ignores or takes its time about, is
#: killed; and where the worker ends.
TERMINATE_GRACE, TERMINATE_GRACE_AT_END = 10.0, 1.0
#: Seconds from SIGTERM until a worker lets go of what it still runs.

#: The runs whose processes were sent a signal, and when, until these are known to have gone.
terminated: dict[Request, float] = {}


class Leases(threading.Thread):
    """Renews each third of a lease; `hand_back_after` begins the end."""

    def __init__(self, app: Celery) -> None:
        super().__init__(name="leases", daemon=True)
        self.app = itself(app)
        self._woken = threading.Event()
        self._hand_back_at: float | None = None
        self._ended = False
        self._is_complete = True
        self._taken_away: set[tuple[str, int]] = set()

    def run(self) -> None:
        self.app.set_current()
        busy_threads.add(threading.get_ident())
        while not self._ended:
            try:
                self._renew()
                self._kill_terminated()
            except DatabaseError as error:
                logger.warning("Leases not renewed: %s", str(error).strip())
                connections.close_all()
            except Exception:
                logger.exception("Leases not renewed")
            if self._hand_back_at is not None and time.monotonic() >= self._hand_back_at:
                self._end()
            self._woken.wait(self._pause())
            self._woken.clear()
        busy_threads.discard(threading.get_ident())
        connections.close_all()

    def hand_back_after(self, seconds: float) -> None:
        """Let what runs go on for `seconds`; then hand back what has not ended, and end the process."""
        self._hand_back_at = time.monotonic() + seconds
        self._woken.set()

    def stop(self, timeout: float = 5) -> None:
        """End the thread; returns when it has, or after `timeout` seconds."""
        self._ended = True
        self._woken.set()
        if self.is_alive():
            self.join(timeout)

    def _pause(self) -> float:
        pause = conf.TASK_LEASE / 3
        if terminated or not self._is_complete:  # some may be locked by others just now
            pause = min(pause, 1.0)
        if self._hand_back_at is not None:
            pause = min(pause, max(self._hand_back_at - time.monotonic(), 0))
        return pause

    def _renew(self) -> None:
        # What runs is no longer reserved once the broker's connection was lost: Celery forgets what it had fetched.
        known = self._known(state.reserved_requests) | self._known(state.active_requests)
        held = {(request.id, _gen(request)): request for request in known if _in_time(request)}
        if not held:
            return
        mine = TaskRecord.objects.renew(held)
        for request in held.values():
            runs, stop_signal = mine.get(request.id, (False, ""))
            if runs and stop_signal:
                self._stop_run(request, stop_signal)
        gone = {message: request for message, request in held.items() if request.id not in mine}
        self._kill_taken_away(gone)  # most have ended just now
        self._is_complete = not gone

    def _known(self, requests: Iterable[Request]) -> set[Request]:
        """Not those of another app's worker in this process."""
        return {request for request in _snapshot(requests) if itself(request.app) is self.app}

    def _kill_taken_away(self, gone: dict[tuple[str, int], Request]) -> None:
        """Kill the processes whose runs others have ended. At the second look: by then a process that was refused the
        claim of such a message, having been at an earlier run of the same task, is at something else."""
        runs = {message: request.worker_pid for message, request in gone.items() if _has_child(request)}
        taken_away = TaskRecord.objects.taken_away(runs) if runs else set()
        for message in taken_away & self._taken_away:
            if _kill(gone[message], signal.SIGKILL):
                logger.warning("Task %s was revoked, or went elsewhere meanwhile: killed.", message[0])
        self._taken_away = taken_away

    def _stop_run(self, request: Request, stop_signal: str) -> None:
        """From here, and not from the worker's own thread: that one may be waiting for a broker to come back."""
        if _kill(request, effective(signals.signum(stop_signal))):
            terminated[request] = time.monotonic()
            self.app.backend.mark_as_revoked(request.id, "terminated", context_of(request))

    def _kill_terminated(self) -> None:
        """Celery lets go of a run when it has sent the signal; its own end would wait for a process that is there."""
        grace = TERMINATE_GRACE if self._hand_back_at is None else TERMINATE_GRACE_AT_END
        for request, since in list(terminated.items()):
            job = job_of(request)
            if job is None or job.ready():
                del terminated[request]
            elif time.monotonic() - since >= grace:
                with suppress(ProcessLookupError):
                    os.kill(request.worker_pid, signal.SIGKILL)

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
        reason = f"its worker was told to end, and the run took longer than {conf.WORKER_SHUTDOWN_GRACE:g} s"
        running = self._known(state.active_requests)
        waiting = self._known(state.reserved_requests) - running
        for request in running:
            self.app.backend.mark_as_released(request.id, _gen(request), reason)
        TaskRecord.objects.mark_handed_back([(request.id, _gen(request)) for request in waiting])
        logger.warning("Ends with %d runs and %d messages handed back.", len(running), len(waiting))
        for request in running:
            _kill(request, signal.SIGKILL)


def _snapshot(requests: Iterable[Request]) -> set[Request]:
    while True:
        with suppress(RuntimeError):  # the worker's own thread changes it meanwhile
            return set(requests)


def _gen(request: Request) -> int:
    return gen_of(context_of(request))


def _in_time(request: Request) -> bool:
    """Whether it can still be at work: one past its hard limit, whose worker does nothing about it, is given up."""
    limit = request.time_limits[0] or request.task.time_limit
    return not (limit and request.time_start and time.time() > request.time_start + limit + conf.TASK_LEASE)


def effective(number: int) -> int:
    """The signal that ends a pool's child where this one was asked for: all ignore SIGINT, since a terminal's Ctrl-C,
    which is meant for the worker, reaches them too."""
    return signal.SIGTERM if number == signal.SIGINT else number


def _has_child(request: Request) -> bool:
    return request in state.active_requests and request.worker_pid not in (None, os.getpid())


def _kill(request: Request, number: int) -> bool:
    """Signal the child that is at a run; False where there is none any more, or where the run has no child.

    Whether it is at that run is asked at the last moment: its next one is another task's.
    """
    with suppress(ProcessLookupError):
        if _has_child(request):
            os.kill(request.worker_pid, number)
            return True
    return False
