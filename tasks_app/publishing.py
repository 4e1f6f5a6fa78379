"""How records become messages in the broker, and what a process remembers of that: what to mark, and an outage.

Messages are built and sent by Celery's own functions, those of `Celery.send_task`, which would decide again, for each
message, what the record holds already.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.utils.nodenames import anon_nodename
from celery.utils.saferepr import saferepr
from django.db import DatabaseError, connections
from kombu import pools
from kombu.common import maybe_declare
from kombu.exceptions import BatchPublishError, OperationalError
from kombu.utils.functional import maybe_list

from tasks_app.formats import serializer_of

if TYPE_CHECKING:
    from celery import Celery

    from tasks_app.models import TaskRecord

logger = logging.getLogger(__name__)

#: Header that carries the record's `gen` in a message.
GEN_HEADER = "gen"
#: Messages that are held back go out so many at once; and so many while Postgres is at one statement for 500 of them.
AT_ONCE, SOME = 500, 125
#: A project's handlers of these may use the database, in the midst of a statement.
_SIGNALS = signals.before_task_publish, signals.after_task_publish, signals.task_sent
#: Where Publisher.held_back gathers.
_held: ContextVar[list[TaskRecord] | None] = ContextVar("held", default=None)
#: Options that are part of the message; the others tell how to send it.
_IN_MESSAGE = (
    "group_index", "chord", "time_limit", "soft_time_limit", "shadow", "chain", "ignore_result",
    "replaced_task_nesting", "argsrepr", "kwargsrepr",
)  # fmt: skip


class Publisher:
    """Sends the messages of records, over connections of its own whose patience ends after a second."""

    TIMEOUTS = {"socket_connect_timeout": 1, "socket_timeout": 1, "max_retries": 0}

    def __init__(self, app: Celery):
        self.app = app
        # A look into Celery's configuration costs 19 µs.
        self._sends_event = app.conf.task_send_sent_event
        self.reset()
        os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        """Forget what another process was connected to, and what it had learned."""
        self.__dict__.pop("producers", None)
        self._origin = anon_nodename()
        self.breaker = Breaker(self.ask)

    @cached_property
    def producers(self):
        return pools.producers[self.connection()]

    def connection(self):
        return self.app.connection_for_write(transport_options=self.TIMEOUTS)

    @contextmanager
    def held_back(self) -> Iterator[Callable[[], None]]:
        """Publish what is committed within at its end, so that one transaction need not wait for another's messages.

        Yields what publishes some of it sooner, for the time that would be spent waiting for the database.
        """
        held: list[TaskRecord] = []
        sent: list[list[TaskRecord]] = []  # marked at the end, as the database has enough to do until then

        def publish(limit: int) -> None:
            some = held[:limit]
            del held[:limit]
            if self._try_to_publish(some):
                sent.append(some)

        def publish_some() -> None:
            if held and not any(signal.receivers for signal in _SIGNALS):
                publish(SOME)

        token = _held.set(held)
        try:
            yield publish_some
        finally:
            _held.reset(token)
            while held:
                publish(AT_ONCE)
            for some in sent:
                marker.add(some)

    @property
    def grace(self) -> float:
        """Seconds until the relay publishes what is submitted now, and was not published by then."""
        from tasks_app.moves import HELD_GRACE, PUBLISH_GRACE

        return PUBLISH_GRACE if _held.get() is None else HELD_GRACE

    def publish_committed(self, records: Sequence[TaskRecord]) -> None:
        """Publish what is due. Where the broker does not answer, that is left to the relay."""
        if (held := _held.get()) is not None:
            held.extend(records)
        elif self._try_to_publish(records):
            marker.add(records)

    def _try_to_publish(self, records: Sequence[TaskRecord]) -> bool:
        if self.breaker.is_open:
            return False
        try:
            self.app.publish(records)
        except OperationalError as error:
            self.breaker.trip()
            logger.warning("Broker not reached (%s): %d tasks wait in Postgres for the relay.", error, len(records))
        except Exception:  # they are committed: the caller must not take them for failed
            logger.exception("%d tasks not published; the relay tries again.", len(records))
        else:
            return True
        return False

    def publish(self, records: Sequence[TaskRecord]) -> None:
        """Raises kombu's OperationalError where the broker does not answer.

        Several messages go out together where the transport can do that.
        """
        try:
            self._publish(records)
        except BatchPublishError as error:
            raise OperationalError(str(error.__cause__ or error)) from error

    def _publish(self, records: Sequence[TaskRecord]) -> None:
        with self.producers.acquire(block=True) as producer, producer.connection._reraise_as_library_errors():
            self._declare({record.queue for record in records if "exchange" not in record.options}, producer)
            with producer.batch() if len(records) > 1 else nullcontext():
                last = None
                for record in records:
                    options = dict(record.options)
                    headers = options.pop("headers", None)
                    if options != last:  # those of a batch mostly differ by their headers alone
                        last = options
                        in_message, sending = self._split_options(options)
                    self._publish_one(producer, record, headers, in_message, sending)

    def ask(self) -> None:
        """Raises kombu's OperationalError where the broker does not answer."""
        with self.connection() as connection:
            connection.ensure_connection(max_retries=1, timeout=1)

    def is_reached(self) -> bool:
        """Whether the broker answers, within a second or two; for what would wait for it without end."""
        if not self.breaker.is_open:
            try:
                self.ask()
            except OperationalError as error:
                logger.warning("Broker not reached: %s", error)
                self.breaker.trip()
        return not self.breaker.is_open

    def _declare(self, queues: set[str], producer) -> None:
        declared = producer.connection.declared_entities  # kombu's own memory, forgotten when it reconnects
        for name in queues - declared:
            maybe_declare(self.app.amqp.queues[name], producer.channel)
            declared.add(name)

    def _split_options(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options by what takes them: the function that makes a message, and the one that sends it."""
        sending = dict(options)
        sending.pop("content_encoding", None)  # the body is encoded here: a content type says how, as a serializer does
        if content_type := sending.pop("content_type", None):
            sending["serializer"] = serializer_of(content_type)
        in_message = {name: sending.pop(name) for name in _IN_MESSAGE if name in sending}
        in_message.setdefault("ignore_result", None)  # as the task has it
        in_message |= sending | {
            "callbacks": maybe_list(sending.pop("link", None)),
            "errbacks": maybe_list(sending.pop("link_error", None)),
            "reply_to": sending.pop("reply_to", None) or self.app.thread_oid,
            "origin": sending.get("origin") or self._origin,
            "create_sent_event": self._sends_event,
        }
        for stamp in sending.pop("stamped_headers", ()):
            in_message.setdefault(stamp, None)  # one without a value is not kept
            sending.pop(stamp, None)
        return in_message, sending

    def _publish_one(
        self, producer, record: TaskRecord, headers: Any, in_message: dict[str, Any], sending: dict[str, Any]
    ) -> None:
        amqp = self.app.amqp
        shown = {
            "argsrepr": _shown(record.args, amqp.argsrepr_maxsize) if record.args else "()",
            "kwargsrepr": saferepr(record.kwargs, amqp.kwargsrepr_maxsize) if record.kwargs else "{}",
        }
        message = amqp.create_task_message(
            record.task_id,
            record.name,
            record.args,
            record.kwargs,
            group_id=record.group_id,
            retries=record.retries,
            root_id=record.root_id,
            parent_id=record.parent_id,
            **shown | in_message,  # no eta and no expires: they wait in Postgres, and are judged by its clock
        )
        message.headers[GEN_HEADER] = record.gen
        if "exchange" not in sending:
            sending = sending | {"queue": record.queue, "declare": ()}
        amqp.send_task_message(producer, record.name, message, priority=record.priority, headers=headers, **sending)


def _shown(args: Sequence, longest: int) -> str:
    """What Celery's saferepr shows, without its walk where nothing can be too long."""
    return repr(args) if len(args) < 10 and _SHORT.issuperset(map(type, args)) else saferepr(args, longest)


_SHORT = {int, float, bool, type(None)}


class Breaker:
    """Open while the broker is away: a submitter then leaves its messages to the relay without trying.

    No submitter tries whether it is back: a thread does, so that none waits for that either.
    """

    #: Seconds between its tries: the first pause, doubled up to the last.
    PAUSES = 0.25, 4.0

    def __init__(self, ask: Callable[[], None]):
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


class Marker:
    """Marks messages as published, many in one statement, from a thread: a submitter need not wait for that.

    What is lost when the process is killed goes out twice, and the claim drops the second.
    """

    #: Seconds to gather marks, well within PUBLISH_GRACE, and to keep an idle connection.
    GATHER, IDLE = 0.25, 5

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._start_lock = threading.Lock()
        self._queue: queue.SimpleQueue[list[tuple[str, int]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, records: Iterable[TaskRecord]) -> None:
        self._queue.put([(record.task_id, record.gen) for record in records])
        if self._thread is None:
            with self._start_lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="mark-published", daemon=True)
                    self._thread.start()

    def flush(self) -> None:
        """Mark here and now what waits."""
        batch = self._drain()
        if batch:
            from tasks_app.models import TaskRecord

            try:
                TaskRecord.objects.mark_published(batch)
            except DatabaseError as error:
                logger.warning("%d messages not marked as published, they go out again: %s", len(batch), error)
                connections.close_all()

    def _run(self) -> None:
        while True:
            try:
                first = self._queue.get(timeout=self.IDLE)
            except queue.Empty:
                connections.close_all()
                first = self._queue.get()
            self._queue.put(first)
            threading.Event().wait(self.GATHER)
            try:
                self.flush()
            except Exception:  # they go out again; a thread that is gone would mark nothing any more
                logger.exception("Messages not marked as published")
                connections.close_all()

    def _drain(self, limit: int = 5000) -> list[tuple[str, int]]:
        batch: list[tuple[str, int]] = []
        while len(batch) < limit:
            try:
                batch += self._queue.get_nowait()
            except queue.Empty:
                break
        return batch


marker = Marker()
os.register_at_fork(after_in_child=marker.reset)
atexit.register(marker.flush)
