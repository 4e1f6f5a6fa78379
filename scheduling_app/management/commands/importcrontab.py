import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.db import transaction

from scheduling_app.management.terminal import REFUSED, WRONG, TerminalCommand, account, shown
from scheduling_app.models import Schedule
from scheduling_app.sources.crontab_lines import Line, read
from scheduling_app.timing import clocks
from scheduling_app.timing.clocks import TimingError
from scheduling_app.timing.kinds import preview
from tasks_app import moments
from tasks_app.history import log
from tasks_app.storable import printable

#: Coming times that are printed of each line.
TIMES = 5


class Command(TerminalCommand):
    help = (
        "Makes schedules of a crontab's lines: of those that ask for an address by curl or wget, through the task "
        "http_request, and of those that run a management command of Django that RUN_COMMAND_ALLOWED names, through "
        "run_command. Without --apply it only shows what it would do, with the next times of each. Lines that do not "
        "fit are listed with the reason; the exit code is 1 then. Take what was imported out of the crontab."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", help="as `crontab -l` prints it; - for standard input")
        parser.add_argument("--apply", action="store_true", help="write the schedules, all in one transaction")
        parser.add_argument(
            "--user-field", action="store_true", help="a user precedes each command, as in /etc/crontab"
        )
        parser.add_argument(
            "--tz", default=settings.TIME_ZONE, help="the zone of the machine that it is from (default: %(default)s)"
        )

    def handle(self, *, file: str, apply: bool, user_field: bool, tz: str, **_: Any) -> None:
        try:
            clocks.zone(tz)
        except TimingError as error:
            raise CommandError(f"--tz: {error}", returncode=WRONG) from error
        lines = list(read(contents(file), tz, moments.now(), user_field))
        self.refused = 0
        with transaction.atomic():
            written = [schedule for line in lines if (schedule := self.import_line(line, apply))]
            if written:
                log(account(), written, "Imported from a crontab.")
        if not apply:
            self.stdout.write("Nothing was written. Add --apply to write it.")
        if self.refused:
            fit = "line does not fit" if self.refused == 1 else "lines do not fit"
            raise CommandError(f"{self.refused} {fit}, see above.", returncode=REFUSED)

    def import_line(self, line: Line, apply: bool) -> Schedule | None:
        """Show it; the schedule, where one was written."""
        if line.found is None:
            self.refused += line.is_command
            style = self.style.ERROR if line.is_command else str
            self.stdout.write(f"{style(f'line {line.number}: {line.reason}')}\n    {printable(line.text)}")
            return None
        schedule = line.found.schedule
        if Schedule.objects.filter(name=schedule.name).exists():
            self.stdout.write(f"line {line.number}: {schedule.name}: there is a schedule of that name; left alone.")
            return None
        timing = schedule.timing()
        self.stdout.write(self.style.SUCCESS(f"line {line.number}: {schedule.name}"))
        self.stdout.write(f"    {timing.describe()} ({schedule.cron}), {schedule.timezone}")
        self.stdout.write(f"    {schedule.task} {schedule.args} {schedule.kwargs or ''}".rstrip())
        for time in preview(timing, moments.now(), TIMES):
            self.stdout.write(f"    {shown(time.at, timing.zone)}  {time.note}".rstrip())
        for note in line.found.notes:
            self.stdout.write(self.style.WARNING(f"    {note}"))
        if not apply:
            return None
        schedule.save()
        return schedule


def contents(file: str) -> str:
    """A file, or standard input, with its line ends as they are: to cron a carriage return is none."""
    try:
        if file != "-":
            return Path(file).read_bytes().decode()
        return sys.stdin.buffer.read().decode() if hasattr(sys.stdin, "buffer") else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file} cannot be read: {error}.", returncode=WRONG) from error
