from django.apps import AppConfig


class TaskconsoleConfig(AppConfig):
    name = "taskconsole"
    verbose_name = "Task console"

    def ready(self) -> None:
        from taskconsole import checks  # noqa: F401 registers them
