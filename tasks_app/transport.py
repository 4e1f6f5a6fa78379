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
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from tasks_app.formats import unpacked
from tasks_app.messages import is_count, is_id
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


class Message(virtual.Message):
    #: Why no worker can take it, where Celery finds that out and drops it.
    flaw: Exception | None = None

    def __init__(self, payload, channel=None, **kwargs):
        try:
            _check(payload)
            headers = payload["headers"] = payload.get("headers") or {}  # with null, kombu could not put it back
            channel._get_message_priority(payload)  # likewise with one that is no number it can round
            method = headers.get("compression")
            plain = payload | {"headers": headers | {"compression": None}} if method else payload
            super().__init__(plain, channel, **kwargs)
            if self.errors:
                raise Malformed(repr(self.errors[0][1]))
            if method:  # not by kombu, which would unpack whatever it is
                self._raw, self.headers, self.body = payload, headers, unpacked(self.body, method)
        except Exception as error:
            raise _malformed(error) from error

    def _decode(self):
        """Celery calls this when it takes the message, having set which content types it accepts."""
        try:
            body = super()._decode()
            if self.content_type != "application/json" or _brackets(self.body or b"") > DEEPEST_BODY:
                _check_depth(body, DEEPEST_BODY)
            _check_body(body, self.headers)
        except Exception as error:
            self.flaw = flaw = _malformed(error)
            raise flaw from error
        return body


@signals.task_rejected.connect
def note_flaw(message, exc, **_) -> None:
    """What Celery takes for no task, or for one that it cannot understand, it logs, and drops."""
    message.flaw = exc or Malformed("it is no task")


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

    def _purge(self, queue):
        if on_purged is not None:
            on_purged(queue)
        return super()._purge(queue)

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
                taken = callback(message)
            except _BROKER_ERRORS:
                raise
            except Exception as error:
                logger.debug("Not taken: %r", message, exc_info=True)
                self.quarantine(queue, dumps(message._raw), error)
                if not no_ack:
                    self.qos.reject(message.delivery_tag)
            else:
                if message.flaw is not None:
                    self.quarantine(queue, dumps(message._raw), message.flaw)
                return taken

        return super().basic_consume(queue, no_ack, guarded, *args, **kwargs)

    def _do_restore_message(self, payload, exchange, routing_key, pipe, leftmost=False):
        """As kombu's, which forgets what it cannot put back; the caller knows what to do with it."""
        Message(payload, channel=self)
        if not any(self._lookup(exchange, routing_key)):
            raise Malformed(f"no queue takes exchange {exchange!r:.80} with routing key {routing_key!r:.80}")
        super()._do_restore_message(payload, exchange, routing_key, pipe, leftmost)

    def quarantine(self, source: bytes | str, item: Any, error: Exception) -> None:
        """Keep an item of `source`, a queue's list or the hash of the unacknowledged, that no worker could take."""
        key = self.keep(item)
        queue = bytes_to_str(source).rsplit(self.sep, 1)[0]
        logger.error("An item of %s could not be taken: %.300r. It is now in the broker's list %s.", queue, error, key)
        _tell_refused(item, error)

    def keep(self, item: Any) -> str:
        """Put an item into the quarantine; the name of that list."""
        key = self.global_keyprefix + QUARANTINE  # by a plain client: kombu's knows no LTRIM
        with Redis(connection_pool=self.pool).pipeline() as pipe:
            pipe.lpush(key, item)
            pipe.ltrim(key, 0, KEPT - 1)
            pipe.execute()
        return key


class Transport(redis.Transport):
    Channel = Channel


def use() -> None:
    """Have every `redis://` and `rediss://` address of this process use it."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))


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


def _check_body(body: Any, headers: dict) -> None:
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


def _check_task(headers: dict) -> None:
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
