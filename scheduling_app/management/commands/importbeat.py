import sys
from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import Any

from django.apps import apps
from django.core.management.base import CommandError, CommandParser
from django.db import transaction

from scheduling_app.management.terminal import REFUSED, TerminalCommand, account, shown
from scheduling_app.models import Schedule
from scheduling_app.signatures import queue_of, routed_queue
from scheduling_app.sources import beat_times
from scheduling_app.sources.beat import BEAT_FIELDS, from_periodic_task
from scheduling_app.sources.found import Found, Over, Refused
from tasks_app import moments
from tasks_app.history import log

#: Differences around changes of the clocks that are printed of one task.
MOST_ROWS = 6


class Command(TerminalCommand):
    help = (
        "Makes schedules of django-celery-beat's periodic tasks. Without --apply it only shows what it would do: the "
        "next five times of each in both systems, and where they differ, also when the clocks change, and why. What a "
        "schedule cannot say exactly is refused, and stays with Beat; the exit code is 1 then. As with Beat, a missed "
        "run is made up for however late, and what waits for a worker does not expire."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--apply", action="store_true", help="write the schedules, all in one transaction")
        parser.add_argument(
            "--disable-imported",
            action="store_true",
            help="switch the imported tasks off in Beat, in the same transaction, so that nothing fires twice",
        )
        parser.add_argument(
            "--update",
            action="store_true",
            help="overwrite schedules of the same names by what Beat has; whether they are on, and policies that Beat "
            "does not have, stay as they are",
        )

        queues = parser.add_mutually_exclusive_group()
        queues.add_argument(
            "--keep-queues",
            dest="moves",
            action="store_false",
            default=None,
            help="tasks that name no queue stay in the one to which Beat sends them; the schedules name it",
        )
        queues.add_argument(
            "--move-queues", dest="moves", action="store_true", help="they go to the queue of schedules (CRON_QUEUE)"
        )

    def handle(self, *, apply: bool, disable_imported: bool, update: bool, moves: bool | None, **_: Any) -> None:
        if not apps.is_installed("django_celery_beat"):
            raise CommandError("django_celery_beat is not in INSTALLED_APPS, so there are no tables to import from.")
        self.imported: list[int] = []
        self.moves, self.moving = moves, dict[str, tuple[str, str]]()
        self.counts = {"new": 0, "updated": 0, "there already": 0, "over": 0, "refused": 0}
        with transaction.atomic():
            self.import_all(moments.now(), apply, update)
            if apply and self.moving and moves is None:
                self.ask_about_queues()
            if apply and disable_imported:
                self.disable()
        self.conclude(apply, disable_imported)

    def import_all(self, now: datetime, apply: bool, update: bool) -> None:
        from django_celery_beat.models import PeriodicTask

        tasks = PeriodicTask.objects.select_related("interval", "crontab", "clocked", "solar").order_by("name")
        there = {schedule.name: schedule for schedule in Schedule.objects.filter(name__in=tasks.values("name"))}
        for task in tasks:
            schedule = there.get(task.name)
            try:
                if schedule and schedule.owner:
                    raise Refused(f"App {schedule.owner} declares a schedule of that name. Rename one of them.")
                found = from_periodic_task(task, now)
                self.settle_queue(found)
                compared = beat_times.compare(task, found, now)
            except Refused as error:
                self.count("over" if isinstance(error, Over) else "refused", task, str(error))
                continue
            except Exception as error:  # of Celery's or Beat's own classes: one row is no reason to import none
                self.count("refused", task, f"{type(error).__name__}: {error}")
                continue
            if schedule and not update:
                self.count("there already", task, "A schedule has that name; --update would overwrite it.")
                continue
            self.count("updated" if schedule else "new", task, self.described(found.schedule))
            self.report(task, found, compared, now)
            self.imported.append(task.pk)
            if apply:
                self.write(found.schedule, schedule)

    def settle_queue(self, found: Found) -> None:
        """Where Beat and a schedule send it to two queues, name that of Beat's, unless it is to move."""
        schedule = found.schedule
        if schedule.queue:
            return
        beats, ours = routed_queue(schedule.task, {"periodic_task_name": schedule.name}), queue_of(schedule)
        if beats == ours:
            return
        if self.moves is False:
            schedule.queue = beats
            return
        self.moving[schedule.name] = (beats, ours)
        found.notes.append(f"Beat sends it to the queue {beats}; as a schedule it goes to {ours}.")

    def ask_about_queues(self) -> None:
        """Move what goes to another queue than before only where somebody says so; what is written is undone else."""
        ways = sorted({f"from {beats} to {ours}" for beats, ours in self.moving.values()})
        said = f"{len(self.moving)} would move {', '.join(ways)}"
        if sys.stdin.isatty() and input(f"{said}. Do workers read that queue, and shall they? [y/N] ").lower() == "y":
            return
        raise CommandError(f"{said}. Add --keep-queues, or --move-queues. Nothing was written.", returncode=REFUSED)

    def count(self, what: str, task: Any, said: str) -> None:
        self.counts[what] += 1
        style = {"refused": self.style.ERROR, "new": self.style.SUCCESS, "updated": self.style.SUCCESS}
        self.stdout.write(f"{style.get(what, str)(what)}: {task.name}: {said}")

    def described(self, schedule: Schedule) -> str:
        written = f" ({schedule.cron})" if schedule.cron else ""
        paused = "" if schedule.enabled else ", paused"
        return f"{schedule.timing().describe()}{written}, {schedule.timezone}{paused}, task {schedule.task}"

    def report(self, task: Any, found: Found, compared: beat_times.Parity, now: datetime) -> None:
        zone = found.schedule.timing().zone
        self.stdout.write(f"    {'Beat':<27}here")
        self.print_rows(compared.next, zone)
        if compared.at_changes:
            self.stdout.write("    and when the clocks change:")
            self.print_rows(compared.at_changes[:MOST_ROWS], zone)
        if len(compared.at_changes) > MOST_ROWS:
            self.stdout.write(f"    … and {len(compared.at_changes) - MOST_ROWS} more")
        reasons = dict.fromkeys(row.why for row in (*compared.next, *compared.at_changes) if row.why)
        for note in (*reasons, *found.notes, *beat_times.notes_on(task, now)):
            self.stdout.write(self.style.WARNING(f"    {note}"))

    def print_rows(self, rows: Sequence[beat_times.Row], zone: tzinfo) -> None:
        for row in rows:
            times = [shown(row.at if there else None, zone) for there in (row.in_beat, row.here)]
            self.stdout.write(f"    {'  '.join(times)}{'  differs' if row.why else ''}".rstrip())

    def write(self, found: Schedule, schedule: Schedule | None) -> None:
        if schedule is None:
            found.save()
            log(account(), [found], "Imported from Celery Beat.")
            return
        for name in BEAT_FIELDS:
            setattr(schedule, name, getattr(found, name))
        schedule.save(update_fields=BEAT_FIELDS)
        log(account(), [schedule], "Updated from Celery Beat.")

    def disable(self) -> None:
        from django_celery_beat.models import PeriodicTask, PeriodicTasks

        PeriodicTask.objects.filter(pk__in=self.imported).update(enabled=False, last_run_at=None)
        PeriodicTasks.update_changed()  # by which a running Beat sees it, within five seconds

    def conclude(self, apply: bool, disable_imported: bool) -> None:
        self.stdout.write(
            ", ".join(f"{number} {what}" for what, number in self.counts.items() if number) or "No tasks."
        )
        if not apply:
            self.stdout.write("Nothing was written. Add --apply to write it.")
        if self.imported and not disable_imported:
            fires, again = ("fires", " --update") if apply else ("would still fire", "")
            how = f"stop it wherever it runs, or run this with --apply{again} --disable-imported"
            self.stderr.write(self.style.WARNING(f"Beat {fires} these tasks too: {how}."))
        if self.counts["refused"]:
            raise CommandError(f"{self.counts['refused']} refused, see above: they stay with Beat.", returncode=REFUSED)
