"""What code knows beside its arguments, since Celery's own code stands between the one who knows and the one who asks.

    who sets it                                              what           who reads it
    ───────────────────────────────────────────────────────────────────────────────────────────────────────────────
    gathering: a workflow is put together, a body has ended  successors  ─▶ send_task, canvases, chords, building
    Publisher.held_back: a pass of the scheduler             held        ─▶ Publisher.publish_committed, Publisher.grace
    statements.meanwhile: the same                           meanwhile   ─▶ statements.execute
    closing, consequences: an outcome is being stored        closing     ─▶ closing, chords, consequences
    the same, and chords: of the workflow at hand            root_id     ─▶ the same
    chords: a chord fails, after one within its header       called,     ─▶ consequences: no errback is called twice
                                                             calling
    outcomes: a body has raised                              raised      ─▶ backend, at the end of the run

Each thread and each coroutine has its own, so runs that share a process, or a backend, know nothing of each other. What
is set stands for a block, and the block puts back what it found. What the end of a body sets stands until the end of
the run: the backend forgets it then, and a claim what Celery left behind when it gave a run up.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from celery.app.task import Context

    from tasks_app.gathering import Successors
    from tasks_app.models import TaskRecord


class Prepared(NamedTuple):
    """An outcome as its run has it, as Celery encodes it, and as it is kept: the row's three columns, and a note."""

    result: Any
    encoded: Any
    kept: tuple[tuple[str, str, str], str]


@dataclass
class Closing:
    """A task whose outcome is being stored, and what comes out on the way."""

    task_id: str
    outcome: Prepared | None = None
    #: The step that follows, where it is written by the statement that closes the run.
    successor: TaskRecord | None = None
    #: Members that decide their chords, in the transaction at hand; None where whoever commits it ends them.
    decided: list[Context] | None = None
    #: Whether the run that was closed had been asked to stop.
    was_stopped: bool = False


class Ambient(NamedTuple):
    successors: Successors | None = None
    held: list[TaskRecord] | None = None
    meanwhile: Callable[[], None] | None = None
    closing: Closing | None = None
    root_id: str | None = None
    #: Errbacks, as JSON, that a chord has called which is within the header of one that fails now, and of the latter.
    called: frozenset[str] = frozenset()
    calling: set[str] | None = None
    raised: Exception | None = None


_NOTHING = Ambient()
_current: ContextVar[Ambient] = ContextVar("ambient", default=_NOTHING)


def ambient() -> Ambient:
    return _current.get()


class having:
    """Have `ambient()` tell these, by the names of its fields, within the block. (No generator: each run pays it.)"""

    __slots__ = ("_known", "_token")

    def __init__(self, **known: Any) -> None:
        self._known = known

    def __enter__(self) -> None:
        self._token = _current.set(_current.get()._replace(**self._known))

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


def keep(**known: Any) -> None:
    """Have `ambient()` tell these until the end of the run."""
    _current.set(_current.get()._replace(**known))


def forget() -> None:
    """Begin or end a run: it has nothing of the one before it, and leaves nothing to the next."""
    _current.set(_NOTHING)
