"""The guards, each with what takes it away, and a run that shows that it is missed.

The app `tests.chaos` removes the guard that SABOTAGE names, in every process of a run; the product has no hook for it.
A run whose own faults are seldom has fewer kinds of faults and of load than the others. With its guard it passes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.run import Scenario


@dataclass(frozen=True)
class Guard:
    """`shows`: how the name of an invariant begins that does not hold without it."""

    sentence: str
    remove: Callable[[], None]
    shows: str
    scenario: Scenario


def replace(where: Any, name: str, old: str, new: str) -> None:
    """Change a statement; where its words are not as expected any more, the control has to be written anew."""
    text = getattr(where, name)
    if old not in text:
        raise AssertionError(f"{where.__name__}.{name} has no {old!r}: the control does not fit the code any more.")
    setattr(where, name, text.replace(old, new))


_WAITS = "state IN ('PENDING', 'RETRY')"


def claim_by_any_message() -> None:
    from tasks_app import moves

    replace(moves, "_CLAIM", "AND gen = %s", "AND %s::int IS NOT NULL")


def claim_in_any_state() -> None:
    from tasks_app import moves

    replace(moves, "_CLAIM", f"AND {_WAITS}", "AND finished_at IS NULL")


def close_by_any_run() -> None:
    from tasks_app import closing

    for name in ("_CLOSE", "_CLOSE_WITH_RESULT", "_CLOSE_AND_GO_ON"):
        replace(closing, name, "coalesce(gen = %s, true)", "coalesce(%s::int IS NOT NULL, true)")


def close_what_has_ended() -> None:
    from tasks_app import closing

    for name in ("_CLOSE", "_CLOSE_WITH_RESULT", "_CLOSE_AND_GO_ON"):
        replace(closing, name, "AND state IN ('PENDING', 'STARTED', 'RETRY')", "")


def mark_whatever_gen() -> None:
    from tasks_app import moves

    replace(moves, "_MARK_PUBLISHED", "AND task.gen = message.gen", "")


def revoke_in_any_state() -> None:
    from tasks_app import moves

    replace(moves, "_STOP", "WHERE state IN ('PENDING', 'STARTED', 'RETRY') AND", "WHERE")
    moves.TaskQuerySet.unfinished = lambda self: self.all()  # type: ignore[method-assign]


def no_rescue() -> None:
    from tasks_app.relay import rescue

    rescue.rescue_lost = lambda limit=100: 0


def no_renewal() -> None:
    from tasks_app.leases import Leases

    Leases._renew = lambda self: None  # type: ignore[method-assign]


def no_patience() -> None:
    """A rescuer that was blind takes at once for lost what nobody could renew."""
    from tasks_app.relay.rescue import Rescuer

    end_lost_runs = Rescuer.end_lost_runs

    def at_once(self, now: float) -> None:
        self._seen_at, self._trusts_at = now - 1, 0.0
        end_lost_runs(self, now)

    Rescuer.end_lost_runs = at_once  # type: ignore[method-assign]


def any_number_lost() -> None:
    from tasks_app.moves import TaskQuerySet

    claim = TaskQuerySet.claim

    def of_any(self, task_id: str, gen: int, worker: str, pid: int, max_lost: int = 1, name: str | None = None):
        return claim(self, task_id, gen, worker, pid, 1000, name)

    TaskQuerySet.claim = of_any  # type: ignore[method-assign]


def no_census() -> None:
    from tasks_app.relay.census import Census

    Census.look = lambda self: 0  # type: ignore[method-assign]


def no_epoch() -> None:
    from tasks_app import broker

    broker.has_epoch = lambda: True


def no_relay() -> None:
    from tasks_app.relay import due

    due.publish_due = lambda limit=500: 0


def publish_at_once() -> None:
    """Before the commit, as Celery does."""
    from django.db import transaction

    from tasks_app import outbox

    class Transaction:
        def __getattr__(self, name):
            return getattr(transaction, name)

        def on_commit(self, action):
            action()

    outbox.transaction = Transaction()  # type: ignore[assignment]


def successors_apart() -> None:
    """After the end of the task that they succeed, in transactions of their own; a wide gap in between."""
    from tasks_app.backend import RecordBackend
    from tasks_app.gathering import Successors, take_successors

    mark_as_done = RecordBackend.mark_as_done

    def apart(self, task_id, result, request=None, *args, **kwargs):
        successors, chord = take_successors() or Successors(), request and request.chord
        if chord:
            request.chord = None
        mark_as_done(self, task_id, result, request, *args, **kwargs)
        if chord or successors.records or successors.chords:
            time.sleep(1)
        self.app.submit_successors(successors, revoked=False)
        if chord:
            request.chord = chord
            self.on_chord_part_return(request, "SUCCESS", result)

    RecordBackend.mark_as_done = apart  # type: ignore[method-assign]


def chords_unlocked() -> None:
    """Two members that end together count as one."""
    from tasks_app import chords

    count = "(SELECT count FROM pg_sleep(0.05), django_celery_results_chordcounter AS seen WHERE seen.id = counter.id)"
    replace(chords, "_COUNT", "SET count = greatest(count - %s, 0)", f"SET count = greatest({count} - %s, 0)")
    replace(chords, "_COUNT", f"UPDATE {chords.TABLE}", f"UPDATE {chords.TABLE} AS counter")


def due_times_twice() -> None:
    """Each firing of a due time makes a row and a task."""
    from uuid import uuid4

    from scheduling_app import models
    from scheduling_app.ledger import firing

    replace(models, "_INSERT_RUNS", "ON CONFLICT (schedule_id, scheduled_for) DO NOTHING", "")
    firing.uuid5 = lambda *_: uuid4()


_KILLS = ("kill worker", "kill child")
_NO_CENSUS = {"TASK_CENSUS_GRACE": "600"}


def _run(
    *kinds: str, mix: Sequence[str], seed: int = 1, seconds: float = 12, per_minute: float = 60, **options
) -> Scenario:
    """Short; `kinds` of faults."""
    return Scenario(seed, seconds, per_minute, kinds=kinds, mix=mix, settle=25, **options)


def _calm(*mix: str, **options) -> Scenario:
    """Nothing but the load is needed to miss it."""
    return _run("drop listeners", mix=mix, per_minute=10, **options)


GUARDS = {
    "claim-gen": Guard(
        "Only the message in force claims a run.",
        claim_by_any_message,
        "I4",
        _run("repeat messages", mix=["flaky", "single"]),
    ),
    "claim-state": Guard(
        "Only what waits is claimed.",
        claim_in_any_state,
        "I4",
        _run("repeat messages", mix=["long", "single"]),
    ),
    "close-gen": Guard(
        "Only the run in force closes the record.",
        close_by_any_run,
        "I3",
        _run("freeze parent", mix=["lasting"], seed=8, seconds=30, per_minute=20, rate=0.8),
    ),
    "close-state": Guard("What has ended is not closed again.", close_what_has_ended, "I8", _calm("limited", "single")),
    "mark-gen": Guard(
        "Only the message in force is marked as published.",
        mark_whatever_gen,
        "I1",
        _calm("flaky", settings=_NO_CENSUS),
    ),
    "revoke-state": Guard("Only what waits is revoked.", revoke_in_any_state, "I8", _calm("revoked_waiting")),
    "rescue": Guard(
        "A run whose lease ran out is ended.",
        no_rescue,
        "runs hold a lease",
        _run("kill worker", mix=["long"], rate=1.5),
    ),
    "renewal": Guard("A live run keeps its lease.", no_renewal, "I11", _calm("long", rate=1)),
    "patience": Guard(
        "A rescuer that was blind waits for a lease.",
        no_patience,
        "I11",
        _run("stop postgres", mix=["lasting"], seed=7, seconds=30, per_minute=8, rate=0.8),
    ),
    "lost-limit": Guard(
        "A lost run is repeated only as often as its task says.", any_number_lost, "I4", _calm("deadly", rate=1)
    ),
    "census": Guard(
        "What the broker has lost is published again.",
        no_census,
        "I1",
        _run("lose messages", "kill worker", mix=["many", "single"]),
    ),
    "epoch": Guard(
        "What a broker that came back empty has lost is published again at once.",
        no_epoch,
        "I1",
        _run("flush broker", "kill broker", mix=["many", "single"], settings=_NO_CENSUS),
    ),
    "relay": Guard("What its submitter did not publish is published.", no_relay, "I1", _calm("delayed")),
    "on-commit": Guard("Nothing is published before its commit.", publish_at_once, "I2", _calm("single")),
    "successors": Guard(
        "What follows from a task is written in the transaction that closes it.",
        successors_apart,
        "I1 every task is recorded",
        _run("kill worker", mix=["chain", "linked"], rate=2),
    ),
    "chord-lock": Guard(
        "Members of a chord are counted one after the other.", chords_unlocked, "chords are closed", _calm("chord")
    ),
    "run-once": Guard(
        "A due time has one run.",
        due_times_twice,
        "a due time has one run",
        _run(
            "turn back schedules",
            mix=["single"],
            sql="ALTER TABLE scheduling_app_schedulerun DROP CONSTRAINT run_once",
        ),
    ),
}
