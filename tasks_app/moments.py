"""Points in time, aware and in UTC, whatever a project's USE_TZ, TIME_ZONE and connection say.

Django's own would be naive where USE_TZ is off, and in the connection's zone where that has one: two such times of one
zone are subtracted by their clocks, over a change of these too, and one of a repeated hour equals none of another zone.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import functions
from django.utils import timezone


def now() -> datetime:
    return datetime.now(UTC)


class MomentField(models.DateTimeField):
    """A DateTimeField whose values come as above."""

    def get_db_converters(self, connection: Any) -> list[Any]:
        is_so = settings.USE_TZ and connection.timezone_name == "UTC"
        return [] if is_so else [_in_utc]

    def deconstruct(self) -> tuple[str, str, Sequence[Any], dict[str, Any]]:
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.DateTimeField", args, kwargs


class Now(functions.Now):
    """The database's time, where it is to be read."""

    output_field = MomentField()


def _in_utc(value: datetime | None, expression: Any, connection: Any) -> datetime | None:
    if value is None:
        return None
    if value.tzinfo is None:
        value = timezone.make_aware(value, timezone.get_default_timezone())  # as Django has set the connection's
    return value.astimezone(UTC)
