"""What holds of schedules and their runs (see tasks_app/doctor.py)."""

from scheduling_app.models import Schedule, ScheduleRun
from tasks_app.doctor import LATE, invariant
from tasks_app.models import TaskRecord

_SCHEDULES, _RUNS = Schedule._meta.db_table, ScheduleRun._meta.db_table
#: The runs of each schedule since a time: found by their key, schedule by schedule.
_RECENT = f"""
{_SCHEDULES} AS schedule CROSS JOIN LATERAL (
    SELECT * FROM {_RUNS} WHERE schedule_id = schedule.id AND scheduled_for >= %(since)s OFFSET 0
) AS run
"""

invariant(
    "schedules are planned",
    "A schedule that was changed has its next time computed at once.",
    "Start a scheduler: `manage.py runscheduler`.",
    f"SELECT format('%%s, changed at %%s', name, changed_at) FROM {_SCHEDULES} WHERE changed_at < {LATE}",
)
invariant(
    "due times fire",
    "A due time is fired, or recorded as skipped, at once.",
    "Start a scheduler: `manage.py runscheduler`.",
    f"""
    SELECT format('%%s, due at %%s', name, next_fire_at) FROM {_SCHEDULES}
    WHERE enabled AND next_fire_at < {LATE}
    """,
)
invariant(
    "a due time has one run",
    "A schedule has one run for each of its times.",
    "The unique key `run_once` is missing: delete all but the first of these runs, then make the key again.",
    f"""
    SELECT format('%%s at %%s, %%s runs', name, scheduled_for, count(*)) FROM {_RECENT}
    GROUP BY name, scheduled_for HAVING count(*) > 1
    """,
)
invariant(
    "a fired run has its task",
    "A due time that fired has made one task, and one that was skipped has made none.",
    "Its task was deleted, or a row was written past the console: run the schedule by hand where that matters.",
    f"""
    SELECT format('%%s at %%s, %%s, task %%s', schedule.name, scheduled_for, outcome, coalesce(record_id, 'none'))
    FROM {_RECENT} LEFT JOIN {TaskRecord._meta.db_table} AS task ON task.task_id = run.record_id
    WHERE outcome <> 'waiting' AND (outcome = 'fired') <> (task.id IS NOT NULL)
    """,
)
invariant(
    "the next time is a later one",
    "A schedule's next time comes after those that it has a run for.",
    "The clock of the database was set back, or a row was written past the console: save the schedule again.",
    f"""
    SELECT format('%%s, next %%s, last %%s', name, next_fire_at, last.scheduled_for)
    FROM {_SCHEDULES} AS schedule CROSS JOIN LATERAL (
        SELECT scheduled_for FROM {_RUNS} WHERE schedule_id = schedule.id AND reason <> 'manual'
        ORDER BY scheduled_for DESC LIMIT 1
    ) AS last
    WHERE enabled AND next_fire_at <= last.scheduled_for AND next_fire_at < {LATE}
    """,
)
