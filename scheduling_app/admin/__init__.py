"""Where schedules and calendars are made and edited: on the default site, and on any that these are registered with."""

from scheduling_app.admin.calendars import CalendarAdmin
from scheduling_app.admin.schedules import ScheduleAdmin

__all__ = ["CalendarAdmin", "ScheduleAdmin"]
