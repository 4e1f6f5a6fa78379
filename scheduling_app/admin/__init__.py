"""Where schedules and calendars are made and edited."""

from scheduling_app.admin import calendars, schedules  # noqa: F401 register themselves
