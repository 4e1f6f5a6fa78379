from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class SchedulingConfig(AppConfig):
    name = "scheduling_app"
    verbose_name = "Schedules"

    def ready(self):
        from scheduling_app import checks  # noqa: F401 registers them

        autodiscover_modules("schedules")
