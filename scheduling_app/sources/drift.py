"""The drift alarm: which schedules would not run, because the code that is here now no longer fits them.

What decides is the task, how many arguments it gets and which keyword arguments. So a million schedules are a few
groups, and one of each is tried.
"""

import json
import logging
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from django.db import DatabaseError, connection

from scheduling_app.models import Schedule
from scheduling_app.signatures import drift as complaint_about

logger = logging.getLogger(__name__)

#: Schedules that are named, and reasons; all are counted.
NAMED = 20
#: A look of one second is followed by so many without one.
SHARE = 50


@dataclass(frozen=True)
class Group:
    """Schedules that would not run for the same reason; `names` are the first of them."""

    task: str
    complaint: str
    names: Sequence[str]
    count: int

    @property
    def unnamed(self) -> int:
        return self.count - len(self.names)

    def __str__(self) -> str:
        others = f" and {self.unnamed} more" if self.unnamed else ""
        return f"{self.complaint} ({', '.join(self.names)}{others})"


@dataclass(frozen=True)
class Drift:
    """How many schedules would not run, and why: the most frequent reasons first. False where all would."""

    count: int = 0
    groups: Sequence[Group] = ()

    def __bool__(self) -> bool:
        return bool(self.count)

    def __str__(self) -> str:
        which = "1 schedule would not run" if self.count == 1 else f"{self.count} schedules would not run"
        return f"{which}:\n" + "\n".join(f"  {group}" for group in self.groups)


def find() -> Drift:
    """Look at all schedules that are on and have times to come: one scan of the table, two where some would not run."""
    with connection.cursor() as cursor:
        cursor.execute(_GROUPS)
        counts: dict[int, int] = dict(cursor.fetchall())
        cursor.execute(_EXAMPLES, [list(counts)])
        #: Those that would not run, by task and complaint.
        examples: dict[tuple[str, str], list[int]] = defaultdict(list)
        for pk, task, due_kwarg, args, kwargs in cursor.fetchall():
            schedule = Schedule(task=task, due_kwarg=due_kwarg, args=_loaded(args), kwargs=_loaded(kwargs))
            if complaint := complaint_about(schedule):
                examples[task, complaint].append(pk)
        if not examples:
            return Drift()
        totals = Counter({reason: sum(counts[pk] for pk in pks) for reason, pks in examples.items()})
        reasons = totals.most_common(NAMED)
        asked = [pk for turn in zip_longest(*(examples[reason] for reason, _ in reasons)) for pk in turn if pk][:NAMED]
        cursor.execute(_NAMES, [asked, asked, NAMED])
        named = cursor.fetchall()
    return Drift(
        totals.total(),
        [
            Group(*reason, sorted(name for pk, name in named if pk in examples[reason]), count)
            for reason, count in reasons
        ],
    )


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # written by SQL
        return text


class Watch:
    """The last answer of `find` in this process, for pages, which never wait for it.

    Whoever asks for one that is old starts a thread that looks anew. So it is there soon after a start.
    """

    def __init__(self, every: float = 120):
        #: Seconds between two looks, at least; the more, the longer one takes.
        self.every = every
        self.thread: threading.Thread | None = None
        self._drift = Drift()
        #: When to look next, by time.monotonic().
        self.look_at = -math.inf
        self._lock = threading.Lock()

    def latest(self) -> Drift:
        with self._lock:
            looks = self.thread is not None and self.thread.is_alive()
            if not looks and time.monotonic() > self.look_at:
                self.thread = threading.Thread(target=self._look, name="schedule-drift", daemon=True)
                self.thread.start()
        return self._drift

    def _look(self) -> None:
        started_at = time.monotonic()
        try:
            before, self._drift = self._drift, find()
            if self._drift and self._drift != before:
                logger.warning("%s", self._drift)
        except DatabaseError as error:
            logger.warning("Schedules were not looked through for drift: %s", str(error).strip())
        finally:
            connection.close()
            now = time.monotonic()
            self.look_at = now + max(self.every, SHARE * (now - started_at))


watch = Watch()

# What may nest deeper than Postgres can follow is a group of its own, row by row, and read in Python.
_DEEP = "octet_length({0}) > 2000 AND length({0}) - length(translate({0}, '[{{', '')) > 2000"
# Escapes are taken out of what json_object_keys() reads, which stumbles over those of NUL and of lone surrogates.
_SHAPES = rf"""
SELECT id, name, task, due_kwarg,
    CASE WHEN {_DEEP.format("args")} THEN -1 - id
        WHEN args IS JSON ARRAY THEN json_array_length(args::json) ELSE -1 END AS args_given,
    CASE WHEN kwargs = '{{}}' THEN '{{}}'
        WHEN {_DEEP.format("kwargs")} THEN ARRAY[id::text]
        WHEN kwargs IS JSON OBJECT THEN ARRAY(SELECT json_object_keys(regexp_replace(kwargs, '\\.', '_', 'g')::json))
        ELSE ARRAY[NULL] END AS kwargs_given
FROM {Schedule._meta.db_table}
WHERE enabled AND (next_fire_at IS NOT NULL OR changed_at IS NOT NULL)
"""
_GROUPS = f"SELECT min(id), count(*) FROM ({_SHAPES}) AS shape GROUP BY task, due_kwarg, args_given, kwargs_given"
_EXAMPLES = f"""
SELECT id, task, due_kwarg, args, kwargs FROM {Schedule._meta.db_table} WHERE id = ANY(%s) ORDER BY id
"""
# Turn by turn: a name for each reason, then a second one for each, and so on.
_NAMES = f"""
SELECT example.id, shape.name
FROM ({_SHAPES} AND task IN (SELECT task FROM {Schedule._meta.db_table} WHERE id = ANY(%s))) AS shape
JOIN ({_SHAPES} AND id = ANY(%s)) AS example USING (task, due_kwarg, args_given, kwargs_given)
ORDER BY row_number() OVER (PARTITION BY example.id ORDER BY shape.name), shape.name LIMIT %s
"""
