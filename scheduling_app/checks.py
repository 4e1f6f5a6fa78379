from collections.abc import Collection
from typing import Any

from django.core.checks import CheckMessage, Tags, Warning, register
from django.db import DEFAULT_DB_ALIAS, OperationalError, ProgrammingError

from scheduling_app.sources import drift
from tasks_app.conf import DATABASE_SETTING


@register(Tags.database)
def schedules_would_run(app_configs: Any, databases: Collection[str] | None, **_: Any) -> list[CheckMessage]:
    """Each schedule's task must be here and take its arguments. (It needs `--database default`.)"""
    if DEFAULT_DB_ALIAS not in (databases or ()):
        return []
    try:
        found = drift.find()
    except ProgrammingError:  # none of its tables yet: `migrate` asks here, too
        return []
    except OperationalError as error:
        hint = f"Is {DATABASE_SETTING} right?"
        return [
            Warning(f"Schedules were not looked through: {str(error).strip()}", hint=hint, id="scheduling_app.W002")
        ]
    if not found:
        return []
    hint = "Edit them, or bring back what they need: until then each of their due times is recorded as invalid."
    return [Warning(str(found), hint=hint, id="scheduling_app.W001")]
