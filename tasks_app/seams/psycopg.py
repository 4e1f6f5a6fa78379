"""psycopg: a statement taken step by step, so that something else is done while Postgres is at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import psycopg
from psycopg.waiting import Wait

from tasks_app.seams import Seam

if TYPE_CHECKING:
    from psycopg.abc import PQGen

_WHY = (
    "psycopg's public pipeline ends with a message after which Postgres counts a process that freezes as one that goes "
    "on sending. Nothing but speed is lost: `chosen` takes the plain cursor then. A public way to send a statement and "
    "fetch later would replace it."
)
NAMES = (
    Seam("psycopg:Cursor", "_execute_gen", "(self, query, params=…, …)", "Publishing while Postgres inserts", _WHY),
    Seam("psycopg:Connection", "wait", "(self, gen, …)", "Publishing while Postgres inserts", _WHY),
)


class PlainCursor(psycopg.Cursor):
    def execute_meanwhile(self, sql: str, params: Sequence[Any], work: Callable[[], None]) -> PlainCursor:
        """Execute, with `work` done first: where psycopg lets nobody in between."""
        work()
        return self.execute(sql, params)


class SteppedCursor(PlainCursor):
    def execute_meanwhile(self, sql: str, params: Sequence[Any], work: Callable[[], None]) -> SteppedCursor:
        """Execute, with `work` done between sending it and reading the answer."""
        self.connection.wait(_once_sent(self._execute_gen(sql, params), work))
        return self


def _once_sent(steps: PQGen[None], work: Callable[[], None]) -> PQGen[None]:
    """The steps of a statement, with `work` before the first wait for nothing but an answer."""
    is_done, ready = False, cast("Any", None)  # as the first step is taken
    with suppress(StopIteration):
        while True:
            wanted = steps.send(ready)
            if wanted == Wait.R and not is_done:
                is_done = True
                work()
            ready = yield wanted


def chosen() -> type[PlainCursor]:
    """The cursor that the installed psycopg allows."""
    return PlainCursor if any(seam.problem() for seam in NAMES) else SteppedCursor


Cursor = chosen()
