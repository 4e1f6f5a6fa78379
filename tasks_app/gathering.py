"""What is sent while a run ends, or while a workflow is put together: gathered, to be written as a whole.

A project's Celery app is made before Django's apps are loaded, so no model is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks_app.ambient import ambient, having, keep

if TYPE_CHECKING:
    from django_celery_results.models import ChordCounter

    from tasks_app.models import TaskRecord
    from tasks_app.steps import Step


class Successors:
    """What was sent, and is not written yet: by the end of a run, or as one workflow."""

    def __init__(self, parent: Any = None) -> None:
        #: The task whose end this is, for the ids of what follows; None for a workflow.
        self.parent = parent
        self.records: list[TaskRecord] = []
        self.chords: list[ChordCounter] = []
        self.steps: list[Step] = []


def begin_ending(parent: Any) -> None:
    """From here on, until `take_successors`, gather what is sent: the body has ended, its outcome is not stored yet."""
    keep(successors=Successors(parent))


def take_successors() -> Successors | None:
    """What was gathered since the body has ended; from here on, what is sent is submitted at once."""
    successors = ambient().successors
    if successors is not None:
        keep(successors=None)
    return successors


def gathering() -> Successors | None:
    """Where what is sent goes now; None: it is submitted at once."""
    return ambient().successors


@contextmanager
def gathered() -> Iterator[Successors]:
    """Gather what is sent within the block."""
    successors = Successors()
    with having(successors=successors):
        yield successors
