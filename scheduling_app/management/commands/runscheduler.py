import gc
import logging
import math
import os
import signal
import time
from contextlib import suppress
from typing import Any

from django.core.management.base import BaseCommand
from django.db import Error, connection

#: A scheduler that freezes within a transaction must not keep its rows from the others.
os.environ.setdefault("PGOPTIONS", "-c idle_in_transaction_session_timeout=15s -c lock_timeout=10s")

logger = logging.getLogger(__name__)

#: SQLSTATE of a table and of a column that is not there.
UNDEFINED = ("42P01", "42703")
#: Seconds until declared schedules are brought into line again, where the database refused that.
SYNC_AGAIN = 30


class Command(BaseCommand):
    help = "Fires the schedules. Any number of these share the work; SIGTERM ends one within two seconds."
    requires_system_checks = []
    stopping = False
    #: When to bring the table in line again, by time.monotonic(), where that failed; and what was said of it.
    sync_at, said = 0.0, ""

    def handle(self, **_: Any) -> None:
        from scheduling_app.manager import ApsSchedulerManager
        from scheduling_app.sources import drift
        from tasks_app import checks

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        checks.say_found(logger)
        self.prepare()
        manager = ApsSchedulerManager()
        if not self.stopping:
            manager.start()
            gc.freeze()  # what is loaded by now stays: nothing of it is to be looked through again
            self.stdout.write("Scheduler started.")
            drift.watch.latest()  # it looks in a thread of its own, and logs what it finds
            while not self.stopping:
                time.sleep(0.2)
                if time.monotonic() > self.sync_at:
                    self.sync_again()
            manager.shutdown(wait=False)
            self.stdout.write("Scheduler stopped.")

    def stop(self, *_: Any) -> None:
        # Not an Event: to set one in a signal's handler, while the same thread waits for it, can hang for ever.
        self.stopping = True

    def prepare(self) -> None:
        """Wait for the database and its tables, and say so; then fire, and follow what apps declare."""
        said = ""
        while not self.stopping and (missing := self.missing()):
            connection.close()
            if missing != said:
                self.stderr.write(said := missing)
            time.sleep(0.5)

    def missing(self) -> str:
        """What must be there before anything can fire, and is not; "" once that has begun."""
        from scheduling_app.ledger.firing import fire_due
        from scheduling_app.outages import is_away

        if missing := self.missing_tables():
            return missing
        try:
            while fire_due():  # by the definitions that stood when it came due
                pass
            self.sync()
        except Exception as error:
            if is_away(error):
                return f"Waiting for the database: {first_line(error)}"
            logger.exception("What is due could not be looked through at the start.")
        return ""

    def missing_tables(self) -> str:
        from scheduling_app.models import Calendar, Schedule, ScheduleRun
        from scheduling_app.outages import sqlstate

        try:
            for model in (Calendar, Schedule, ScheduleRun):
                list(model.objects.order_by()[:1])
        except Error as error:
            if sqlstate(error) in UNDEFINED:
                return "Waiting for `manage.py migrate`: the tables are not there yet."
            return f"Waiting for the database: {first_line(error)}"
        return ""

    def sync_again(self) -> None:
        self.sync_at = time.monotonic() + SYNC_AGAIN
        with suppress(Error):  # away: it is looked for again
            self.sync()
        connection.close()

    def sync(self) -> None:
        """Bring the table in line with what apps declare. What the database refuses is said, and tried again later:
        all others fire meanwhile."""
        from scheduling_app.outages import is_away
        from scheduling_app.sources.sync import sync

        try:
            report = sync()
        except Error as error:
            if is_away(error):
                raise
            said = f"Schedules in code are as they were: {first_line(error)}"
        else:
            said = str(report) if report else ""
            if not report.failed:
                self.sync_at = math.inf
        if said and said != self.said:
            self.stdout.write(said)
        self.said = said
        if self.sync_at != math.inf:
            self.sync_at = time.monotonic() + SYNC_AGAIN


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
