"""What people did, in the history that Django's admin shows."""

from collections.abc import Iterable

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import Model

#: Who does something, as `request.user` is typed. (Pages and the admin let in only who has signed in.)
AnyUser = AbstractBaseUser | AnonymousUser


def log(user: AnyUser, rows: Iterable[Model], words: str) -> None:
    """Write what someone did to these rows into their history, in the current transaction."""
    LogEntry.objects.log_actions(user.pk, rows, CHANGE, change_message=words)  # type: ignore[arg-type]
