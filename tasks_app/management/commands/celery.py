import sys
import warnings

from celery.bin.celery import main
from django.core.management.base import BaseCommand

from tasks_app.recording import current_app


class Command(BaseCommand):
    help = "Celery's own command line (worker, beat, inspect, control, …) with this project's app."
    requires_system_checks = []

    def run_from_argv(self, argv: list[str]) -> None:
        # Of pools that patch Python's sockets, and are refused (workers.UnsupportedPool).
        warnings.filterwarnings("ignore", "Celery module with .* imported before eventlet patched")
        sys.argv = ["celery", *argv[2:]]
        current_app.set_current()
        current_app.loader.import_default_modules()
        sys.exit(main())
