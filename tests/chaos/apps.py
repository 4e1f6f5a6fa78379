import os

from django.apps import AppConfig


class ChaosConfig(AppConfig):
    name = "tests.chaos"
    label = "chaos"

    def ready(self):
        if guard := os.environ.get("SABOTAGE"):
            from tests.chaos.sabotage import GUARDS

            GUARDS[guard].remove()
