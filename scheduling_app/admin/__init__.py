"""Where schedules and calendars are made and edited; what they did is on their pages. (On the default site, and
on any that these are registered with.)

schedules   the list and the form's page, with the actions of both
calendars   calendars, their windows, and a preview of these
forms       a schedule's form: the table of fields (sources/fields) with widgets, in the zone of the schedule
"""

from scheduling_app.admin.calendars import CalendarAdmin
from scheduling_app.admin.schedules import ScheduleAdmin

__all__ = ["CalendarAdmin", "ScheduleAdmin"]
