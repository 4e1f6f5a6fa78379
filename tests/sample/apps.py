import os

from django.apps import AppConfig


class SampleConfig(AppConfig):
    name = "tests.sample"
    label = "sample"

    def ready(self):
        if os.environ.get("SAMPLE_INSTRUMENTED"):
            from tests.sample.instrumented import instrument

            instrument()
