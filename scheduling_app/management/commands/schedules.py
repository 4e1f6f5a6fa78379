import json
from itertools import islice

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from scheduling_app.triggers import Cron, Date, Interval, Timing, TimingError, parse_every


class Command(BaseCommand):
    help = "Schedules in the terminal."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser):
        verbs = parser.add_subparsers(dest="verb", required=True)
        upcoming = verbs.add_parser("next", help="print the next times of a timing, in UTC")
        kind = upcoming.add_mutually_exclusive_group(required=True)
        kind.add_argument("expr", nargs="?", help="crontab expression, quoted: five fields, or six with seconds first")
        kind.add_argument("--every", metavar="90m", help="interval: 30s, 90m, 2h, 1d, 1w")
        kind.add_argument("--at", metavar="TIME", help="once, at an ISO 8601 time")
        upcoming.add_argument("--tz", default=settings.TIME_ZONE, help="IANA zone (default: %(default)s)")
        upcoming.add_argument("--after", metavar="ISO-TIME", help="list times later than this (default: now)")
        upcoming.add_argument("--count", type=int, default=5, help="how many (default: %(default)s)")
        upcoming.add_argument("--json", action="store_true", help="print a JSON list")

    def handle(self, *, verb, **options):
        try:
            self.print_next(**options)
        except TimingError as error:
            raise CommandError(f"{error.field}: {error}", returncode=2) from error

    def print_next(self, expr, every, at, tz, after, count, json: bool, **_):
        moment = _time(after, tz, "--after") if after else timezone.now()
        times = [
            time.strftime("%Y-%m-%dT%H:%M:%SZ")
            for time in islice(_timing(expr, every, at, tz, moment).times_after(moment), max(count, 0))
        ]
        self.stdout.write(_dump(times) if json else "\n".join(times))


def _timing(expr, every, at, tz, moment) -> Timing:
    if every:
        return Interval(*parse_every(every), anchor=moment, timezone=tz)
    if at:
        return Date(_time(at, tz, "--at"), timezone=tz)
    return Cron(expr, timezone=tz)


def _time(text: str, tz: str, option: str):
    """An ISO 8601 time; without an offset, in the zone `tz`."""
    try:
        time = parse_datetime(text)
    except ValueError:
        time = None
    if time is None:
        raise CommandError(f"{option}: {text!r} is not an ISO 8601 time, such as 2026-03-01T09:00:00Z.", returncode=2)
    return time if timezone.is_aware(time) else time.replace(tzinfo=Cron("* * * * *", timezone=tz).zone)


def _dump(times: list[str]) -> str:
    return json.dumps(times)
