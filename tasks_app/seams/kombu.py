"""kombu: the Redis transport's channels and messages, whose private methods have public names here; compressions."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from kombu import compression
from kombu.connection import Connection as KombusConnection
from kombu.transport import redis, virtual
from kombu.utils.collections import HashedSeq

from tasks_app.seams import KEPT, Seam

_CHANNEL, _MESSAGE = "kombu.transport.redis:Channel", "kombu.transport.virtual:Message"
_ITEMS = "kombu takes an item off its list before it looks at it. A hook for what is no message would end it."
_BROADCASTS = "kombu waits without end for a broadcast that has been read by then. A release that does not ends it."
_KEYS = "Nothing public says under which key a queue is, or what takes a message."
NAMES = (
    Seam(_MESSAGE, "_decode", "(self)", "Setting aside a body that no worker could take", _ITEMS),
    Seam(_MESSAGE, "_raw", KEPT, "The quarantine, which keeps an item as it was", _ITEMS),
    Seam(
        "kombu.transport.redis:QoS",
        "_remove_from_indices",
        "(self, delivery_tag, pipe=…)",
        "Setting aside what cannot be put back from `unacked`",
        _ITEMS,
    ),
    Seam(_CHANNEL, "_brpop_read", "(self, **options)", "Setting aside an item that is no message", _ITEMS),
    Seam(
        _CHANNEL,
        "_do_restore_message",
        "(self, payload, exchange, routing_key, pipe, leftmost=…)",
        "Setting aside what cannot be put back from `unacked`",
        _ITEMS,
    ),
    Seam(_CHANNEL, "_lookup", "(self, exchange, routing_key, default=…)", "Putting back what is unacknowledged", _KEYS),
    Seam(_CHANNEL, "_get_message_priority", "(self, message, …)", "Setting aside a priority that is none", _ITEMS),
    Seam(_CHANNEL, "_q_for_pri", "(self, queue, pri)", "The census, which asks the broker what it holds", _KEYS),
    Seam(
        _CHANNEL,
        "_create_client",
        "(self, asynchronous=…)",
        "One client a channel, and not a new one a message, at 86 µs",
        "A kombu that keeps its clients ends it.",
    ),
    Seam(_CHANNEL, "_next_delivery_tag", "(self)", "Delivery tags without a system call", "It is speed alone, 5 µs."),
    Seam(_CHANNEL, "_receive", "(self)", "A worker that does not stand still at a broadcast", _BROADCASTS),
    Seam(_CHANNEL, "_receive_one", "(self, c)", "Leaving out a broadcast that is no message", _BROADCASTS),
    Seam(_CHANNEL, "_in_listen", KEPT, "Broadcasts after a lost connection", _BROADCASTS),
    Seam(
        "kombu:Connection",
        "_reraise_as_library_errors",
        "(self, …)",
        "Telling that a broker is away from other errors",
        "`Connection.ensure`, which does so, does it again and again.",
    ),
    Seam(
        "kombu:Connection",
        "__eqhash__",
        "(self)",
        "Pools of connections apart from those of other users of kombu",
        "kombu's pools take connections to one address for the same, whatever their class.",
    ),
    Seam(
        "kombu.compression:",
        "_aliases",
        KEPT,
        "The names of compressions, in an error and in a message",
        "`compression.encoders` lists content types alone.",
    ),
)


class Message(virtual.Message):
    def _decode(self) -> Any:
        return self.read_body()

    def read_body(self) -> Any:
        """The body's value."""
        return super()._decode()

    @property
    def item(self) -> dict[str, Any]:
        """What was in the queue."""
        return self._raw

    @item.setter
    def item(self, item: dict[str, Any]) -> None:
        self._raw = item


class QoS(redis.QoS):
    def forget(self, tag: str) -> None:
        """Count what has this delivery tag as unacknowledged no more."""
        self._remove_from_indices(tag).execute()


class Channel(redis.Channel):
    def _create_client(self, asynchronous: bool = False) -> Any:
        return self.client_for(asynchronous)

    def client_for(self, asynchronous: bool) -> Any:
        """A client for one command, or for what listens in the worker's event loop."""
        return super()._create_client(asynchronous)

    def _next_delivery_tag(self) -> str:
        return self.new_tag()

    def new_tag(self) -> str:
        return super()._next_delivery_tag()

    def _brpop_read(self, **options: Any) -> Any:
        return self.read_item(**options)

    def read_item(self, **options: Any) -> Any:
        """Read what the blocking pop has taken off a list, and deliver it."""
        return super()._brpop_read(**options)

    def _receive(self) -> bool:
        return self.read_broadcasts()

    def read_broadcasts(self) -> bool:
        """Read the broadcasts that are there; whether one was delivered."""
        return super()._receive()

    def _receive_one(self, c: Any) -> Any:
        return self.read_broadcast(c)

    def read_broadcast(self, client: Any) -> Any:
        return super()._receive_one(client)

    def subscribe_again(self) -> None:
        """Let the next poll subscribe to the broadcasts, as after a lost connection."""
        self._in_listen = False

    def _do_restore_message(
        self, payload: Any, exchange: str, routing_key: str, pipe: Any, leftmost: bool = False
    ) -> None:
        self.put_back(payload, exchange, routing_key, pipe, leftmost)

    def put_back(self, payload: Any, exchange: str, routing_key: str, pipe: Any, leftmost: bool) -> None:
        """Put what was unacknowledged into its queue."""
        super()._do_restore_message(payload, exchange, routing_key, pipe, leftmost)

    def queues_for(self, exchange: str, routing_key: str) -> Iterable[str]:
        return self._lookup(exchange, routing_key)

    def check_priority(self, payload: dict[str, Any]) -> None:
        """Raises whatever kombu would, where it can make no priority of what a message has."""
        self._get_message_priority(payload)


def list_of(channel: redis.Channel, queue: str, priority: int) -> str:
    """The key of the list of a queue's messages of this priority, without the prefix of all keys."""
    return channel._q_for_pri(queue, priority)


class Connection(KombusConnection):
    """A connection that shares no pool with those of another class."""

    def __eqhash__(self) -> HashedSeq:
        return HashedSeq(type(self), *super().__eqhash__())


def library_errors(connection: KombusConnection) -> AbstractContextManager[None]:
    """Have all that goes wrong with a broker within the block be kombu's OperationalError."""
    return connection._reraise_as_library_errors()


def compression_names() -> list[str]:
    return sorted(compression._aliases)


def compression_type(method: str) -> str:
    """The content type of what a compression, given by any of its names, makes."""
    return compression._aliases.get(method, method)
