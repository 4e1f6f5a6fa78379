"""What the commands of the terminal share: how they fail, who acts, which schedules are named, how times look."""

import difflib
import getpass
from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import AbstractBaseUser
from django.core.management import CommandError
from django.core.management.base import BaseCommand
from django.db import OperationalError
from django.db.models import QuerySet

from scheduling_app.models import Schedule
from tasks_app.conf import DATABASE_SETTING

#: Exit codes besides 0: something was refused; the command was asked for what is not there, or what cannot be.
REFUSED, WRONG = 1, 2
#: Names among which close ones are looked for.
SEARCHED = 10_000


class TerminalCommand(BaseCommand):
    """A command whose errors are a line each, also where there is no database."""

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except OperationalError as error:
            said = str(error).strip().splitlines()[0]
            raise CommandError(
                f"The database does not answer: {said}. Is {DATABASE_SETTING} right?", returncode=WRONG
            ) from error


def account() -> AbstractBaseUser:
    """Who stands in the history for what is done here: LOGIN@terminal, an account that nobody can log in with."""
    try:
        login = getpass.getuser()
    except (KeyError, OSError):  # in a container whose user has no name
        login = "nobody"
    users = get_user_model()
    name = {users.USERNAME_FIELD: f"{login}@terminal"}
    unusable = {"is_active": False, "password": make_password(None)}
    unusable = {name: value for name, value in unusable.items() if name in {each.name for each in users._meta.fields}}
    return users._default_manager.get_or_create(**name, defaults=unusable)[0]


def named(names: Sequence[str], schedules: QuerySet[Schedule] | None = None) -> list[Schedule]:
    """The schedules of these names, in their order. Raises CommandError where one is not there."""
    schedules = Schedule.objects.all() if schedules is None else schedules
    found = {schedule.name: schedule for schedule in schedules.filter(name__in=names)}
    for name in names:
        if name not in found:
            close = difflib.get_close_matches(name, schedules.values_list("name", flat=True)[:SEARCHED])
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else " `schedules list` names them all."
            raise CommandError(f"There is no schedule {name!r}.{hint}", returncode=WRONG)
    return [found[name] for name in names]


def shown(at: datetime | None, zone: tzinfo) -> str:
    """A time in a zone, with its offset; in 25 characters."""
    return f"{at.astimezone(zone).isoformat(' ', 'seconds') if at else '-':<25}"
