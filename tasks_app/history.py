"""What people did, in the history that Django's admin shows."""

from collections.abc import Iterable

from django.contrib.admin.models import CHANGE, LogEntry
from django.db.models import Model


def log(user, rows: Iterable[Model], words: str) -> None:
    """Write what someone did to these rows into their history, in the current transaction."""
    LogEntry.objects.log_actions(user.pk, rows, CHANGE, change_message=words)
