from django.apps import AppConfig
from django.db.models.signals import pre_save
from django.utils.module_loading import autodiscover_modules


class SchedulingConfig(AppConfig):
    name = "scheduling_app"
    verbose_name = "Schedules"

    def ready(self) -> None:
        from scheduling_app import checks  # noqa: F401 registers them
        from scheduling_app.sources.rules import check_saved

        pre_save.connect(check_saved, self.get_model("Schedule"))

        autodiscover_modules("schedules")
