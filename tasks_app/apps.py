from django.apps import AppConfig, apps
from django.core.exceptions import ImproperlyConfigured

from tasks_app.recording import current_app


class TasksConfig(AppConfig):
    name = "tasks_app"
    verbose_name = "Tasks"
    #: What its tables and its pages stand on.
    NEEDED = (
        "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.messages",
        "django_celery_results", "django_htmx",
    )  # fmt: skip

    def import_models(self) -> None:
        missing = [name for name in self.NEEDED if not apps.is_installed(name)]
        if missing:
            names = ", ".join(map(repr, missing))
            raise ImproperlyConfigured(f"The task console needs {names} in INSTALLED_APPS, before 'tasks_app'.")
        super().import_models()

    def ready(self) -> None:
        from tasks_app import checks, workers  # noqa: F401 registers the checks and the worker's signals

        # Celery alone would find each app's tasks.py in a worker only; the pages and schedules name tasks everywhere.
        current_app.autodiscover_tasks(force=True)
