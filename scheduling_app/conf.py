"""The console's own settings of schedules, as `tasks_app.conf` has those of tasks (CRON_QUEUE among them)."""

from tasks_app.conf import count


class ScheduleSettings:
    #: Runs of a schedule that its ledger keeps; of more missed times the earlier ones get no row.
    SCHEDULE_RUNS_KEPT = count(1000, "runs")


conf = ScheduleSettings()
