"""What the end of a task that did not succeed means for those that wait for it: its chord, its chain, its errbacks.

A chord and a chain are told in the transaction that closes the task. Errbacks are a project's code: those that are sent
are records of that transaction, and those that take the exception are called after it.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from celery import Signature, group
from celery import states as celery_states
from celery.app.task import Context
from celery.exceptions import NotRegistered, TaskRevokedError
from django.db import InterfaceError, OperationalError, connection, transaction
from kombu.utils.functional import maybe_list

from tasks_app.ambient import Closing, ambient, having
from tasks_app.chords import ChordBackend, root_of
from tasks_app.execution import aside, request_of
from tasks_app.gathering import Successors, gathered
from tasks_app.models import TaskRecord
from tasks_app.storable import dump_json

logger = logging.getLogger(__name__)


class ConsequenceBackend(ChordBackend):
    def follow_revoked(self, task_ids: Iterable[str]) -> None:
        """Let what waits for tasks that were revoked, or expired, while they waited end too."""
        for record in TaskRecord.objects.filter(task_id__in=task_ids):
            self._follow(request_of(record), record.state, TaskRevokedError(record.exc_message))

    def follow_end_of(self, record: TaskRecord, error: Exception) -> None:
        """The same for a step that is not in the table as what it is, which failed, or was revoked, for that."""
        request = request_of(record)
        if isinstance(error, TaskRevokedError):
            self._follow(request, celery_states.REVOKED, error)
            return
        self._follow(request, celery_states.FAILURE, error)
        if request.errbacks:
            transaction.on_commit(partial(aside, partial(self.call_errbacks, request, error, None)))

    def _follow(self, request: Context, state: str, exc: Exception, traceback: Any = None) -> None:
        """What a task that did not succeed means for those that wait for it."""
        if request is None or not (request.chord or getattr(request, "chain", None)):
            return
        closing = ambient().closing or Closing(request.id)
        with having(closing=closing, root_id=root_of(request)), contained(request.id):
            if request.chord:
                self.on_chord_part_return(request, state, exc)
            self.fail_chain(getattr(request, "chain", None), exc, traceback, state)

    def _errbacks_of(self, request: Context) -> tuple[list[Signature], Successors]:
        """A task's errbacks: those to be called here, with the exception, and the records of those to be sent."""
        here: list[Signature] = []
        with gathered() as sent, contained(getattr(request, "id", "")):
            errbacks = [self.app.signature(each) for each in maybe_list(getattr(request, "errbacks", None)) or ()]
            here = [errback for errback in errbacks if self._is_called_here(errback)]
            if to_send := [errback for errback in errbacks if errback not in here]:
                root_id = request.root_id or request.id
                group(to_send, app=self.app).apply_async((request.id,), parent_id=request.id, root_id=root_id)
        for record in sent.records:
            record.is_successor = True
        return here, sent

    def _is_called_here(self, errback: Signature) -> bool:
        """As Celery tells them apart: one that takes more than a task's id is called with its exception."""
        try:
            return self.takes_exception(errback)
        except (NotRegistered, AttributeError):  # another worker's, perhaps
            return False

    def call_errbacks(self, request: Context, exc: Any, traceback: Any) -> None:
        """Those of a chord's body, which Celery lets fail itself."""
        if self.app.conf.task_always_eager or (request.delivery_info or {}).get("is_eager"):
            return super().call_errbacks(request, exc, traceback)
        # A chord links its own to the bodies of chords within its header too, which have called them by then.
        called, calling = ambient().called, ambient().calling
        request.errbacks = [each for each in request.errbacks if _words(each) not in called]
        if calling is not None:
            calling.update(map(_words, request.errbacks))
        here, sent = self._errbacks_of(request)
        self.app.submit_workflow(sent)
        call_each(here, request, exc, traceback)


def _words(errback: Signature) -> str:
    return dump_json([errback.get(part) for part in ("task", "args", "kwargs")])


def call_each(errbacks: Iterable[Signature], request: Context, exc: Exception, traceback: Any) -> None:
    for errback in errbacks:
        try:
            errback(request, exc, traceback)
        except Exception:
            logger.exception("Errback %s of task %s failed", errback.task, request.id)


@contextmanager
def contained(task_id: str) -> Iterator[None]:
    """A task's own end does not depend on what follows: what cannot be done, for a broken signature say, is logged."""
    try:
        with transaction.atomic() if connection.in_atomic_block else nullcontext():
            yield
    except (OperationalError, InterfaceError):
        raise
    except Exception:
        logger.exception("What follows from the end of task %s could not be done", task_id)
