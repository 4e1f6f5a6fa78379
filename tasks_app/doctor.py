"""What holds of the records at any moment, and whether it does: `manage.py doctor --ledger`.

Each invariant is a query for what breaks it, which reads one text from each row: the offender and what is wrong with
it. They run together in one read-only snapshot. What finished is looked at back to `since`, by index; what is
unfinished, all of it. An app's own are in a module `doctor` of its, like this one.
"""

from dataclasses import dataclass
from datetime import datetime

from django.db import connection
from django_celery_results.models import ChordCounter, TaskResult

from tasks_app.models import TaskAttempt, TaskRecord

#: Seconds that a publisher, a rescuer or a scheduler may be late before it counts as a violation.
PATIENCE = 60
#: Offenders that are told of each invariant.
SHOWN = 5


@dataclass(frozen=True)
class Invariant:
    """`sentence` says what holds, `advice` what to do where it does not."""

    name: str
    sentence: str
    advice: str
    #: Has the parameters `since`, a time, and `patience`, in seconds.
    query: str


@dataclass(frozen=True)
class Finding:
    invariant: Invariant
    count: int
    offenders: list[str]


INVARIANTS: list[Invariant] = []


def invariant(name: str, sentence: str, advice: str, query: str) -> Invariant:
    """Make one, and have `doctor --ledger` look after it."""
    INVARIANTS.append(Invariant(name, sentence, advice, query))
    return INVARIANTS[-1]


def examine(each: Invariant, since: datetime, patience: float = PATIENCE) -> Finding:
    """How many break an invariant, and the first few of them."""
    counted = f"SELECT count(*), (array_agg(offender))[:{SHOWN}] FROM ({each.query}) AS broken (offender)"
    with connection.cursor() as cursor:
        cursor.execute(counted, {"since": since, "patience": patience})
        count, offenders = cursor.fetchone()
    return Finding(each, count, offenders or [])


_TASKS, _RESULTS = TaskRecord._meta.db_table, TaskResult._meta.db_table
#: The time before which one had patience. (Not clock_timestamp(): no index is searched for what changes.)
LATE = "now() - %(patience)s * interval '1 s'"

invariant(
    "published in time",
    "What is due is published at once, or as soon as the broker is back.",
    "Start a worker or a scheduler: each publishes what is due. If one runs, see whether the broker answers.",
    f"SELECT format('%%s, due at %%s', task_id, publish_at) FROM {_TASKS} WHERE publish_at < {LATE}",
)
invariant(
    "never forgotten",
    "What waits is published, or to be published, or waits for a slot.",
    "Nobody will publish these: set their publish_at to now().",
    f"""
    SELECT format('%%s, %%s since %%s', task_id, state, created_at) FROM {_TASKS}
    WHERE state IN ('PENDING', 'RETRY') AND publish_at IS NULL AND published_at IS NULL AND parked_at IS NULL
        AND created_at < {LATE}
        AND NOT (attempt > 0 AND EXISTS (  -- it was replaced by a workflow, and waits to be its last step
            SELECT FROM {_TASKS} AS step WHERE step.root_id = {_TASKS}.root_id AND step.task_id <> {_TASKS}.task_id
                AND step.state IN ('PENDING', 'STARTED', 'RETRY')))
    """,
)
invariant(
    "claimed or published again",
    "What is published is claimed, held by a worker or in the broker: else the census publishes it again.",
    "Start workers for their queues. If there are some, let `manage.py celery inspect active` tell what keeps them.",
    f"""
    SELECT format('%%s, on %%s since %%s', task_id, queue, published_at) FROM {_TASKS}
    WHERE state IN ('PENDING', 'RETRY') AND publish_at IS NULL AND published_at < {LATE} - interval '1 hour'
        AND (lease_until IS NULL OR lease_until < {LATE})
    """,
)
invariant(
    "runs hold a lease",
    "A run whose worker is gone is ended, and repeated if it may be, soon after its lease.",
    "Start a worker or a scheduler: each of them rescues.",
    f"""
    SELECT format('%%s, on %%s, lease until %%s', task_id, worker, coalesce(lease_until::text, 'never')) FROM {_TASKS}
    WHERE state = 'STARTED' AND coalesce(lease_until, started_at, created_at) < {LATE}
    """,
)
invariant(
    "expired is revoked",
    "What nobody started before it expired is revoked.",
    "Start a worker or a scheduler: each of them revokes what has expired.",
    f"""
    SELECT format('%%s, expired at %%s', task_id, expires) FROM {_TASKS}
    WHERE state IN ('PENDING', 'RETRY') AND expires < {LATE}
    """,
)
invariant(
    "the end is the end",
    "What has ended is not to be published, and waits for no slot.",
    "Something wrote to the table past the console. Set publish_at and parked_at of these to NULL.",
    f"""
    SELECT format('%%s, %%s', task_id, state) FROM {_TASKS}
    WHERE state NOT IN ('PENDING', 'STARTED', 'RETRY') AND (publish_at IS NOT NULL OR parked_at IS NOT NULL)
    """,
)
invariant(
    "one outcome",
    "A task's result and its record tell the same end.",
    "Something stored a result past the console. The record is right; delete the result, or correct its status.",
    f"""
    SELECT format('%%s, record %%s, result %%s', task.task_id, task.state, result.status)
    FROM {_TASKS} AS task JOIN {_RESULTS} AS result USING (task_id)
    WHERE task.finished_at >= %(since)s AND result.status <> task.state
        AND task.state IN ('SUCCESS', 'FAILURE', 'REVOKED')
        AND result.status IN ('SUCCESS', 'FAILURE', 'REVOKED')  -- not what a run before the last one left there
    """,
)
invariant(
    "no success without a run",
    "What succeeded was claimed, and ran. (What ran eagerly was in no queue.)",
    "Something wrote to the table, or stored a result, past the console.",
    f"""
    SELECT task_id FROM {_TASKS}
    WHERE finished_at >= %(since)s AND state = 'SUCCESS' AND attempt = 0 AND queue <> ''
    """,
)
invariant(
    "lost within limits",
    "No task is repeated after more lost runs than it may have.",
    "Report this, with the rows of the task and of its attempts.",
    f"""
    SELECT format('%%s, %%s of %%s', task_id, lost_count, max_lost) FROM {_TASKS}
    WHERE (finished_at >= %(since)s OR state IN ('PENDING', 'STARTED', 'RETRY')) AND lost_count > max_lost
    """,
)
invariant(
    "attempts in order",
    "The earlier attempts of a task are numbered below its last.",
    "Report this, with the rows of the task and of its attempts.",
    f"""
    SELECT format('%%s, attempt %%s of %%s', task.task_id, earlier.attempt, task.attempt)
    FROM {_TASKS} AS task JOIN {TaskAttempt._meta.db_table} AS earlier ON earlier.record_id = task.id
    WHERE (task.finished_at >= %(since)s OR task.state IN ('PENDING', 'STARTED', 'RETRY'))
        AND (earlier.attempt > task.attempt OR earlier.attempt = task.attempt AND task.state = 'STARTED')
    """,
)
#: A member that is itself a group or a chord is not in the list by the id of a task; its body is.
_MEMBERS = (
    "json_array_elements(chord.sub_tasks::json) AS member LEFT JOIN {tasks} AS task ON task.task_id = member->0->>0"
)
invariant(
    "chords are closed",
    "A chord whose members have all ended has its body.",
    "Run the body by hand, or revoke it; and report this, with the rows of the chord's group_id.",
    f"""
    SELECT format('group %%s, %%s still counted', chord.group_id, chord.count)
    FROM {ChordCounter._meta.db_table} AS chord
    WHERE NOT EXISTS (
        SELECT FROM {_MEMBERS.format(tasks=_TASKS)}
        WHERE task.finished_at IS NULL OR task.finished_at > {LATE}
    )
    """,
)
invariant(
    "messages are taken",
    "A worker can take each message that it is given; what none takes has failed soon after.",
    "Mend what the reason names. Where only some of the workers refuse it, update those.",
    f"""
    SELECT format('%%s, refused %%s times: %%s', task_id, refused, left(exc_message, 300)) FROM {_TASKS}
    WHERE state IN ('PENDING', 'RETRY') AND refused > 0
    """,
)
invariant(
    "messages arrive",
    "What is published reaches a worker that starts it, and is not lost time and again.",
    "Look into the workers' logs for what ends them, and whether the broker keeps what it is given.",
    f"""
    SELECT format('%%s, on %%s, lost %%s times', task_id, queue, missed) FROM {_TASKS}
    WHERE state IN ('PENDING', 'RETRY') AND missed > 1
    """,
)
