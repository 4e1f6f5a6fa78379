"""kombu's Redis transport, where a bad item in a queue stops nobody, and with one client a channel.

kombu takes an item off its list before it looks at it, and whatever goes wrong then ends the worker. What had been
moved to `unacked` by then is put back on the way out, and ends the next worker too. So what kombu and Celery take for
granted is checked here before an item counts as a message; one that fails goes, as it was, to a list of its own, and
the log says why. So does what raises while Celery takes it, and what cannot be put back from `unacked`.

kombu also makes a new client for each message, at 86 µs apiece.
"""

import logging
import os
import random
from queue import Empty
from typing import Any

from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

#: The list of what was no message, newest first, and how many it keeps.
QUARANTINE, KEPT = "taskconsole.quarantine", 1000
#: Levels of lists and objects around a message's body. Python reads and writes deep ones only as far as its stack
#: allows at that point, so that what could just be read might not be written again.
DEEPEST = 50
#: Makes delivery tags, as random as kombu's UUIDs, without asking the system each time, at 5 µs. Nobody else seeds it.
_chance = random.Random()  # noqa: S311
os.register_at_fork(after_in_child=_chance.seed)
#: Not the item's fault. (kombu also counts KeyError to a connection's errors; what an item lacks raises that.)
_BROKER_ERRORS = (Empty, RedisError, OSError, OperationalError)


class Malformed(ValueError):
    """An item that no worker could take; says why."""


class Message(virtual.Message):
    def __init__(self, payload, channel=None, **kwargs):
        try:
            _check(payload)
            payload["headers"] = payload.get("headers") or {}  # with null, kombu could not put it back
            channel._get_message_priority(payload)  # likewise with one that is no number it can round
            super().__init__(payload, channel, **kwargs)
        except Malformed:
            raise
        except Exception as error:
            raise Malformed(repr(error)) from error

    def _decode(self):
        """Celery calls this when it takes the message, having set which content types it accepts."""
        body = super()._decode()
        _check_body(body, self.headers)
        return body


class QoS(redis.QoS):
    def restore_by_tag(self, tag, client=None, leftmost=False):
        try:
            super().restore_by_tag(tag, client, leftmost)
        except _BROKER_ERRORS:
            raise
        except Exception as error:
            with self.channel.conn_or_acquire(client) as client:
                if item := client.hget(self.unacked_key, tag):
                    self.channel.quarantine(self.unacked_key, item, error)
                self._remove_from_indices(tag).execute()


class Channel(redis.Channel):
    Message = Message
    QoS = QoS

    #: Key and value of the last item that was taken off a list.
    _popped: tuple[bytes, bytes] | None = None

    def _create_client(self, asynchronous=False):
        if self.connection is None or self.connection.client is None:  # Celery closes a lost connection twice
            raise RedisConnectionError("This channel's connection was lost, and is closed.")
        if asynchronous:
            client = super()._create_client(asynchronous=True)
            client.set_response_callback("BRPOP", self._remember)
            return client
        kept = self.__dict__.get("_kept_client")
        if kept is None or kept.connection_pool is not self.pool:  # the pool is made anew after a lost connection
            kept = self._kept_client = super()._create_client()
        return kept

    def _next_delivery_tag(self):
        return f"{_chance.getrandbits(128):032x}"

    def _remember(self, reply, **_):
        self._popped = reply and tuple(reply)
        return self._popped

    def _brpop_read(self, **options):
        self._popped = None
        try:
            return super()._brpop_read(**options)
        except _BROKER_ERRORS:
            raise
        except Exception as error:
            if not self._popped:
                raise
            self.quarantine(*self._popped, error)
            return True

    def _receive(self):
        """Read the broadcasts that are there. kombu's own reads one first, and waits for it without end: a worker was
        seen to stand still for ever, where what its poll had announced had been read by then."""
        received = False
        try:
            while (connection := self.subclient.connection) is not None and connection.can_read(timeout=0):
                received = bool(self._receive_one(self.subclient)) or received
        except self.connection_errors:
            self._in_listen = False  # as kombu's own does, so that it subscribes again
            raise
        return received

    def _receive_one(self, c):
        try:
            return super()._receive_one(c)
        except (Malformed, RecursionError) as error:
            logger.error("A broadcast was no message and is lost: %.300r", error)

    def basic_consume(self, queue, no_ack, callback, *args, **kwargs):
        def guarded(message):
            try:
                return callback(message)
            except _BROKER_ERRORS:
                raise
            except Exception as error:
                logger.debug("Not taken: %r", message, exc_info=True)
                self.quarantine(queue, dumps(message._raw), error)
                if not no_ack:
                    self.qos.reject(message.delivery_tag)

        return super().basic_consume(queue, no_ack, guarded, *args, **kwargs)

    def _do_restore_message(self, payload, exchange, routing_key, pipe, leftmost=False):
        """As kombu's, which forgets what it cannot put back; the caller knows what to do with it."""
        Message(payload, channel=self)
        if not any(self._lookup(exchange, routing_key)):
            raise Malformed(f"no queue takes exchange {exchange!r:.80} with routing key {routing_key!r:.80}")
        super()._do_restore_message(payload, exchange, routing_key, pipe, leftmost)

    def quarantine(self, source: bytes | str, item: Any, error: Exception) -> None:
        """Keep an item of `source`, a queue's list or the hash of the unacknowledged, that no worker could take."""
        key = self.global_keyprefix + QUARANTINE  # by a plain client: kombu's knows no LTRIM
        with Redis(connection_pool=self.pool).pipeline() as pipe:
            pipe.lpush(key, item)
            pipe.ltrim(key, 0, KEPT - 1)
            pipe.execute()
        queue = bytes_to_str(source).rsplit(self.sep, 1)[0]
        logger.error("An item of %s could not be taken: %.300r. It is now in the broker's list %s.", queue, error, key)


class Transport(redis.Transport):
    Channel = Channel


def use() -> None:
    """Have every `redis://` and `rediss://` address of this process use it."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))


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
    _check_depth(payload)
    if "task" in headers:
        _check_task(headers)


def _check_body(body: Any, headers: dict) -> None:
    if isinstance(body, dict) and ("task" in headers or "task" in body):  # Celery's protocol 1: its headers are in it
        _check_depth(body)
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


def _check_task(headers: dict) -> None:
    """The headers that the worker's parent uses later than at the receipt, where nobody catches its errors."""
    _expect(str, "task", headers["task"])
    for name, fits in _USED_LATE.items():
        if not fits(value := headers.get(name)):
            raise Malformed(f"header {name} is {value!r:.80}")


def _expect(kind: type | tuple[type, ...], what: str, value: Any) -> None:
    if not isinstance(value, kind):
        raise Malformed(f"{what} is {value!r:.80}")


def _check_depth(value: dict) -> None:
    if _is_deeper(value, DEEPEST):
        raise Malformed(f"more than {DEEPEST} levels deep")


def _is_deeper(value: dict | list, levels: int) -> bool:
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, _NESTED) and (not levels or _is_deeper(each, levels - 1)):
            return True
    return False


def is_id(value: Any) -> bool:
    """Whether outbox.py would take it for a task's id; the records can hold no other."""
    if not isinstance(value, str) or not 0 < len(value) <= 255 or "\x00" in value:
        return False
    try:
        return bool(value.encode())
    except UnicodeEncodeError:
        return False


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and 0 <= value < 2**31)


def _are_limits(value: Any) -> bool:
    return not value or (isinstance(value, list) and len(value) == 2 and all(map(_is_limit, value)))


def _is_limit(value: Any) -> bool:
    return value is None or (isinstance(value, _NUMBERS) and 0 <= value < 1e9)  # not NaN, nor what overflows a timer


def _are_names(value: Any) -> bool:
    return not value or (isinstance(value, list) and all(isinstance(each, str) for each in value))


# Tuples: a union of types, made anew at each call, takes four times as long.
_NESTED, _SEQUENCES, _NUMBERS = (dict, list), (list, tuple), (int, float)
_USED_LATE = {
    "id": is_id,
    "gen": _is_count,
    "retries": _is_count,
    "timelimit": _are_limits,
    "stamped_headers": _are_names,
    "stamps": lambda value: not value or isinstance(value, dict),
}
