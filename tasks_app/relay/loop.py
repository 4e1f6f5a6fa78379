"""The relay: a thread in every `runscheduler` and every worker's parent process."""

import logging
import threading
import time

from django.db import DatabaseError, connections
from kombu.exceptions import OperationalError

from tasks_app import limits, moments
from tasks_app.execution import busy_threads
from tasks_app.notify import DUE_CHANNEL, Listener
from tasks_app.relay import due
from tasks_app.relay.rescue import Rescuer

logger = logging.getLogger(__name__)


class Relay(threading.Thread):
    """Publishes what is due, and rescues what was lost, in every `runscheduler` and every worker's parent process.

    Woken by NOTIFY, polling behind it, it sleeps until the next row is due.
    """

    #: Seconds: between polls, and between tries while the database or the broker is away.
    POLL, BACK_OFF = 1.0, 1.0
    #: Between looks at a row that is due, and that somebody else holds.
    HELD = 0.05

    def __init__(self) -> None:
        super().__init__(name="relay", daemon=True)
        self._stopping = threading.Event()
        self._listener = Listener(DUE_CHANNEL)
        self._rescuer = Rescuer()

    def run(self) -> None:
        busy_threads.add(threading.get_ident())
        away = False
        while not self._stopping.is_set():
            try:
                pause = self._turn()
                away = False
            except (OperationalError, DatabaseError) as error:
                if not away:
                    logger.warning("Relay waits, what is due stays in Postgres: %s", str(error).strip())
                away, pause = True, self.BACK_OFF
                connections.close_all()
            except Exception:  # a relay that is not there is worse than one that repeats itself
                logger.exception("The relay's turn failed; it goes on.")
                pause = self.BACK_OFF
                connections.close_all()
            if pause and not self._wait(pause):
                self._stopping.wait(pause)
        busy_threads.discard(threading.get_ident())
        connections.close_all()
        self._listener.close()

    def stop(self, timeout: float = 5) -> None:
        """End the thread; returns when it has, or after `timeout` seconds."""
        if self.is_alive():
            self._stopping.set()
            self._listener.wake()
            self.join(timeout)

    def _wait(self, pause: float) -> bool:
        try:
            self._listener.wait(pause)
        except Exception:
            logger.exception("The relay cannot listen; it polls.")
            return False
        return True

    def _turn(self) -> float:
        """Do what is due, first what needs no broker; the seconds until there may be more."""
        expired = due.expire_waiting()
        self._rescuer.end_lost_runs(time.monotonic())
        self._rescuer.end_chords(time.monotonic())
        self._rescuer.prune_limits(time.monotonic())
        limits.admit_parked()
        published = due.publish_due()
        self._rescuer.find_lost_messages(time.monotonic())
        return 0.0 if published or expired else self._pause()

    def _pause(self) -> float:
        at = due.next_due_at()
        until_due = (at - moments.now()).total_seconds() if at else self.POLL
        return min(max(until_due, self.HELD), self.POLL)
