import gc
import logging
import os
import signal
import time

from django.core.management.base import BaseCommand
from django.db import OperationalError, ProgrammingError, connection

logger = logging.getLogger(__name__)

#: A scheduler that freezes within a transaction must not keep its rows from the others.
os.environ.setdefault("PGOPTIONS", "-c idle_in_transaction_session_timeout=15s -c lock_timeout=10s")


class Command(BaseCommand):
    help = "Fires the schedules. Any number of these share the work; SIGTERM ends one within two seconds."
    requires_system_checks = []
    stopping = False

    def handle(self, **_):
        from scheduling_app import drift
        from scheduling_app.manager import ApsSchedulerManager
        from tasks_app import checks

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        checks.say_found(logger)
        self.sync_declared()
        manager = ApsSchedulerManager()
        if not self.stopping:
            manager.start()
            gc.freeze()  # what is loaded by now stays: nothing of it is to be looked through again
            self.stdout.write("Scheduler started.")
            drift.watch.latest()  # it looks in a thread of its own, and logs what it finds
            while not self.stopping:
                time.sleep(0.2)
            manager.shutdown(wait=False)
            self.stdout.write("Scheduler stopped.")

    def stop(self, *_) -> None:
        # Not an Event: to set one in a signal's handler, while the same thread waits for it, can hang for ever.
        self.stopping = True

    def sync_declared(self) -> None:
        """Bring the table in line with what apps declare, once it is there. Until then a line says what is missing."""
        from scheduling_app.firing import fire_due
        from scheduling_app.sync import sync

        said = ""
        while not self.stopping:
            try:
                while fire_due():  # by the definitions that stood when it came due
                    pass
                if report := sync():
                    self.stdout.write(str(report))
                return
            except OperationalError as error:
                missing = f"Waiting for the database: {str(error).strip().splitlines()[0]}"
            except ProgrammingError:
                missing = "Waiting for `manage.py migrate`: the tables are not there yet."
            connection.close()
            if missing != said:
                self.stderr.write(said := missing)
            time.sleep(0.5)
