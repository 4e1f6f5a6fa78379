from importlib import import_module
from importlib.resources import files

from django.db import migrations, models

# What no scheduler and no page could read, decide by, or count on is refused, by whatever road it comes: no row that
# came by SQL may keep the others from being fired. A row that holds such a thing now gets the default; it never fired.
_TIMES = {
    "scheduling_app_schedule": ("created_at", "next_fire_at", "changed_at", "last_fire_at", "switched_at"),
    "scheduling_app_backfill": ("start_at", "end_at", "created_at", "finished_at"),
    "scheduling_app_schedulerun": ("scheduled_for", "fired_at"),
}
_NULLABLE = ("next_fire_at", "changed_at", "last_fire_at", "finished_at")
_RANGE = "'0001-01-02' AND '9999-12-30'"
_CHOICES = {
    ("scheduling_app_schedule", "catch_up"): ("latest", "all", "none"),
    ("scheduling_app_schedule", "overlap"): ("allow", "skip", "queue_one", "queue_all", "cancel"),
    ("scheduling_app_schedule", "blackout_action"): ("skip", "defer"),
    ("scheduling_app_backfill", "which"): ("missing", "failed", "all"),
    ("scheduling_app_backfill", "state"): ("cancelled", "running", "paused", "finished"),
}
_RUN_CHOICES = {
    "outcome": ("fired", "skipped", "waiting"),
    "reason": (
        *("invalid", "due", "late", "caught up", "manual", "backfill", "misfire", "overlap", "blackout", "paused"),
        "limit",
    ),
}


def _among(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(map(repr, values))})"


def _statements() -> tuple[list[str], list[str]]:
    """What mends and then refuses, and what takes that back."""
    mend, refuse, undo = [], [], []

    def add(table: str, name: str, condition: str) -> None:
        refuse.append(f"ALTER TABLE {table} ADD CONSTRAINT {name} CHECK ({condition});")
        undo.append(f"ALTER TABLE {table} DROP CONSTRAINT {name};")

    for table, columns in _TIMES.items():
        for column in columns:
            value = "NULL" if column in _NULLABLE else "clock_timestamp()"
            mend.append(f"UPDATE {table} SET {column} = {value} WHERE NOT {column} BETWEEN {_RANGE};")
        condition = " AND ".join(f"{column} BETWEEN {_RANGE}" for column in columns)  # true of NULL
        add(table, f"{table.removeprefix('scheduling_app_')}_own_times_in_range", condition)
    for (table, column), values in _CHOICES.items():
        mend.append(f"UPDATE {table} SET {column} = '{values[0]}' WHERE NOT {_among(column, values)};")
        add(table, f"{table.removeprefix('scheduling_app_')}_{column}_known", _among(column, values))
    for column, values in _RUN_CHOICES.items():
        default = "skipped" if column == "outcome" else values[0]
        mend.append(f"UPDATE scheduling_app_schedulerun SET {column} = '{default}' WHERE NOT {_among(column, values)};")
        add("scheduling_app_schedulerun", f"schedulerun_{column}_known", _among(column, values))
    return [*mend, *refuse], undo


# What was planned when a schedule is paused or edited is kept, so that a scheduler can tell of each time that was missed
# by then, by the timing that stood.
TRIGGER = files("scheduling_app.ledger").joinpath("trigger.sql").read_text("utf-8")


def _before() -> str:
    trigger = import_module("scheduling_app.migrations.0003_policies").TRIGGER
    return trigger[: trigger.index("DROP TRIGGER")]


class Migration(migrations.Migration):
    dependencies = [("scheduling_app", "0004_what_sql_may_do")]
    operations = [
        migrations.AddField("schedule", "missed", models.JSONField(editable=False, null=True)),
        migrations.RunSQL("\n".join(_statements()[0]), "\n".join(_statements()[1])),
        migrations.RunSQL(TRIGGER, _before()),
    ]
