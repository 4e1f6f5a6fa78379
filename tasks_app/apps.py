from django.apps import AppConfig


class TasksConfig(AppConfig):
    name = "tasks_app"
    verbose_name = "Tasks"

    def ready(self):
        from tasks_app import checks, workers  # noqa: F401 registers the checks and the worker's signals
