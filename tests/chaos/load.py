"""The submitter, a process of its own: a seeded mix of work through the real API, from transactions, some rolled back.

    python -m tests.chaos.load SEED SECONDS RATE STARTED [KIND …]

Killed and started again, it goes on where it was. `STARTED` is the time at which the load began, in seconds. The kinds
are names of functions below; without any, it is all of them, as often as MIX has it.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

import django

django.setup()

from celery import current_app  # noqa: E402
from celery.canvas import Signature, group  # noqa: E402
from django.db import DatabaseError, close_old_connections, connection, transaction  # noqa: E402

from tasks_app.client import CeleryClient  # noqa: E402
from tests.chaos import ledger  # noqa: E402

client = CeleryClient()

_EXPECTED = """
INSERT INTO chaos.expected (task_id, number, kind, repeats, needs, members, value, ends)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
"""
#: Share of the transactions that are rolled back.
DOOMED = 0.1


@dataclass
class Submission:
    """What one transaction submits, and what may come of it."""

    number: int
    kind: str
    random: random.Random
    expected: list[tuple] = field(default_factory=list)
    #: Seconds after the commit, and what is to be done then.
    later: list[tuple[float, Callable[[], Any]]] = field(default_factory=list)

    def task(self, name: str, *args, value=None, needs=(), members=(), ends=("SUCCESS",), **options) -> Signature:
        """A task under an id of its own. `needs`: ids of those without whose success it does not run."""
        repeats = self.random.random() < 0.5
        task_id = f"{self.number}.{len(self.expected)}"
        self.expect(task_id, repeats, value, needs, members, ends)
        name = f"chaos.{name}_again" if repeats else f"chaos.{name}"
        return current_app.tasks[name].s(*args).set(task_id=task_id, **options)

    def expect(self, task_id, repeats, value, needs=(), members=(), ends=("SUCCESS",)) -> None:
        self.expected.append(
            (task_id, self.number, self.kind, repeats, list(needs), list(members), json.dumps(value), list(ends))
        )

    def pause(self) -> float:
        """Seconds that a body sleeps: mostly little."""
        return round(self.random.random() ** 3 / 2, 3)

    def revoke(self, task_id: str, after: tuple[float, float], terminate: bool = False) -> None:
        self.later.append((self.random.uniform(*after), lambda: revoke(task_id, terminate)))


def revoke(task_id: str, terminate: bool) -> None:
    state = client.revoke(task_id, terminate=terminate)
    ledger.execute("INSERT INTO chaos.answers (task_id, state) VALUES (%s, %s)", [task_id, state])


# The kinds of work: each makes its tasks, and returns what submits them.


def single(s: Submission):
    task = s.task("work", s.number, s.pause(), value=s.number)
    if s.random.random() < 0.5:
        return task.apply_async
    return lambda: client.submit(task.task, task.args, priority=s.random.randrange(10), **task.options)


def long(s: Submission):
    return s.task("work", s.number, s.random.uniform(2, 5), value=s.number).apply_async


def lasting(s: Submission):
    """Longer than any outage. Only where it is asked for."""
    return s.task("work", s.number, s.random.uniform(6, 9), value=s.number).apply_async


def many(s: Submission):
    calls: list[tuple[list, dict]] = [([s.number + i, s.pause()], {}) for i in range(s.random.randint(3, 8))]

    def submit():
        for result, (args, _) in zip(client.submit_many("chaos.work_again", calls), calls, strict=True):
            s.expect(result.id, True, args[0])

    return submit


def delayed(s: Submission):
    return s.task("work", s.number, value=s.number, countdown=s.random.uniform(0, 5)).apply_async


def expiring(s: Submission):
    options = {"expires": s.random.uniform(0.2, 2), "countdown": s.random.choice([None, 0.5, 1])}
    task = s.task("work", s.number, s.pause(), value=s.number, ends=("SUCCESS", "REVOKED TaskRevokedError"))
    return lambda: task.apply_async(**options)


def flaky(s: Submission):
    task = s.task("flaky", s.random.randint(1, 3), s.number, s.random.choice([0, 0.1, 0.5, 1.5]), value=s.number)
    return task.apply_async


def failing(s: Submission):
    return s.task("flaky", 4, s.number, 0.1, ends=("FAILURE ValueError",)).apply_async


def linked(s: Submission):
    first = s.task("work", s.number, s.pause(), value=s.number)
    then = s.task("add", 1, s.pause(), value=s.number + 1, needs=[f"{s.number}.0"])
    return lambda: first.apply_async(link=then)


def chain(s: Submission):
    steps = [s.task("work", s.number, s.pause(), value=s.number)]
    for step in range(1, s.random.randint(3, 5)):
        needs = [f"{s.number}.{before}" for before in range(step)]
        steps.append(s.task("add", step, s.pause(), value=s.number + sum(range(step + 1)), needs=needs))
    return lambda: client.chain(*steps)


def side_by_side(s: Submission):
    tasks = [s.task("work", i, s.pause(), value=i) for i in range(s.random.randint(2, 5))]
    return lambda: client.group(*tasks)


def chord(s: Submission):
    size = s.random.randint(3, 8)
    header = [s.task("work", i, s.pause(), value=i) for i in range(size)]
    if s.random.random() < 0.2:
        header.append(s.task("flaky", 1, size, value=size))
    if s.random.random() < 0.1:
        header.append(s.task("flaky", 4, 0, ends=("FAILURE ValueError",)))
    members = [task.options["task_id"] for task in header]
    body = s.task("total", s.pause(), value=sum(range(size + ("flaky" in header[-1].task))), members=members)
    return lambda: client.chord(header, body)


def chord_in_chain(s: Submission):
    size = s.random.randint(2, 4)
    first = s.task("work", s.number, s.pause(), value=s.number)
    header = [s.task("add", i, s.pause(), value=s.number + i, needs=[f"{s.number}.0"]) for i in range(size)]
    total, members = size * s.number + sum(range(size)), [task.options["task_id"] for task in header]
    body = s.task("total", s.pause(), value=total, needs=[f"{s.number}.0"], members=members)
    last = s.task("add", 1, value=total + 1, needs=[f"{s.number}.0", body.options["task_id"]])
    return lambda: client.chain(first, group(header), body, last)


def revoked_waiting(s: Submission):
    ends = ("SUCCESS", "REVOKED TaskRevokedError")
    task = s.task("work", s.number, 0.1, value=s.number, countdown=s.random.choice([None, 0.5, 1.5]), ends=ends)
    s.revoke(f"{s.number}.0", after=(0, 1))
    return task.apply_async


def revoked_running(s: Submission):
    ends = ("SUCCESS", "REVOKED TaskRevokedError")
    task = s.task("work", s.number, s.random.uniform(1, 3), value=s.number, ends=ends)
    s.revoke(f"{s.number}.0", after=(0.2, 1.5), terminate=True)
    return task.apply_async


def revoked_member(s: Submission):
    """A chord, a member of which is revoked: its body fails, unless that comes too late."""
    ends = ("SUCCESS", "REVOKED TaskRevokedError")
    header = [s.task("work", i, s.pause(), value=i, ends=ends) for i in range(3)]
    members = [task.options["task_id"] for task in header]
    body = s.task("total", value=3, members=members)
    s.revoke(members[-1], after=(0, 0.5), terminate=s.random.random() < 0.5)
    return lambda: client.chord(header, body)


def deadly(s: Submission):
    task = s.task("deadly", s.random.choice([1, 1, 1, 99]), s.number, value=s.number)
    return task.apply_async


def limited(s: Submission):
    return s.task("limited", ends=("FAILURE TimeLimitExceeded",)).apply_async


#: How often each is submitted, relative to the others.
MIX: dict[Callable[[Submission], Callable[[], Any]], int] = {
    single: 30, long: 5, many: 3, delayed: 8, expiring: 4, flaky: 10, failing: 2, linked: 4, chain: 7,
    side_by_side: 3, chord: 7, chord_in_chain: 3, revoked_waiting: 5, revoked_running: 3, revoked_member: 2,
    deadly: 1, limited: 1, lasting: 0,
}  # fmt: skip


class RolledBack(Exception):
    pass


def submit(seed: int, number: int, kinds: Sequence[str]) -> Submission:
    """Do the submission of this number; what it does depends on the seed and the number alone."""
    rng = random.Random(f"{seed} {number}")
    mix = MIX if not kinds else {kind: max(MIX[kind], 1) for kind in MIX if kind.__name__ in kinds}
    (kind,) = rng.choices(list(mix), list(mix.values()))
    submission, doomed = Submission(number, kind.__name__, rng), rng.random() < DOOMED
    ledger.execute("INSERT INTO chaos.submits VALUES (%s, %s, %s)", [number, submission.kind, doomed])
    started = time.monotonic()
    try:
        with transaction.atomic():
            kind(submission)()
            with connection.cursor() as cursor:
                cursor.executemany(_EXPECTED, submission.expected)
            if doomed:
                raise RolledBack
    except RolledBack:
        submission.later.clear()
    seconds = time.monotonic() - started
    ledger.execute("UPDATE chaos.submits SET seconds = %s WHERE number = %s", [seconds, number])
    return submission


def run(seed: int, seconds: float, rate: float, started: float, kinds: Sequence[str]) -> None:
    number = ledger.execute("SELECT FROM chaos.submits").rowcount
    steps: list[tuple[float, int, Callable[[], Any]]] = []
    order = count()

    def add(at: float, action: Callable[[], Any]) -> None:
        heappush(steps, (at, next(order), action))

    def submit_next(number: int) -> None:
        at = started + (number + 1) / rate
        if at < started + seconds:
            add(at, lambda: submit_next(number + 1))
        for delay, action in submit(seed, number, kinds).later:
            add(time.time() + delay, action)

    add(started + number / rate, lambda: submit_next(number))
    while steps:
        at, _, action = heappop(steps)
        time.sleep(max(at - time.time(), 0))
        try:
            action()
        except DatabaseError as error:
            print(f"not submitted: {error}", flush=True)
            close_old_connections()
        except Exception as error:
            print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    seed, seconds, rate, started = map(float, sys.argv[1:5])
    run(int(seed), seconds, rate, started, sys.argv[5:])
