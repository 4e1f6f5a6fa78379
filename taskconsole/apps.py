from django.apps import AppConfig


class TaskconsoleConfig(AppConfig):
    name = "taskconsole"
    verbose_name = "Task console"
