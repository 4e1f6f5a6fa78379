import sys
import warnings

from celery import current_app
from celery.bin.celery import main
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Celery's own command line (worker, beat, inspect, control, …) with this project's app."
    requires_system_checks = []

    def run_from_argv(self, argv):
        # Of pools that patch Python's sockets, and are refused (workers.UnsupportedPool).
        warnings.filterwarnings("ignore", "Celery module with .* imported before eventlet patched")
        sys.argv = ["celery", *argv[2:]]
        current_app.loader.import_default_modules()
        sys.exit(main())
