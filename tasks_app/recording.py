"""The Celery app of this process that records. A project may have others, and any of them may be Celery's current one:
that is the last one made in the main thread, and the first one in others."""

from typing import Any
from weakref import WeakKeyDictionary

from celery import Celery
from celery.app import app_or_default
from celery.local import Proxy

#: In the order in which they were made.
apps: WeakKeyDictionary[Celery, None] = WeakKeyDictionary()


def _current() -> Celery:
    """Celery's current one where that records; else the first that does; else Celery's, as checks.py complains of."""
    current = app_or_default()
    return current if current in apps else next(iter(apps), current)


current_app: Any = Proxy(_current)
