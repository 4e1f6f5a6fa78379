"""How records become messages in the broker.

Messages are built and sent by Celery's own functions, those of `Celery.send_task`, which would decide again, for each
message, what the record holds already.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.utils.nodenames import anon_nodename
from celery.utils.saferepr import saferepr
from kombu import pools
from kombu.common import maybe_declare
from kombu.exceptions import BatchPublishError, OperationalError
from kombu.utils.functional import maybe_list

from tasks_app.ambient import ambient, having
from tasks_app.breaker import Breaker
from tasks_app.formats import serializer_of
from tasks_app.marking import marker
from tasks_app.seams.kombu import library_errors

if TYPE_CHECKING:
    from celery import Celery

    from tasks_app.models import TaskRecord

logger = logging.getLogger(__name__)

#: Header that carries the record's `gen` in a message.
GEN_HEADER = "gen"
#: Messages that are held back go out so many at once; and so many while Postgres is at one statement for 500 of them.
AT_ONCE, SOME = 500, 125
#: Sent when a record is made, by whoever makes it.
_SIGNALS = signals.before_task_publish, signals.after_task_publish, signals.task_sent
#: Options that are part of the message; the others tell how to send it.
_IN_MESSAGE = (
    "group_index", "chord", "time_limit", "soft_time_limit", "shadow", "chain", "ignore_result",
    "replaced_task_nesting", "argsrepr", "kwargsrepr",
)  # fmt: skip
#: Options that Celery's send_task takes for itself, or decides here: they are no properties of a message.
_NOT_SENT = "queue", "exchange_type", "retry", "retry_policy", "event_dispatcher", "stamped_headers", "origin"


class Publisher:
    """Sends the messages of records, over connections of its own whose patience ends after a second."""

    TIMEOUTS = {"socket_connect_timeout": 1, "socket_timeout": 1, "max_retries": 0}

    def __init__(self, app: Celery) -> None:
        self.app = app
        # A look into Celery's configuration costs 19 µs.
        self._sends_event = app.conf.task_send_sent_event
        self._serializer, self._compression = app.conf.task_serializer, app.conf.task_compression
        self._delivery_mode = app.conf.task_default_delivery_mode
        self.reset()
        os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        """Forget what another process was connected to, and what it had learned."""
        self.__dict__.pop("producers", None)
        self._origin = anon_nodename()
        self.breaker = Breaker(self.ask)

    @cached_property
    def producers(self) -> Any:
        return pools.producers[self.connection()]

    @cached_property
    def dispatcher(self) -> Any:
        return self.app.events.Dispatcher(enabled=False)  # each event goes out by the producer of its message

    def connection(self) -> Any:
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

        def publish_some() -> None:  # unless a project's handlers may want the database, which is at a statement
            if held and not has_handlers():
                publish(SOME)

        try:
            with having(held=held):
                yield publish_some
        finally:
            while held:
                publish(AT_ONCE)
            for some in sent:
                marker.add(some)

    @property
    def grace(self) -> float:
        """Seconds until the relay publishes what is submitted now, and was not published by then."""
        from tasks_app.moves import HELD_GRACE, PUBLISH_GRACE

        return PUBLISH_GRACE if ambient().held is None else HELD_GRACE

    def publish_committed(self, records: Sequence[TaskRecord]) -> None:
        """Publish what is due. Where the broker does not answer, that is left to the relay."""
        if (held := ambient().held) is not None:
            held.extend(records)
        elif self._try_to_publish(records):
            marker.add(records)

    def announce(self, record: TaskRecord) -> None:
        """Send Celery's signals of publishing for a new record, and keep what a handler adds to its headers.

        They come when the record is made, from whoever makes it, who knows what handlers ask for: a request's id, a
        trace, a tenant. Its message may go out later, more than once, and by another process.
        """
        options = dict(record.options)
        own = options.pop("headers", None) or {}
        in_message, sending = self._split_options(options)
        message = self._message(record, in_message)
        protocol = set(message.headers)
        headers = message.headers | own
        where = self._address(record, sending)
        signals.before_task_publish.send(
            sender=record.name, body=message.body, headers=headers, declare=[], retry_policy={},
            properties=message.properties | {"priority": record.priority}, **where,
        )  # fmt: skip
        if kept := {name: value for name, value in headers.items() if name not in protocol or name in own}:
            record.options = record.options | {"headers": kept}
        signals.after_task_publish.send(sender=record.name, body=message.body, headers=headers, **where)
        if signals.task_sent.receivers:
            signals.task_sent.send(
                sender=record.name, task_id=record.task_id, task=record.name, args=record.args, kwargs=record.kwargs,
                eta=record.eta, taskset=record.group_id,
            )  # fmt: skip

    def _announce_late(self, records: Sequence[TaskRecord]) -> None:
        """Of what was made within a transaction of ours, where no project's code is to run."""
        for record in records:
            if not record.is_announced and self.app.announce_late(record):
                row = type(record).objects.filter(task_id=record.task_id, gen=record.gen)
                row.update(args=record.args, kwargs=record.kwargs, options=record.options)

    def _try_to_publish(self, records: Sequence[TaskRecord]) -> bool:
        self._announce_late(records)
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
        with self.producers.acquire(block=True) as producer, library_errors(producer.connection):
            self._declare({each.queue for each in records if "exchange" not in each.options}, producer)
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

    def _declare(self, queues: set[str], producer: Any) -> None:
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
        in_message |= {
            "callbacks": maybe_list(sending.pop("link", None)),
            "errbacks": maybe_list(sending.pop("link_error", None)),
            "reply_to": sending.pop("reply_to", None) or self.app.thread_oid,
            "origin": sending.get("origin") or self._origin,
            "create_sent_event": self._sends_event,
        }
        if stamps := sending.get("stamped_headers"):
            in_message |= {"stamped_headers": stamps} | {stamp: sending.pop(stamp, None) for stamp in stamps}
        return in_message, sending

    def _message(self, record: TaskRecord, in_message: dict[str, Any]) -> Any:
        amqp = self.app.amqp
        shown = {}
        if "argsrepr" not in in_message:
            shown["argsrepr"] = _shown(record.args, amqp.argsrepr_maxsize) if record.args else "()"
        if "kwargsrepr" not in in_message:
            shown["kwargsrepr"] = saferepr(record.kwargs, amqp.kwargsrepr_maxsize) if record.kwargs else "{}"
        message = amqp.create_task_message(
            record.task_id,
            record.name,
            record.args,
            record.kwargs,
            group_id=record.group_id,
            retries=record.retries,
            root_id=record.root_id,
            parent_id=record.parent_id,
            **shown,
            **in_message,  # no eta and no expires: they wait in Postgres, and are judged by its clock
        )
        message.headers[GEN_HEADER] = record.gen
        return message

    def _address(self, record: TaskRecord, sending: Mapping[str, Any]) -> dict[str, str]:
        """The exchange and the routing key of a message, as Celery has them."""
        exchange, key = sending.get("exchange"), sending.get("routing_key")
        if exchange and key:
            return {"exchange": exchange, "routing_key": key}
        queue = self.app.amqp.queues[record.queue]
        if queue.exchange is None or queue.exchange.type == "direct":
            return {"exchange": "", "routing_key": queue.name}
        return {"exchange": queue.exchange.name, "routing_key": key or queue.routing_key}

    def _publish_one(
        self, producer: Any, record: TaskRecord, headers: Any, in_message: dict[str, Any], sending: dict[str, Any]
    ) -> None:
        """As Celery's own sender does it, whose signals were sent with the record."""
        message = self._message(record, in_message)
        own = {name: value for name, value in sending.items() if name not in _NOT_SENT}
        properties = message.properties | own | self._address(record, sending)
        properties.setdefault("serializer", self._serializer)
        properties.setdefault("compression", self._compression)
        properties.setdefault("delivery_mode", self._delivery_mode)
        producer.publish(
            message.body, headers=message.headers | (headers or {}), priority=record.priority, retry=False, **properties
        )
        if message.sent_event:
            self.dispatcher.publish(
                "task-sent",
                message.sent_event | {"queue": record.queue} | self._address(record, sending),
                producer,
                retry=False,
            )


def has_handlers() -> bool:
    """Whether the project listens to Celery's signals of publishing."""
    return any(signal.receivers for signal in _SIGNALS)


def _shown(args: Sequence[Any], longest: int) -> str:
    """What Celery's saferepr shows, without its walk where nothing can be too long."""
    return repr(args) if len(args) < 10 and _SHORT.issuperset(map(type, args)) else saferepr(args, longest)


_SHORT = {int, float, bool, type(None)}
