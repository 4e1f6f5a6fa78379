"""What a process remembers of a broker that is away, so that no submitter waits for it."""

import threading
from collections.abc import Callable


class Breaker:
    """Open while the broker is away: a submitter then leaves its messages to the relay without trying.

    No submitter tries whether it is back: a thread does, so that none waits for that either.
    """

    #: Seconds between its tries: the first pause, doubled up to the last.
    PAUSES = 0.25, 4.0

    def __init__(self, ask: Callable[[], None]) -> None:
        self.ask = ask
        self.is_open = False
        self._lock = threading.Lock()

    def trip(self) -> None:
        with self._lock:
            if not self.is_open:
                self.is_open = True
                threading.Thread(target=self._close_when_back, name="breaker", daemon=True).start()

    def _close_when_back(self) -> None:
        pause, longest = self.PAUSES
        while True:
            threading.Event().wait(pause)
            try:
                self.ask()
            except Exception:
                pause = min(pause * 2, longest)
            else:
                self.is_open = False
                return
