import os
import signal
import time

from django.core.management.base import BaseCommand
from django.db import OperationalError, ProgrammingError, connection

#: A scheduler that freezes within a transaction must not keep its rows from the others.
os.environ.setdefault("PGOPTIONS", "-c idle_in_transaction_session_timeout=15s -c lock_timeout=10s")


class Command(BaseCommand):
    help = "Fires the schedules. Any number of these share the work; SIGTERM ends one within two seconds."
    requires_system_checks = []
    stopping = False

    def handle(self, **_):
        from scheduling_app.manager import ApsSchedulerManager

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        self.wait_for_tables()
        manager = ApsSchedulerManager()
        if not self.stopping:
            manager.start()
            self.stdout.write("Scheduler started.")
            while not self.stopping:
                time.sleep(0.2)
            manager.shutdown(wait=False)
            self.stdout.write("Scheduler stopped.")

    def stop(self, *_) -> None:
        # Not an Event: to set one in a signal's handler, while the same thread waits for it, can hang for ever.
        self.stopping = True

    def wait_for_tables(self) -> None:
        """Return when the schedules can be read; meanwhile one line says what is missing."""
        from scheduling_app.models import Schedule

        said = ""
        while not self.stopping:
            try:
                Schedule.objects.exists()
                return
            except OperationalError as error:
                missing = f"Waiting for the database: {str(error).strip().splitlines()[0]}"
            except ProgrammingError:
                missing = "Waiting for `manage.py migrate`: the tables are not there yet."
            connection.close()
            if missing != said:
                self.stderr.write(said := missing)
            time.sleep(0.5)
