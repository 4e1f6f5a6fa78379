"""Django: its database may be used in the event loops of a worker, and in no others."""

import asyncio
from weakref import WeakSet

from django.utils import asyncio as guard

from tasks_app.seams import Seam

NAMES = (
    Seam(
        "django.utils.asyncio:",
        "get_running_loop",
        "()",
        "`other.delay()` in a coroutine's body",
        "DJANGO_ALLOW_ASYNC_UNSAFE lifts Django's guard for all of the process. One that can be lifted for a thread "
        "would end it.",
    ),
)

#: Event loops that run one task's body each: what waits for the database there keeps nobody else from their turn.
_allowed: WeakSet[asyncio.AbstractEventLoop] = WeakSet()


def allow_database_in(loop: asyncio.AbstractEventLoop) -> None:
    """Let code in this event loop, and in no other, use Django's database without `await`."""
    _allowed.add(loop)
    guard.get_running_loop = _guarded_loop  # type: ignore[attr-defined]


def _guarded_loop() -> asyncio.AbstractEventLoop:
    """As asyncio's; RuntimeError, which is what Django takes for no event loop, in one that is allowed."""
    loop = asyncio.get_running_loop()
    if loop in _allowed:
        raise RuntimeError("no event loop that Django must guard against")
    return loop
