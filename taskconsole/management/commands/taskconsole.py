import sys
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from kombu.exceptions import OperationalError

from taskconsole import install
from tasks_app import draining
from tasks_app.models import TaskRecord

#: Seconds between two looks at what is left.
LOOK = 1.0
#: Tasks that were not handed over that are named.
SHOWN = 20


class Command(BaseCommand):
    help = "Brings the console into a project, and out of it again."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True)
        commands.add_parser(
            "install",
            help="print what the project lacks, as a diff, and exit with 1 if it lacks anything; changes nothing "
            "(before the console is in INSTALLED_APPS: `python -m taskconsole install`)",
        )
        drain = commands.add_parser(
            "drain", help="wait until nothing is left that only the console knows: countdowns, retries, limited tasks"
        )
        drain.add_argument("--all", action="store_true", help="wait for what is queued and running, too")
        drain.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after so long, with exit code 1")
        drain.add_argument(
            "--hand-over",
            action="store_true",
            help="do not wait: give these tasks to plain Celery, with their ETAs, and delete their rows; first stop "
            "whatever submits more",
        )

    def handle(self, *, command: str, **options: Any) -> None:
        if command == "install":
            self.install()
        elif options["hand_over"]:
            self.hand_over()
        else:
            self.drain(options["all"], options["timeout"])

    def install(self) -> None:
        changes = install.missing()
        for change in changes:
            self.stdout.write(change.diff(), ending="")
        if changes:
            self.stderr.write("Apply this (it is a diff: `git apply`), and run `manage.py migrate`.")
            sys.exit(1)
        self.stdout.write("The console is installed. `manage.py check` says what else there is to know.")

    def drain(self, everything: bool, timeout: float | None) -> None:
        give_up_at = time.monotonic() + timeout if timeout is not None else float("inf")
        said = ""
        while left := draining.left(everything):
            words = ", ".join(f"{count} {phase}" for phase, count in left.items())
            if words != said:
                self.stdout.write(f"Left: {words}.")
                said = words
            if time.monotonic() > give_up_at:
                raise CommandError(f"Not empty after {timeout:g} s: {words} left.")
            time.sleep(LOOK)
        self.stdout.write("Nothing is left.")

    def hand_over(self) -> None:
        after, handed, kept = 0, 0, 0
        try:
            while (found := draining.hand_over(after)) is not None:
                after, why_not = found
                handed, kept = handed + (not why_not), kept + bool(why_not)
                if why_not and kept <= SHOWN:
                    self.stderr.write(f"Kept: task {TaskRecord.objects.get(pk=after).task_id}: {why_not}.")
        except OperationalError as error:
            raise CommandError(f"The broker does not answer, {handed} were handed over: {error}. Try again.") from error
        self.stdout.write(f"{handed} handed over to plain Celery.")
        if kept:
            raise CommandError(f"{kept} were kept, see above. `drain` waits for those that can still run here.")
