"""Wake-ups through Postgres' NOTIFY and LISTEN. Each is a hint that may be lost: whoever listens also polls."""

import select
import socket
from contextlib import suppress

import psycopg
from django.db import DatabaseError, connection
from psycopg import sql

#: Wakes the relay (loop.Relay): a row has a new time to be published.
DUE_CHANNEL = "tasks_due"


def notify(channel: str) -> None:
    """Wake the listeners of `channel` when the current transaction commits (at once where there is none)."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, '')", [channel])


class Listener:
    """Waits for NOTIFY on some channels, on a connection of its own; `wake()` ends a wait from another thread.

    Where the server cannot be reached, or LISTEN is not to be had (a transaction-pooling proxy), a wait lasts a second
    at most, and the next one tries to connect again.
    """

    def __init__(self, *channels: str):
        self.channels = channels
        self._wrapper = connection.copy()
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)

    def wait(self, timeout: float) -> bool:
        """True as soon as there is a notification or a `wake()`; False after `timeout` seconds without."""
        timeout = max(timeout, 0)
        try:
            if self._wrapper.connection is None:
                self._listen()
                return True  # whatever was sent while nobody listened was missed
            raw = self._wrapper.connection
            ready, _, _ = select.select([raw.fileno(), self._woken], [], [], timeout)
            if raw.fileno() in ready:
                list(raw.notifies(timeout=0))
        except (DatabaseError, psycopg.Error, OSError):
            self._disconnect()
            ready, _, _ = select.select([self._woken], [], [], min(timeout, 1))
        if self._woken in ready:
            self._woken.recv(4096)
        return bool(ready)

    def wake(self) -> None:
        with suppress(OSError):  # enough wake-ups wait already, or it was closed just now
            self._waker.send(b".")

    def close(self) -> None:
        self._disconnect()
        self._woken.close()
        self._waker.close()

    def _listen(self) -> None:
        self._wrapper.ensure_connection()
        for channel in self.channels:
            self._wrapper.connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    def _disconnect(self) -> None:
        # The wrapper belongs to whichever thread waits; one that merely closes must not be refused.
        self._wrapper.inc_thread_sharing()
        try:
            self._wrapper.close()
        except DatabaseError:
            self._wrapper.connection = None
