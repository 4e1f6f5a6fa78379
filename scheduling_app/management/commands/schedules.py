import json
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from scheduling_app import actions
from scheduling_app.form_fields import placed
from scheduling_app.management.terminal import REFUSED, WRONG, TerminalCommand, account, named, shown
from scheduling_app.models import Calendar, Schedule
from scheduling_app.sources import import_export
from scheduling_app.states import ON, PROBLEM, STATES, ScheduleRow
from scheduling_app.timing import clocks
from scheduling_app.timing.clocks import TimingError
from scheduling_app.timing.kinds import Cron, Date, Interval, Timing, parse_every
from tasks_app import moments

#: Times that are printed at once.
MOST_TIMES = 10_000
_MARKS = {"add": "+", "change": "~", "remove": "-"}


class Command(TerminalCommand):
    help = (
        "Schedules in the terminal. The history names you as LOGIN@terminal. "
        "Exit codes: 0 done, 1 refused, 2 asked for what is not there or cannot be."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        listed = verbs.add_parser("list", help="list the schedules: state, next time, name and when")
        listed.add_argument("--state", choices=STATES, help="only those in this state")
        listed.add_argument("--json", action="store_true", help="print a JSON list")
        self.add_next(
            verbs.add_parser("next", help="print the next times of a schedule, of a timing, or of all, in UTC")
        )
        for verb, said in (("run", "run schedules once, now"), ("pause", "pause schedules"), ("resume", "resume them")):
            acting = verbs.add_parser(verb, help=said)
            acting.add_argument("names", nargs="+", metavar="NAME")
        acting.add_argument(
            "--missed",
            choices=actions.Missed.values,
            default=actions.Missed.NONE,
            help="which of the times that passed while it was paused run now (default: %(default)s)",
        )
        exporting = verbs.add_parser("export", help="write schedules and calendars as JSON, for version control")
        exporting.add_argument("file", nargs="?", default="-", help="where to (default: standard output)")
        exporting.add_argument(
            "--names", nargs="+", metavar="NAME", help="only these, and the calendars that they name"
        )
        importing = verbs.add_parser("import", help="show what a file of an export would change, or change it")
        importing.add_argument("file", help="- for standard input")
        importing.add_argument("--apply", action="store_true", help="write it, all in one transaction")
        importing.add_argument("--prune", action="store_true", help="remove what is not in the file, runs included")

    def add_next(self, parser: CommandParser) -> None:
        kind = parser.add_mutually_exclusive_group()
        kind.add_argument("what", nargs="?", metavar="NAME|EXPR", help="a schedule, or a quoted crontab expression")
        kind.add_argument("--every", metavar="90m", help="interval: 30s, 90m, 2h, 1d, 1w")
        kind.add_argument("--at", metavar="TIME", help="once, at an ISO 8601 time")
        parser.add_argument("--tz", default=settings.TIME_ZONE, help="IANA zone (default: %(default)s)")
        parser.add_argument("--after", metavar="ISO-TIME", help="list times later than this (default: now)")
        parser.add_argument("--count", type=int, default=5, help="how many (default: %(default)s)")
        parser.add_argument("--json", action="store_true", help="print a JSON list")

    def handle(self, *, verb: str, **options: Any) -> None:
        try:
            getattr(self, f"do_{verb}")(**options)
        except TimingError as error:
            raise CommandError(f"{error.field}: {error}", returncode=WRONG) from error

    def do_list(self, *, state: str | None, json: bool, **_: Any) -> None:
        schedules = Schedule.objects.filter(STATES[state]) if state else Schedule.objects.all()
        rows = (ScheduleRow(schedule) for schedule in schedules.order_by("name").iterator())
        if json:
            self.write_json([described(row) for row in rows])
            return
        for row in rows:
            schedule, problem = row.schedule, f"  {row.schedule.problem}" if row.state == PROBLEM else ""
            at = shown(row.next_run_at, UTC)
            self.stdout.write(f"{row.state_word:<13}  {at}  {schedule.name}: {row.words}, {schedule.timezone}{problem}")

    def do_next(
        self, *, what: str | None, every: str | None, at: str | None, tz: str, after: str | None, count: int,
        json: bool, **_: Any,
    ) -> None:  # fmt: skip
        moment, count = self.time(after, tz, "--after") if after else moments.now(), max(count, 0)
        if count > MOST_TIMES:
            raise CommandError(f"--count: {MOST_TIMES:,} at most.", returncode=WRONG)
        if what is every is at is None:
            self.print_next_of_all(moment, count, json)
            return
        if schedule := self.named(what):
            timing: Timing = schedule.timing()
            if schedule.max_runs is not None:
                count = min(count, max(schedule.max_runs - schedule.fired_count, 0))
            if not schedule.enabled:
                self.stderr.write(self.style.WARNING(f"{schedule.name} is paused: it would run then if it were on."))
        else:
            timing = self.timing(what, every, at, tz, moment)
        times = [_utc(time) for time in islice(timing.times_after(moment), count)]
        self.write_json(times) if json else self.write_lines(times)

    def named(self, what: str | None) -> Schedule | None:
        """The schedule of this name; None where it is an expression, for which no database is needed."""
        if what is None:
            return None
        if is_expression(what):
            with suppress(Exception):
                return Schedule.objects.filter(name=what).first()
            return None
        return named([what])[0]

    def timing(self, expr: str | None, every: str | None, at: str | None, tz: str, moment: datetime) -> Timing:
        if every:
            return Interval(*parse_every(every), anchor=moment, timezone=tz)
        if at:
            return Date(self.time(at, tz, "--at"), timezone=tz)
        return Cron(expr or "", timezone=tz)

    def time(self, text: str, tz: str, option: str) -> datetime:
        """An ISO 8601 time; without an offset, in the zone `tz`, where it must be one."""
        try:
            time = parse_datetime(text)
        except ValueError:
            time = None
        if time is None:
            said = f"{option}: {text!r} is not an ISO 8601 time, such as 2026-03-01T09:00:00Z."
            raise CommandError(said, returncode=WRONG)
        zone = clocks.zone(tz)
        if timezone.is_aware(time):
            return time
        try:
            found = placed(time, zone)
        except ValidationError as error:
            raise CommandError(f"{option}: {error.messages[0]}", returncode=WRONG) from error
        if clocks.turn(zone, time):
            said = f"{option}: the clocks show {time:%H:%M} twice on that day; read as the first: {found.isoformat()}."
            self.stderr.write(self.style.WARNING(said))
        return found

    def print_next_of_all(self, moment: datetime, count: int, json: bool) -> None:
        schedules = Schedule.objects.filter(STATES[ON], next_fire_at__gt=moment).order_by("next_fire_at")
        rows = [
            {"at": _utc(at), "name": name} for at, name in schedules.values_list("next_fire_at", "name")[:count] if at
        ]
        self.write_json(rows) if json else self.write_lines(f"{row['at']}  {row['name']}" for row in rows)

    def do_run(self, *, names: Sequence[str], **_: Any) -> None:
        user, refused = account(), False
        for schedule in named(names):
            run = actions.run_one(schedule, user)
            refused |= run.record_id is None
            said = f"started, task {run.record_id}" if run.record_id else f"not started: {run.detail}"
            self.stdout.write(f"{schedule.name}: {said}")
        if refused:
            sys.exit(REFUSED)

    def do_pause(self, *, names: Sequence[str], **_: Any) -> None:
        self.stdout.write(actions.pause(_queryset(names), account()))

    def do_resume(self, *, names: Sequence[str], missed: str, **_: Any) -> None:
        self.stdout.write(actions.resume(_queryset(names), account(), missed))

    def do_export(self, *, file: str, names: Sequence[str] | None, **_: Any) -> None:
        schedules, calendars = Schedule.objects.filter(owner=""), Calendar.objects.all()
        if names:
            chosen = named(names, schedules)
            schedules = schedules.filter(pk__in=[schedule.pk for schedule in chosen])
            calendars = calendars.filter(pk__in=[schedule.blackout_id for schedule in chosen])
        text = import_export.dump(schedules, calendars)
        if file == "-":
            self.stdout.write(text, ending="")
            return
        try:
            Path(file).write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise CommandError(f"{file} cannot be written: {error}.", returncode=WRONG) from error

    def do_import(self, *, file: str, apply: bool, prune: bool, **_: Any) -> None:
        try:
            text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{file} cannot be read: {error}.", returncode=WRONG) from error
        try:
            with transaction.atomic():
                changes = import_export.bring(import_export.load(text), account(), prune)
                transaction.set_rollback(not apply)
        except import_export.ExchangeError as error:
            raise CommandError(f"Nothing was written.\n{error}", returncode=REFUSED) from error
        self.print_changes(changes)
        if not apply:
            self.stdout.write("Nothing was written. Add --apply to write it.")

    def print_changes(self, changes: Sequence[import_export.Change]) -> None:
        for change in changes:
            if change.what in _MARKS:
                runs = f", and its runs: {change.runs}" if change.runs else ""
                self.stdout.write(f"{_MARKS[change.what]} {change.called}{runs}")
            for name, values in change.fields.items():
                before, after = (json.dumps(value, ensure_ascii=False) for value in values)
                self.stdout.write(f"    {name}: {before} → {after}")
        words = {"add": "added", "change": "changed", "remove": "removed", "keep": "unchanged"}
        counts = {word: sum(change.what == what for change in changes) for what, word in words.items()}
        self.stdout.write(", ".join(f"{number} {word}" for word, number in counts.items()) + ".")

    def write_lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.stdout.write(line)

    def write_json(self, value: Any) -> None:
        self.stdout.write(json.dumps(value))


def described(row: ScheduleRow) -> dict[str, Any]:
    schedule = row.schedule
    return {
        "name": schedule.name,
        "state": row.state,
        "task": schedule.task,
        "when": row.words,
        "timezone": schedule.timezone,
        "queue": row.queue,
        "next_run_at": row.next_run_at and _utc(row.next_run_at),
        "last_run_at": row.last_run_at and _utc(row.last_run_at),
        "note": schedule.note,
        "problem": schedule.problem,
    }


def is_expression(text: str) -> bool:
    """Whether it was meant as a crontab expression, right or wrong, and not as a name."""
    return bool(re.match(r"@|.*\*|\d\S*(\s+\S+){4,5}$", text))


def _queryset(names: Sequence[str]) -> QuerySet[Schedule]:
    return Schedule.objects.filter(pk__in=[schedule.pk for schedule in named(names)])


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
