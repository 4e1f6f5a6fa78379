"""What is done to the processes and servers of a run: a plan that depends on the seed, and how each thing is done."""

import contextlib
import json
import math
import os
import random
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count

import psycopg
import redis

from tests.chaos.cluster import STOP_PATIENCE, Cluster, Program

#: Between a queue's name and a priority, in the name of kombu's list for it.
_SEPARATOR = "\x06\x16"
#: Seconds that a scheduler is frozen at most: twice as long as Postgres leaves its transaction alone.
LONGEST_FREEZE = 30


@dataclass(frozen=True)
class Fault:
    """`at` in seconds from the start; `target` says which of two alike; `dose`, from 0 to 1, how much or how long."""

    at: float
    kind: str
    target: int
    dose: float


def plan(seed: int, seconds: float, per_minute: float, kinds: Sequence[str] = ()) -> list[Fault]:
    """Faults at random times, each kind about as often as KINDS has it, or the given kinds equally often."""
    rng = random.Random(f"faults {seed}")
    deck: list[str] = []
    faults = []
    for at in sorted(rng.uniform(0.5, seconds) for _ in range(round(seconds * per_minute / 60))):
        if not deck:
            deck = list(kinds) or [kind for kind, (times, _) in KINDS.items() for _ in range(times)]
            rng.shuffle(deck)
        faults.append(Fault(round(at, 2), deck.pop(), rng.randrange(2), round(rng.random(), 3)))
    return faults


@dataclass
class Storm:
    """Does a plan to a cluster, and keeps a log of it."""

    cluster: Cluster
    done: list[tuple[Fault, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    #: When it began; and when what was done to a worker may have cost it its runs: from, to, its name. All in seconds
    #: of the clock on the wall.
    began: float = 0
    harm: list[tuple[float, float, str]] = field(default_factory=list)
    _steps: list[tuple[float, int, Callable[[], object]]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=count)

    def run(self, faults: Sequence[Fault], seconds: float) -> None:
        self._started, self.began = time.monotonic(), time.time()
        for fault in faults:
            self._add(self._started + fault.at, partial(self._do, fault))
        end = self._started + seconds
        while (now := time.monotonic()) < end:
            self.go_on()
            time.sleep(max(min(self._next_at(), end) - now, 0))

    def go_on(self) -> None:
        """Do what is due by now."""
        while self._next_at() <= time.monotonic():
            heappop(self._steps)[2]()

    def _next_at(self) -> float:
        return self._steps[0][0] if self._steps else math.inf

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        self._add(time.monotonic() + seconds, action)

    def _add(self, at: float, action: Callable[[], object]) -> None:
        heappush(self._steps, (at, next(self._order), action))

    def _do(self, fault: Fault) -> None:
        try:
            what = KINDS[fault.kind][1](self, fault)
        except (psycopg.Error, redis.RedisError, OSError):
            return  # what it was to be done to is down, by another fault
        if what:
            at = time.monotonic() - self._started
            self.done.append((fault, f"{at:6.2f} {fault.kind}: {what}"))

    def pick(self, kind: str, fault: Fault) -> Program | None:
        """The worker or scheduler that a fault is for; the other one where that is down or frozen."""
        programs = [self.cluster.programs[f"{kind}{number}"] for number in (1, 2)]
        for program in (programs[fault.target], programs[1 - fault.target]):
            if program.is_up:
                return program
        return None

    def harms(self, program: Program, seconds: float) -> None:
        self.harm.append((time.time(), time.time() + seconds, program.name))

    def deliver(self, messages: Sequence[tuple[str, bytes]]) -> None:
        with contextlib.suppress(redis.RedisError), self.cluster.redis() as broker:
            for key, message in messages:
                broker.lpush(key, message)


Do = Callable[[Storm, Fault], str | None]


def kill(kind: str) -> Do:
    def do(storm: Storm, fault: Fault) -> str | None:
        if program := storm.pick(kind, fault):
            storm.harms(program, fault.dose * 2)
            program.kill()
            storm.after(fault.dose * 2, program.start)
            return f"{program.name}, back after {fault.dose * 2:.1f} s"
        return None

    return do


def freeze(kind: str) -> Do:
    """For up to twice the lease."""

    def do(storm: Storm, fault: Fault) -> str | None:
        if program := storm.pick(kind, fault):
            storm.harms(program, fault.dose * 6)
            program.signal(signal.SIGSTOP)
            storm.after(fault.dose * 6, lambda: program.signal(signal.SIGCONT))
            return f"{program.name} for {fault.dose * 6:.1f} s"
        return None

    return do


def freeze_in_transaction(storm: Storm, fault: Fault) -> str | None:
    """With rows locked: it waits for a lock of ours, and gets it when it is frozen."""
    program = storm.pick("scheduler", fault)
    if program is None:
        return None
    blocked = "SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND application_name = %s"
    with storm.cluster.database() as connection, connection.transaction():
        connection.execute("LOCK TABLE scheduling_app_schedulerun IN SHARE MODE")
        give_up_at = time.monotonic() + 3
        while not connection.execute(blocked, [program.name]).rowcount:
            if time.monotonic() > give_up_at:
                return None
            connection.execute("SELECT pg_stat_clear_snapshot()")
            time.sleep(0.01)
        program.signal(signal.SIGSTOP)
    storm.after(fault.dose * LONGEST_FREEZE, lambda: program.signal(signal.SIGCONT))
    return f"{program.name} for {fault.dose * LONGEST_FREEZE:.1f} s"


def terminate(kind: str) -> Do:
    def do(storm: Storm, fault: Fault) -> str | None:
        program = storm.pick(kind, fault)
        if program is None:
            return None
        since = time.monotonic()

        def start_when_ended() -> None:
            took = time.monotonic() - since
            if program.is_alive:
                if took < STOP_PATIENCE:
                    storm.after(0.2, start_when_ended)
                    return
                storm.notes.append(f"{program.name} had not ended {took:.0f} s after SIGTERM:\n{program.said()}")
                program.kill()
            program.start()

        storm.harms(program, STOP_PATIENCE)
        program.stopping = True
        program.terminate()
        storm.after(0.2, start_when_ended)
        return program.name

    return do


def freeze_parent(storm: Storm, fault: Fault) -> str | None:
    """Its children go on, while nobody renews their leases."""
    if program := storm.pick("worker", fault):
        storm.harms(program, fault.dose * 6)
        os.kill(program.pid, signal.SIGSTOP)
        program.frozen = True
        storm.after(fault.dose * 6, lambda: program.signal(signal.SIGCONT))
        return f"{program.name} for {fault.dose * 6:.1f} s"
    return None


def kill_child(storm: Storm, fault: Fault) -> str | None:
    if child := _child(storm, fault):
        storm.harms(child[0], 0)
        os.kill(child[1], signal.SIGKILL)
        return f"{child[1]} of {child[0].name}"
    return None


def freeze_child(storm: Storm, fault: Fault) -> str | None:
    def thaw(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    if child := _child(storm, fault):
        os.kill(child[1], signal.SIGSTOP)
        storm.after(fault.dose * 6, lambda: thaw(child[1]))
        return f"{child[1]} of {child[0].name} for {fault.dose * 6:.1f} s"
    return None


def _child(storm: Storm, fault: Fault) -> tuple[Program, int] | None:
    program = storm.pick("worker", fault)
    children = program.children() if program else []
    if program is None or not children:
        return None
    return program, children[int(fault.dose * len(children))]


def kill_broker(storm: Storm, fault: Fault) -> str | None:
    if not storm.cluster.broker_is_up:
        return None
    storm.cluster.kill_broker()
    storm.after(fault.dose * 2, storm.cluster.start_broker)
    return f"back, empty, after {fault.dose * 2:.1f} s"


def freeze_broker(storm: Storm, fault: Fault) -> str | None:
    if not storm.cluster.broker_is_up:
        return None
    storm.cluster.freeze_broker()
    storm.after(1 + fault.dose * 5, storm.cluster.thaw_broker)
    return f"for {1 + fault.dose * 5:.1f} s"


def flush_broker(storm: Storm, fault: Fault) -> str | None:
    with storm.cluster.redis() as broker:
        held = broker.dbsize()
        broker.flushall()
    return f"{held} keys"


def drop_broker_clients(storm: Storm, fault: Fault) -> str | None:
    with storm.cluster.redis() as broker:
        killed = sum(broker.execute_command("CLIENT", "KILL", "TYPE", kind) for kind in ("normal", "pubsub"))
    return f"{killed} connections"


def repeat_messages(storm: Storm, fault: Fault) -> str | None:
    """Copies of whatever the broker holds, and workers have got, are delivered: some now, the rest late."""
    with storm.cluster.redis() as broker:
        messages = list(_messages(broker))
    if not messages:
        return None
    now = int(fault.dose * len(messages))
    storm.deliver(messages[:now])
    storm.after(0.5 + fault.dose * 4, lambda: storm.deliver(messages[now:]))
    return f"{now} messages, and {len(messages) - now} in {0.5 + fault.dose * 4:.1f} s"


def lose_messages(storm: Storm, fault: Fault) -> str | None:
    """Half of what is queued is gone, and the broker's note of what workers have got."""
    lost = 0
    with storm.cluster.redis() as broker:
        for key in queues(broker):
            lost += len(broker.rpop(key, max(1, broker.llen(key) // 2)) or [])
        lost += broker.hlen("unacked")
        broker.delete("unacked", "unacked_index")
    return f"{lost} messages" if lost else None


def queues(broker: redis.Redis) -> list[bytes]:
    return [key for key in broker.scan_iter(_type="list") if not key.startswith(b"_kombu")]


def _messages(broker: redis.Redis) -> Iterator[tuple[str, bytes]]:
    """Each message with the name of its list, under a delivery tag of its own."""
    for key in queues(broker):
        for message in broker.lrange(key, 0, -1):
            yield key.decode(), _retagged(json.loads(message))
    for entry in broker.hvals("unacked"):
        message, _, queue = json.loads(entry)
        priority = message["properties"].get("priority")
        yield f"{queue}{_SEPARATOR}{priority}" if priority else queue, _retagged(message)


def _retagged(message: dict) -> bytes:
    message["properties"]["delivery_tag"] = str(uuid.uuid4())
    return json.dumps(message).encode()


def restart_postgres(storm: Storm, fault: Fault) -> str | None:
    return _stop_postgres(storm, fault.dose / 2)


def stop_postgres(storm: Storm, fault: Fault) -> str | None:
    """For longer than the lease."""
    return _stop_postgres(storm, 4 + fault.dose * 2)


def _stop_postgres(storm: Storm, seconds: float) -> str | None:
    if not storm.cluster.postgres_is_up:
        return None
    storm.cluster.postgres.stop(immediate=True)
    storm.after(seconds, storm.cluster.start_postgres)
    return f"immediate, back after {seconds:.1f} s"


def drop_sessions(storm: Storm, fault: Fault) -> str | None:
    return _drop(storm, "true")


def drop_listeners(storm: Storm, fault: Fault) -> str | None:
    return _drop(storm, "query LIKE 'LISTEN%'")


def _drop(storm: Storm, which: str) -> str | None:
    with storm.cluster.database() as connection:
        dropped = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND {which}"
        ).rowcount
    return f"{dropped} sessions" if dropped else None


def turn_back_schedules(storm: Storm, fault: Fault) -> str | None:
    """To an older next time, as one that was frozen might have written it, or a backup have brought back."""
    seconds = 2 + 2 * int(fault.dose * 3)  # due times of each of the schedules
    sql = "UPDATE scheduling_app_schedule SET next_fire_at = next_fire_at - %s * interval '1 s'"
    with storm.cluster.database() as connection:
        connection.execute(sql, [seconds])
    return f"{seconds} s"


def kill_load(storm: Storm, fault: Fault) -> str | None:
    load = storm.cluster.programs["load"]
    if not load.is_up:
        return None
    load.kill()
    load.start()
    return "the submitter"


#: How often each comes in a deck of faults, and what does it.
KINDS: dict[str, tuple[int, Do]] = {
    "kill worker": (2, kill("worker")),
    "freeze worker": (2, freeze("worker")),
    "terminate worker": (2, terminate("worker")),
    "freeze parent": (1, freeze_parent),
    "kill child": (2, kill_child),
    "freeze child": (1, freeze_child),
    "kill scheduler": (1, kill("scheduler")),
    "freeze scheduler": (1, freeze("scheduler")),
    "freeze scheduler in a transaction": (0, freeze_in_transaction),  # when asked for
    "terminate scheduler": (1, terminate("scheduler")),
    "kill submitter": (1, kill_load),
    "kill broker": (2, kill_broker),
    "freeze broker": (1, freeze_broker),
    "flush broker": (1, flush_broker),
    "drop broker clients": (1, drop_broker_clients),
    "repeat messages": (2, repeat_messages),
    "lose messages": (2, lose_messages),
    "restart postgres": (1, restart_postgres),
    "stop postgres": (1, stop_postgres),
    "drop sessions": (1, drop_sessions),
    "drop listeners": (1, drop_listeners),
    "turn back schedules": (1, turn_back_schedules),
}
