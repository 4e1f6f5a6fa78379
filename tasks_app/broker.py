"""Questions to the broker itself: which messages it holds, and whether it is still the one that was given them.

A broker loses messages: a worker is killed between taking one off its list and noting it as unacknowledged, or Redis
comes back empty. Postgres knows what was published and not claimed; this module knows what of that is there. (That it
is away is remembered by breaker.py.)

All functions but `is_readable` raise kombu's OperationalError where the broker does not answer.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps
from redis import Redis

from tasks_app.models import TaskRecord
from tasks_app.recording import current_app
from tasks_app.seams.kombu import library_errors, list_of
from tasks_app.transport import Channel, Transport, keep, sent_in

logger = logging.getLogger(__name__)

#: Key whose absence says that the broker came back empty.
EPOCH = "taskconsole.epoch"
#: Items read at once.
PAGE = 500
#: Of a list that is read in part, so many of the newest messages read are looked up: some may be out of force.
DATED = 20
#: How long after its message went out a record may be marked as published.
MARK_DELAY = timedelta(seconds=5)
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

#: A task id and the `gen` of a message.
Sent = tuple[str, int]


@dataclass(frozen=True)
class Held:
    """The messages that the broker holds, as far as they were read."""

    messages: set[Sent]
    #: Of each list too long to be read whole, by queue and priority: until when what was published is in `messages`.
    read_until: Mapping[tuple[str, int], datetime]

    def may_hold(self, record: TaskRecord) -> bool:
        """Whether the broker holds the message of a published record, or may do so beyond what was read."""
        if (record.task_id, record.gen) in self.messages:
            return True
        until = self.read_until.get((record.queue, record.priority or 0))
        return until is not None and (record.published_at is None or record.published_at >= until)


def is_readable() -> bool:
    """Whether the broker is of a kind that can be asked: one that speaks the Redis protocol. Does not connect."""
    return getattr(_transport(current_app), "driver_type", None) == "redis"


def not_promised(app: Celery) -> list[str]:
    """What the console does not promise with this app's broker, in sentences. Does not connect."""
    transport = _transport(app)
    missing = []
    if getattr(transport, "driver_type", None) != "redis":
        missing = [
            "Messages that are lost are not found: their tasks wait until somebody publishes them again.",
            "What priority 0 means is its own to say: for RabbitMQ it is the least urgent.",
            "While it hangs, a submit may take longer than a second.",
        ]
    if not issubclass(transport, Transport):
        missing.append("Items that are no messages, or forged ones, are not set aside: they may stop a worker.")
    if getattr(transport, "driver_type", None) == "memory":
        missing.append("Messages stay in the memory of the process that sends them: no other one's worker gets them.")
    return missing


def _transport(app: Celery) -> type:
    """Its class; where that cannot be loaded, one of which nothing is known."""
    with suppress(ImportError, LookupError):
        return app.connection_for_write().get_transport_cls()
    return object


def held(queues: Iterable[str], limit: int = 5000) -> Held:
    """What waits in the broker: of each list of these queues the oldest `limit` items.

    Not what is unacknowledged: a worker that lives says so itself, by a lease (leases.py), and what one held that was
    killed would be there for an hour. What moves meanwhile may be missed. Whoever misses it publishes it again under a
    new `gen`, with which the old one cannot be claimed any more: a mistake costs a message, never a second run.
    """
    messages: set[Sent] = set()
    read_until: dict[tuple[str, int], datetime] = {}
    with _asked() as (channel, redis):
        lists = {(queue, step): list_of(channel, queue, step) for queue in queues for step in channel.priority_steps}
        for (queue, step), length in zip(lists, _lengths(redis, channel, lists.values()), strict=True):
            found = list(_oldest(redis, channel.global_keyprefix + lists[queue, step], min(length, limit)))
            messages.update(found)
            if length > limit:
                until = _dated(found[:DATED])
                read_until |= {(queue, each): until for each in range(10) if channel.priority(each) == step}
    return Held(messages, read_until)


def has_epoch() -> bool:
    """Whether the broker has kept its memory since `set_epoch`."""
    with _asked() as (channel, redis):
        return bool(redis.exists(channel.global_keyprefix + EPOCH))


def set_epoch() -> None:
    """Have the broker remember; one that does so already goes on as it is."""
    with _asked() as (channel, redis):
        redis.set(channel.global_keyprefix + EPOCH, str(uuid4()), nx=True)


def quarantine(payload: Mapping[str, Any], reason: str) -> None:
    """Keep a message that is not to run, as it was, in the broker's quarantine; say so in the log. Raises nothing.

    `payload`: a dict of its headers, its body and whatever else is known of it. A broker that does not speak the Redis
    protocol has no such list: there the log is all.
    """
    where = "not kept"
    try:
        if is_readable():
            with _asked() as (channel, _):
                where = f"now in the broker's list {keep(channel, dumps(payload))}"
    except (OperationalError, TypeError, ValueError, RecursionError) as error:
        where = f"not kept: {error}"
    logger.error("A message was refused: %.500s. It is %s.", reason, where)


@contextmanager
def _asked() -> Iterator[tuple[Channel, Redis]]:
    """A channel, which knows the keys' names, and a plain client: kombu's own puts a prefix to some commands only."""
    with current_app.connection_or_acquire() as connection, library_errors(connection):
        connection.ensure_connection(max_retries=0)
        yield connection.default_channel, Redis(connection_pool=connection.default_channel.pool)


def _lengths(redis: Redis, channel: Channel, keys: Iterable[str]) -> list[int]:
    with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.llen(channel.global_keyprefix + key)
        return pipe.execute()


def _oldest(redis: Redis, key: str, count: int) -> Iterator[Sent]:
    """The `count` oldest messages, from newer to older.

    A list's oldest items are its last, from where workers take them: counted from there, what is unread only moves on
    towards pages still to be read, and new messages, which come in at the front, move nothing.
    """
    for distance in range(count, 0, -PAGE):
        for item in redis.lrange(key, -distance, -max(distance - PAGE, 0) - 1):
            yield from sent_in(item)


def _dated(messages: list[Sent]) -> datetime:
    """Until when all that was published to a list is among what was read of it, judged by the newest of that.

    A message out of force tells nothing: it went out sooner than its record says. Marks come after their messages,
    and those of a batch in any order.
    """
    records = TaskRecord.objects.filter(task_id__in=[task_id for task_id, _ in messages])
    dated = {(task_id, gen): at for task_id, gen, at in records.values_list("task_id", "gen", "published_at")}
    return max(filter(None, map(dated.get, messages)), default=_LONG_AGO) - MARK_DELAY
