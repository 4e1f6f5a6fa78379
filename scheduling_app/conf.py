"""The console's own settings of schedules, as `tasks_app.conf` has those of tasks."""

from celery import current_app

from tasks_app.conf import conf as of_tasks
from tasks_app.conf import count


class ScheduleSettings:
    #: Runs of a schedule that its ledger keeps; of more missed times the earlier ones get no row.
    SCHEDULE_RUNS_KEPT = count(1000, "runs")

    @property
    def queue(self) -> str:
        """The queue of a schedule that names none."""
        return of_tasks.CRON_QUEUE or current_app.conf.task_default_queue


conf = ScheduleSettings()
