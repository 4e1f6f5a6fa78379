from celery import current_app
from django.apps import AppConfig


class TasksConfig(AppConfig):
    name = "tasks_app"
    verbose_name = "Tasks"

    def ready(self):
        from tasks_app import checks, workers  # noqa: F401 registers the checks and the worker's signals

        # Celery alone would find each app's tasks.py in a worker only; the pages and schedules name tasks everywhere.
        current_app.autodiscover_tasks(force=True)
