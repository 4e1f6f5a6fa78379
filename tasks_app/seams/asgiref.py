"""asgiref: the thread that runs a coroutine's synchronous code, which no fork takes along."""

import os
from concurrent.futures import ThreadPoolExecutor

from asgiref.sync import SyncToAsync

from tasks_app.seams import KEPT, Seam

NAMES = (
    Seam(
        "asgiref.sync:SyncToAsync",
        "single_thread_executor",
        KEPT,
        "The ORM in coroutines, in a pool's child whose parent has used it",
        "A child would wait for its parent's thread for ever. An asgiref that makes it anew after a fork ends it.",
    ),
)


def _renew_executor() -> None:
    SyncToAsync.single_thread_executor = ThreadPoolExecutor(max_workers=1)


def renew_after_fork() -> None:
    """Give each process that is forked from here on a thread of its own."""
    os.register_at_fork(after_in_child=_renew_executor)
