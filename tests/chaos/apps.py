import os

from django.apps import AppConfig


class ChaosConfig(AppConfig):
    name = "tests.chaos"
    label = "chaos"

    def ready(self):
        if guard := os.environ.get("SABOTAGE"):
            from tests.chaos import sabotage

            sabotage.GUARDS[guard].remove()
