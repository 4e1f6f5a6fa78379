"""What must hold when all is quiet again: the doctor's invariants, and those that only the ledger can tell."""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import pairwise

from django.db import connection
from django.utils.module_loading import autodiscover_modules

from scheduling_app.models import Schedule, ScheduleRun
from tasks_app.doctor import INVARIANTS, SHOWN, Finding, Invariant, examine

Harm = Iterable[tuple[float, float, str]]

#: Of a task of the load: whether all of some other tasks have succeeded.
_ALL_DONE = """
NOT EXISTS (
    SELECT FROM unnest({}) AS before (task_id) LEFT JOIN tasks_app_taskrecord AS other USING (task_id)
    WHERE other.state IS DISTINCT FROM 'SUCCESS'
)
"""
_NEEDS_DONE, _MEMBERS_DONE = _ALL_DONE.format("expected.needs"), _ALL_DONE.format("expected.members")

#: From, to, and how much gen and attempt rise.
_MOVES = """
    (NULL, 'PENDING', NULL, NULL),
    ('PENDING', 'STARTED', 0, 1), ('RETRY', 'STARTED', 0, 1),
    ('PENDING', 'PENDING', 1, 0), ('RETRY', 'RETRY', 1, 0),
    ('STARTED', 'SUCCESS', 0, 0), ('STARTED', 'FAILURE', 0, 0), ('STARTED', 'REVOKED', 0, 0),
    ('STARTED', 'RETRY', 1, 0),
    ('PENDING', 'REVOKED', 0, 0), ('RETRY', 'REVOKED', 0, 0),
    -- the body of a chord whose header failed, and the later steps of a chain
    ('PENDING', 'FAILURE', 0, 0), ('RETRY', 'FAILURE', 0, 0)
"""

QUERIES = {
    "I1 every submit ends": """
        SELECT format('%%s is %%s, gen %%s, attempt %%s', task_id, state, gen, attempt) FROM tasks_app_taskrecord
        WHERE state IN ('PENDING', 'STARTED', 'RETRY')
    """,
    "I1 every task is recorded": f"""
        SELECT format('%%s of a %%s', expected.task_id, kind)
        FROM chaos.expected LEFT JOIN tasks_app_taskrecord AS record USING (task_id)
        WHERE record.id IS NULL AND {_NEEDS_DONE}
    """,
    "I2 nothing but what was committed": """
        SELECT format('record %%s, %%s', record.task_id, record.name)
        FROM tasks_app_taskrecord AS record LEFT JOIN chaos.expected USING (task_id)
        WHERE expected.task_id IS NULL AND record.name <> 'chaos.tick'
            -- Celery's stand-in for a chord in a chain that failed before it; it never runs.
            AND NOT (record.name = 'celery.chord' AND record.state IN ('FAILURE', 'REVOKED') AND record.attempt = 0)
        UNION ALL
        SELECT DISTINCT format('a run of %%s', runs.task_id)
        FROM chaos.runs LEFT JOIN tasks_app_taskrecord AS record USING (task_id) WHERE record.id IS NULL
    """,
    "I3 the last run decides": """
        SELECT format('%%s by gen %%s', task_id, gen) FROM chaos.audit
        WHERE state = 'SUCCESS' AND NOT EXISTS (
            SELECT FROM chaos.runs
            WHERE runs.task_id = audit.task_id AND runs.gen = audit.gen AND edge = 'end' AND runs.at <= audit.at
        )
    """,
    "I3 moves are legal": f"""
        SELECT format('%%s from %%s to %%s, gen %%s to %%s, attempt %%s to %%s', task_id, coalesce(old_state, '-'),
            coalesce(state, '-'), old_gen, gen, old_attempt, attempt)
        FROM chaos.audit WHERE NOT EXISTS (
            SELECT FROM (VALUES {_MOVES}) AS move (old_state, state, gen, attempt)
            WHERE (audit.old_state, audit.state, audit.gen - audit.old_gen, audit.attempt - audit.old_attempt)
                IS NOT DISTINCT FROM (move.old_state, move.state, move.gen, move.attempt)
        )
    """,
    "I4 a run starts once": """
        SELECT format('%%s gen %%s: %%s starts', task_id, gen, count(*)) FROM chaos.runs
        WHERE edge = 'start' GROUP BY task_id, gen HAVING count(*) > 1
        UNION ALL
        SELECT format('%%s attempt %%s: %%s starts', task_id, attempt, count(*)) FROM chaos.runs
        WHERE edge = 'start' AND attempt IS NOT NULL GROUP BY task_id, attempt HAVING count(*) > 1
    """,
    "I4 a run is claimed before it starts": """
        SELECT format('%%s gen %%s', task_id, gen) FROM chaos.runs
        WHERE edge = 'start' AND NOT EXISTS (
            SELECT FROM chaos.audit WHERE audit.task_id = runs.task_id AND audit.gen = runs.gen
                AND audit.state = 'STARTED' AND audit.at <= runs.at
        )
    """,
    "I4 no run of what was said to be revoked": """
        SELECT format('%%s', audit.task_id) FROM chaos.audit JOIN chaos.answers USING (task_id)
        WHERE audit.state = 'STARTED' AND answers.state = 'REVOKED' AND audit.at > answers.at
    """,
    "I4 without acks_late a lost run is not repeated": """
        SELECT format('%%s: %%s starts, %%s retries', task_id, count(*), record.retries)
        FROM chaos.runs JOIN chaos.expected USING (task_id) JOIN tasks_app_taskrecord AS record USING (task_id)
        WHERE edge = 'start' AND NOT repeats GROUP BY task_id, record.retries HAVING count(*) > 1 + record.retries
    """,
    "I8 the end is final": """
        SELECT format('%%s from %%s to %%s', task_id, old_state, coalesce(state, 'nothing')) FROM chaos.audit
        WHERE old_state NOT IN ('PENDING', 'STARTED', 'RETRY')
    """,
    "I9 as expected": f"""
        SELECT format('%%s of a %%s: %%s %%s, lost %%s of %%s', task_id, kind, state, exc_type, lost_count, max_lost)
        FROM chaos.expected JOIN tasks_app_taskrecord AS record USING (task_id),
            LATERAL (SELECT {_NEEDS_DONE} AS needs_done, {_MEMBERS_DONE} AS members_done) AS before
        WHERE state NOT IN ('PENDING', 'STARTED', 'RETRY')
            AND NOT (needs_done AND members_done AND rtrim(state || ' ' || exc_type) = ANY (ends))
            AND NOT (state = 'FAILURE' AND exc_type = 'WorkerLostError' AND (NOT repeats OR lost_count >= max_lost))
            AND NOT (state = 'FAILURE' AND exc_type = 'ChordError' AND NOT members_done AND attempt = 0)
            AND NOT (state IN ('FAILURE', 'REVOKED') AND NOT needs_done AND attempt = 0)
    """,
    "I9 results are right": """
        SELECT format('%%s of a %%s: %%s instead of %%s', task_id, kind, coalesce(result.result, 'none'), value)
        FROM chaos.expected JOIN tasks_app_taskrecord AS record USING (task_id)
            LEFT JOIN django_celery_results_taskresult AS result USING (task_id)
        WHERE record.state = 'SUCCESS' AND (result.status, result.result::jsonb)
            IS DISTINCT FROM ('SUCCESS', expected.value)
    """,
    "I10 no more runs than were lost or retried": """
        SELECT format('%%s: attempt %%s, %%s lost, %%s retries, %%s earlier attempts', record.task_id, record.attempt,
            lost_count, retries, count(earlier.id))
        FROM tasks_app_taskrecord AS record LEFT JOIN tasks_app_taskattempt AS earlier ON earlier.record_id = record.id
        WHERE record.state NOT IN ('PENDING', 'STARTED', 'RETRY')
        GROUP BY record.id
        HAVING record.attempt > 0 AND record.attempt - count(earlier.id) NOT IN (0, 1)
    """,
    "I10 no more starts than attempts": """
        SELECT format('%%s: %%s starts, %%s attempts', task_id, count(*), record.attempt)
        FROM chaos.runs JOIN tasks_app_taskrecord AS record USING (task_id)
        WHERE edge = 'start' GROUP BY task_id, record.attempt HAVING count(*) > record.attempt
    """,
    "I6 each tick is of one due time": """
        SELECT record.task_id FROM tasks_app_taskrecord AS record
            LEFT JOIN scheduling_app_schedulerun AS run ON run.record_id = record.task_id
        WHERE record.name = 'chaos.tick' GROUP BY record.task_id HAVING count(run.id) <> 1
    """,
}

#: Runs that were taken for lost: those of tasks that kill their process, or outlast a hard limit, aside.
_LOST = """
SELECT lost.task_id, split_part(lost.worker, '@', 1), claimed.at, lost.at
FROM chaos.audit AS lost
    JOIN chaos.audit AS claimed ON claimed.task_id = lost.task_id AND claimed.attempt = lost.attempt
        AND claimed.state = 'STARTED'
    LEFT JOIN chaos.expected ON expected.task_id = lost.task_id
WHERE lost.old_state = 'STARTED' AND lost.exc_type = 'WorkerLostError'
    AND coalesce(expected.kind, '') NOT IN ('deadly', 'limited')
"""

_STATISTICS = """
SELECT
    (SELECT count(*) FROM tasks_app_taskrecord) AS tasks,
    (SELECT count(*) FROM chaos.runs WHERE edge = 'start') AS starts,
    (SELECT coalesce(sum(lost_count), 0) FROM tasks_app_taskrecord) AS lost,
    (SELECT count(*) FROM tasks_app_taskrecord WHERE exc_type = 'WorkerLostError') AS "failed lost",
    (SELECT count(*) FROM chaos.audit WHERE old_gen < gen AND old_state IN ('PENDING', 'RETRY')) AS republished,
    (SELECT count(DISTINCT task_id) FROM chaos.runs AS a WHERE EXISTS (
        SELECT FROM chaos.runs AS b WHERE a.task_id = b.task_id AND a.run <> b.run AND a.edge = 'start'
            AND b.edge = 'end' AND b.at > a.at
            AND EXISTS (SELECT FROM chaos.runs AS c WHERE c.run = b.run AND c.edge = 'start' AND c.at < a.at)
    )) AS overlapping,
    (SELECT round(max(seconds)::numeric, 2)::float FROM chaos.submits) AS "slowest submit"
"""


_LIFE = """
SELECT at, format('%%s -> %%s, gen %%s, attempt %%s %%s %%s', coalesce(old_state, '-'), state, gen, attempt, worker,
    exc_type) AS what
FROM chaos.audit WHERE task_id = %(task_id)s
UNION ALL
SELECT at, format('%%s of the body, gen %%s, attempt %%s, by %%s', edge, gen, attempt, pid)
FROM chaos.runs WHERE task_id = %(task_id)s
UNION ALL
SELECT at, format('revoke answers %%s', state) FROM chaos.answers WHERE task_id = %(task_id)s
ORDER BY at
"""


def findings(harm: Harm) -> list[Finding]:
    """What does not hold. `harm`: from when to when, in seconds, a worker may have lost its runs, and its name."""
    autodiscover_modules("doctor")
    ours = [Invariant(name, "", "", query) for name, query in QUERIES.items()]
    since = datetime(2000, 1, 1, tzinfo=UTC)
    found = [examine(each, since, patience=0) for each in (*INVARIANTS, *ours)]
    for name, offenders in (("I5 due times are covered", list(_gaps())), ("I11 a loss has a cause", _causeless(harm))):
        found.append(Finding(Invariant(name, "", "", ""), len(offenders), offenders[:SHOWN]))
    return [each for each in found if each.count]


def statistics() -> dict[str, float]:
    with connection.cursor() as cursor:
        cursor.execute(_STATISTICS)
        return dict(zip((column.name for column in cursor.description), cursor.fetchone(), strict=True))


def slow_submits(began: float) -> list[str]:
    """Submissions that took longer than two seconds, by whatever fault."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT number, kind, at, seconds FROM chaos.submits WHERE seconds > 2 ORDER BY at")
        return [
            f"{number}, a {kind}, at {at.timestamp() - began:.1f}: {seconds:.1f} s"
            for number, kind, at, seconds in cursor.fetchall()
        ]


def life(offender: str, began: float) -> str:
    """What is known of the task that an offender's words begin with, in seconds since the faults began."""
    task_id = offender.removeprefix("record ").removeprefix("a run of ").split(" ")[0].rstrip(",:")
    with connection.cursor() as cursor:
        cursor.execute(_LIFE, {"task_id": task_id})
        lines = [f"  {at.timestamp() - began:6.2f} {what}" for at, what in cursor.fetchall()]
    return "\n".join([f"--- life of {task_id}", *lines]) if lines else ""


def _causeless(harm: Harm) -> list[str]:
    """Runs that were taken for lost although nothing had been done to their workers."""
    with connection.cursor() as cursor:
        cursor.execute(_LOST)
        return [
            f"{task_id} on {worker}"
            for task_id, worker, claimed, lost in cursor.fetchall()
            if not any(
                name == worker and begin <= lost.timestamp() and end >= claimed.timestamp() - 1
                for begin, end, name in harm
            )
        ]


def _gaps() -> Iterator[str]:
    """Due times of which there is no run, nor one that stands for them."""
    for schedule in Schedule.objects.all():
        timing, runs = schedule.timing(), list(schedule.runs.exclude(reason="manual").order_by("scheduled_for"))
        if not runs:
            yield f"{schedule.name} never fired"
        for before, run in pairwise(runs):
            due = timing.next_after(before.scheduled_for)
            if run.scheduled_for != due and not _stands_for(run, due, schedule):
                yield f"{schedule.name}: {due} is not there; {run.scheduled_for} is, {run.detail!r}"


def _stands_for(run: ScheduleRun, due: datetime | None, schedule: Schedule) -> bool:
    since = re.search(r"missed since (\S+ \S+) UTC", run.detail)
    return schedule.catch_up == Schedule.CatchUp.LATEST and since is not None and since[1] <= f"{due:%Y-%m-%d %H:%M:%S}"
