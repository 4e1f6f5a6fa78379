"""APScheduler in memory, whose jobs publish a Celery message each: `python -m benchmarks.peer.aps NUMBER DUE`.

DUE is the Unix time at which all of them are due. Without a misfire grace time: its default of one second drops most.
"""

import sys
import time
from datetime import UTC, datetime, timedelta

import django
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

import benchmarks.peer.celery  # noqa: F401
from benchmarks.project.tasks import noop


def publish(number: int) -> None:
    noop.apply_async(args=[number])


def main() -> None:
    django.setup()
    number, due = int(sys.argv[1]), datetime.fromtimestamp(float(sys.argv[2]), UTC)
    scheduler = BackgroundScheduler(timezone=UTC, job_defaults={"misfire_grace_time": None, "coalesce": True})
    interval = IntervalTrigger(hours=1, start_date=due, timezone=UTC)
    cron = CronTrigger(hour=due.hour, minute=due.minute, second=due.second, timezone=UTC)
    for n in range(number):
        scheduler.add_job(publish, cron if n % 2 else interval, args=[n], id=f"t{n}")
    scheduler.start()
    while due + timedelta(hours=1) > datetime.now(UTC):
        time.sleep(1)


if __name__ == "__main__":
    main()
