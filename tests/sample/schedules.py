"""What this app declares, as its two versions have it; nothing where SAMPLE_SCHEDULES names none."""

import os

from scheduling_app.declared import schedule
from tests.sample.tasks import echo, noop

VERSION = os.environ.get("SAMPLE_SCHEDULES")


def declare(*args, **options) -> None:
    """Declare one of this app, as this module does itself."""
    schedule(*args, **options)


if VERSION == "1":
    schedule("sample yearly", echo, cron="0 0 1 1 *", timezone="Europe/Berlin", args=["happy new year"])
    schedule("sample each second", noop, every="1s")
    schedule("sample over soon", "sample.noop", every="1w")

if VERSION == "2":
    schedule("sample new year", echo, cron="0 0 1 1 *", args=["happy new year"], renamed_from="sample yearly")
    schedule("sample each second", noop, every="1s")

if VERSION == "bad":
    schedule("sample bad", noop, cron="61 * * * *")
