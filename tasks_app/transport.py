"""kombu's Redis transport, where a bad item in a queue stops nobody, and with one client a channel.

kombu takes an item off its list before it looks at it, and whatever goes wrong then ends the worker. What had been
moved to `unacked` by then is put back on the way out, and ends the next worker too. So what kombu and Celery take for
granted is checked here before an item counts as a message; one that fails goes, as it was, to a list of its own, and
the log says why. So does what raises while Celery takes it, what Celery drops itself, and what cannot be put back from
`unacked`. Where it was the message of a task, `on_refused` is told, so that its record can be.

kombu also makes a new client for each message, at 86 µs apiece.
"""

import json
import logging
import os
import random
from collections.abc import Callable
from queue import Empty
from typing import Any

from celery import signals
from celery.app.amqp import AMQP
from kombu.connection import ConnectionPool
from kombu.connection import PooledConnection as KombusPooledConnection
from kombu.exceptions import OperationalError
from kombu.transport import redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from tasks_app.formats import unpacked
from tasks_app.messages import is_count, is_id
from tasks_app.seams import kombu as seam
from tasks_app.storable import DEEPEST, is_deeper

logger = logging.getLogger(__name__)

#: The list of what was no message, newest first, and how many it keeps.
QUARANTINE, KEPT = "taskconsole.quarantine", 1000
#: Levels of lists and objects around a message's body, and in it: what messages.py lets through, and what is put around
#: that. Python reads and writes deep ones only as far as its stack allows at that point.
DEEPEST_AROUND, DEEPEST_BODY = 50, DEEPEST + 10
#: Makes delivery tags, as random as kombu's UUIDs, without asking the system each time, at 5 µs. Nobody else seeds it.
_chance = random.Random()  # noqa: S311
os.register_at_fork(after_in_child=_chance.seed)
#: Called with the id and the gen of a task whose message could not be taken, and with the reason in words.
on_refused: Callable[[str, int, str], object] | None = None
#: Told of a queue's name before its messages are thrown away.
on_purged: Callable[[str], object] | None = None
#: Not the item's fault. (kombu also counts KeyError to a connection's errors; what an item lacks raises that.)
_BROKER_ERRORS = (Empty, RedisError, OSError, OperationalError)


class Malformed(ValueError):
    """An item that no worker could take; says why."""


class Message(seam.Message):
    #: Why no worker can take it, where Celery finds that out and drops it.
    flaw: Exception | None = None

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            _check(payload)
            headers = payload["headers"] = payload.get("headers") or {}  # with null, kombu could not put it back
            channel.check_priority(payload)  # likewise with one that is no number it can round
            method = headers.get("compression")
            plain = payload | {"headers": headers | {"compression": None}} if method else payload
            super().__init__(plain, channel, **kwargs)
            if self.errors:
                raise Malformed(repr(self.errors[0][1]))
            if method:  # not by kombu, which would unpack whatever it is
                self.item, self.headers, self.body = payload, headers, unpacked(self.body, method)
        except Exception as error:
            raise _malformed(error) from error

    def read_body(self) -> Any:
        """Celery calls this when it takes the message, having set which content types it accepts."""
        try:
            body = super().read_body()
            if self.content_type != "application/json" or _brackets(self.body or b"") > DEEPEST_BODY:
                _check_depth(body, DEEPEST_BODY)
            _check_body(body, self.headers)
        except Exception as error:
            self.flaw = flaw = _malformed(error)
            raise flaw from error
        return body


@signals.task_rejected.connect
def note_flaw(message: Any, exc: Exception | None, **_: Any) -> None:
    """What Celery takes for no task, or for one that it cannot understand, it logs, and drops."""
    if isinstance(message, Message):
        message.flaw = exc or Malformed("it is no task")


class QoS(seam.QoS):
    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        try:
            super().restore_by_tag(tag, client, leftmost)
        except _BROKER_ERRORS:
            raise
        except Exception as error:
            with self.channel.conn_or_acquire(client) as client:
                if item := client.hget(self.unacked_key, tag):
                    self.channel.quarantine(self.unacked_key, item, error)
                self.forget(tag)


class Channel(seam.Channel):
    Message = Message
    QoS = QoS

    #: Key and value of the last item that was taken off a list.
    _popped: tuple[bytes, bytes] | None = None

    def client_for(self, asynchronous: bool) -> Any:
        if self.connection is None or self.connection.client is None:  # Celery closes a lost connection twice
            raise RedisConnectionError("This channel's connection was lost, and is closed.")
        if asynchronous:
            client = super().client_for(asynchronous=True)
            client.set_response_callback("BRPOP", self._remember)
            return client
        kept = self.__dict__.get("_kept_client")
        if kept is None or kept.connection_pool is not self.pool:  # the pool is made anew after a lost connection
            kept = self._kept_client = super().client_for(asynchronous=False)
        return kept

    def queue_purge(self, queue: str, **kwargs: Any) -> Any:
        if on_purged is not None:
            on_purged(queue)
        return super().queue_purge(queue, **kwargs)

    def new_tag(self) -> str:
        return f"{_chance.getrandbits(128):032x}"

    def _remember(self, reply: Any, **_: Any) -> Any:
        self._popped = reply and tuple(reply)
        return self._popped

    def read_item(self, **options: Any) -> Any:
        self._popped = None
        try:
            return super().read_item(**options)
        except _BROKER_ERRORS:
            raise
        except Exception as error:
            if not self._popped:
                raise
            self.quarantine(*self._popped, error)
            return True

    def read_broadcasts(self) -> bool:
        """Read the broadcasts that are there. kombu's own reads one first, and waits for it without end: a worker was
        seen to stand still for ever, where what its poll had announced had been read by then."""
        received = False
        try:
            while (connection := self.subclient.connection) is not None and connection.can_read(timeout=0):
                received = bool(self.read_broadcast(self.subclient)) or received
        except self.connection_errors:
            self.subscribe_again()  # as kombu's own does
            raise
        return received

    def read_broadcast(self, client: Any) -> Any:
        try:
            return super().read_broadcast(client)
        except (Malformed, RecursionError) as error:
            logger.error("A broadcast was no message and is lost: %.300r", error)

    def basic_consume(self, queue: str, no_ack: bool, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def guarded(message: Message) -> Any:
            try:
                taken = callback(message)
            except _BROKER_ERRORS:
                raise
            except Exception as error:
                logger.debug("Not taken: %r", message, exc_info=True)
                self.quarantine(queue, dumps(message.item), error)
                if not no_ack:
                    self.qos.reject(message.delivery_tag)
            else:
                if message.flaw is not None:
                    self.quarantine(queue, dumps(message.item), message.flaw)
                return taken

        return super().basic_consume(queue, no_ack, guarded, *args, **kwargs)

    def put_back(self, payload: Any, exchange: str, routing_key: str, pipe: Any, leftmost: bool) -> None:
        """As kombu's, which forgets what it cannot put back; the caller knows what to do with it."""
        Message(payload, channel=self)
        if not any(self.queues_for(exchange, routing_key)):
            raise Malformed(f"no queue takes exchange {exchange!r:.80} with routing key {routing_key!r:.80}")
        super().put_back(payload, exchange, routing_key, pipe, leftmost)

    def quarantine(self, source: bytes | str, item: Any, error: Exception) -> None:
        """Keep an item of `source`, a queue's list or the hash of the unacknowledged, that no worker could take."""
        key = keep(self, item)
        queue = bytes_to_str(source).rsplit(self.sep, 1)[0]
        logger.error("An item of %s could not be taken: %.300r. It is now in the broker's list %s.", queue, error, key)
        _tell_refused(item, error)


class Transport(redis.Transport):
    Channel = Channel


class _Connecting:
    """A connection whose `redis://` and `rediss://` addresses mean the transport of this module."""

    def get_transport_cls(self) -> type:
        cls = super().get_transport_cls()  # type: ignore[misc]
        return Transport if cls is redis.Transport else cls


class Connection(_Connecting, seam.Connection):
    def Pool(self, limit: int | None = None, **kwargs: Any) -> ConnectionPool:
        return Pool(self, limit, **kwargs)


class PooledConnection(_Connecting, KombusPooledConnection):
    """One that a pool has made, which would make another class of it."""


class Pool(ConnectionPool):
    def new(self) -> PooledConnection:
        return PooledConnection(self, **self.connection.info())


class BrokerSide(AMQP):
    """What an app of the console knows of its broker. Other apps, and other users of kombu, keep kombu's transport."""

    Connection = Connection


def keep(channel: redis.Channel, item: Any) -> str:
    """Put an item into the quarantine of a channel's broker; the name of that list."""
    key = channel.global_keyprefix + QUARANTINE  # by a plain client: kombu's knows no LTRIM
    with Redis(connection_pool=channel.pool).pipeline() as pipe:
        pipe.lpush(key, item)
        pipe.ltrim(key, 0, KEPT - 1)
        pipe.execute()
    return key


def sent_in(item: bytes | str) -> list[tuple[str, int]]:
    """The task id and the `gen` of the message in an item; nothing where it is none of a task.

    Anybody may have put anything there. What is unacknowledged is kept as a list, the message being its first.
    """
    try:
        payload = json.loads(item)
        headers = (payload[0] if isinstance(payload, list) else payload)["headers"]
        task_id, gen = headers["id"], headers.get("gen") or 1
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []
    return [(task_id, gen)] if is_id(task_id) and is_count(gen) else []


def _tell_refused(item: bytes | str, error: Exception) -> None:
    for task_id, gen in sent_in(item) if on_refused else ():
        try:
            on_refused(task_id, gen, str(_malformed(error)))  # type: ignore[misc]
        except Exception:  # its record will be told by the next one, which the census has published
            logger.exception("Not recorded that the message of task %s could not be taken", task_id)


def _malformed(error: Exception) -> Malformed:
    return error if isinstance(error, Malformed) else Malformed(f"{type(error).__name__}: {error}")


def _check(payload: Any) -> None:
    """Raises Malformed unless kombu and Celery find what they expect, in the shape that they expect."""
    _expect(dict, "the item", payload)
    properties, headers = payload.get("properties"), payload.get("headers") or {}
    _expect(dict, "properties", properties)
    _expect(str, "delivery_tag", properties.get("delivery_tag"))
    delivery = properties.get("delivery_info")
    _expect(dict, "delivery_info", delivery)
    _expect(str, "exchange", delivery.get("exchange"))
    _expect(str, "routing_key", delivery.get("routing_key"))
    _expect(str, "body", payload.get("body") or "")
    _expect(dict, "headers", headers)
    _check_depth(payload, DEEPEST_AROUND)
    if "task" in headers:
        _check_task(headers)


def _check_body(body: Any, headers: dict[str, Any]) -> None:
    if isinstance(body, dict) and ("task" in headers or "task" in body):  # Celery's protocol 1: its headers are in it
        _check_depth(body, DEEPEST_AROUND)
        _check_task(body | headers)
    elif "task" in headers:
        _expect(_SEQUENCES, "body", body)
        if len(body) != 3:
            raise Malformed(f"body has {len(body)} parts")
        args, kwargs, embed = body
        _expect(_SEQUENCES, "args", args)
        _expect(dict, "kwargs", kwargs)
        _expect(dict, "embed", embed := embed or {})
        _expect(dict, "chord", embed.get("chord") or {})
        for name in ("callbacks", "errbacks", "chain"):
            _expect(_SEQUENCES, name, embed.get(name) or ())


def _check_task(headers: dict[str, Any]) -> None:
    """The headers that the worker's parent uses later than at the receipt, where nobody catches its errors."""
    _expect(str, "task", headers["task"])
    for name, fits in _USED_LATE.items():
        if not fits(value := headers.get(name)):
            raise Malformed(f"header {name} is {value!r:.80}")


def _expect(kind: type | tuple[type, ...], what: str, value: Any) -> None:
    if not isinstance(value, kind):
        raise Malformed(f"{what} is {value!r:.80}")


def _brackets(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")


def _check_depth(value: Any, levels: int) -> None:
    if isinstance(value, _NESTED) and is_deeper(value, levels):
        raise Malformed(f"more than {levels} levels deep")


def _is_count(value: Any) -> bool:
    return value is None or is_count(value)


def _are_limits(value: Any) -> bool:
    return not value or (isinstance(value, list) and len(value) == 2 and all(map(_is_limit, value)))


def _is_limit(value: Any) -> bool:
    return value is None or (isinstance(value, _NUMBERS) and 0 <= value < 1e9)  # not NaN, nor what overflows a timer


def _are_names(value: Any) -> bool:
    return not value or (isinstance(value, list) and all(isinstance(each, str) for each in value))


# Tuples: a union of types, made anew at each call, takes four times as long.
_NESTED, _SEQUENCES, _NUMBERS = (dict, list, tuple), (list, tuple), (int, float)
_USED_LATE = {
    "id": is_id,
    "gen": _is_count,
    "retries": _is_count,
    "timelimit": _are_limits,
    "stamped_headers": _are_names,
    "stamps": lambda value: not value or isinstance(value, dict),
}
