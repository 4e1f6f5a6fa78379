import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.utils.module_loading import autodiscover_modules

from tasks_app import broker, moments, queues
from tasks_app.doctor import INVARIANTS, examine
from tasks_app.health import check_celery_health
from tasks_app.recording import current_app

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if not match:
        raise CommandError(f"--since: {text!r} is not a number and m, h or d, such as 24h.")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


class Command(BaseCommand):
    help = "Says whether everything that the console stands on answers; with --ledger, whether its records add up."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--ledger", action="store_true", help="look for records that break an invariant; changes nothing"
        )
        parser.add_argument(
            "--since",
            default="24h",
            metavar="24h",
            help="how far back to look at what has ended (default: %(default)s)",
        )

    def handle(self, *, ledger: bool, since: str, **_: Any) -> None:
        try:
            healthy = self.examine_ledger(duration(since)) if ledger else self.examine_parts()
        except DatabaseError as error:
            raise CommandError(f"The database does not answer: {str(error).strip()}") from error
        if not healthy:
            sys.exit(1)

    def examine_ledger(self, since: timedelta) -> bool:
        autodiscover_modules("doctor")
        healthy = True
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            for each in INVARIANTS:
                found = examine(each, moments.now() - since)
                self.report(not found.count, each.name, each.sentence)
                if found.count:
                    healthy = False
                    self.stdout.write(f"     {found.count} violate it. {each.advice}")
                    for offender in found.offenders:
                        self.stdout.write(f"     - {offender}")
        return healthy

    def examine_parts(self) -> bool:
        healthy = True
        for name, trouble in self.parts():
            self.report(not trouble, name, trouble)
            healthy &= not trouble
        for words in broker.not_promised(current_app):
            self.stdout.write(f"{self.style.WARNING('note')}  not promised with this broker: {words}")
        return healthy

    def parts(self) -> Iterator[tuple[str, str]]:
        connection.ensure_connection()
        yield "the database answers", ""
        executor = MigrationExecutor(connection)
        pending = executor.migration_plan(executor.loader.graph.leaf_nodes())
        yield "its tables are up to date", "Run `manage.py migrate`." if pending else ""
        yield from (("queues are read", str(each)) for each in ([] if pending else queues.unread()))
        yield "the broker answers", check_celery_health().detail

    def report(self, good: bool, name: str, words: str) -> None:
        mark = self.style.SUCCESS("ok  ") if good else self.style.ERROR("BAD ")
        self.stdout.write(f"{mark} {name}{': ' if words else ''}{words}")
