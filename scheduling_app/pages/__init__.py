"""The schedules' own pages.

    schedules   the list, a schedule, its runs, and what people do there
    backfills   choosing a range, and following a backfill
    forms       what their forms and filters take
    preview     what a schedule would do, saved or not: also the admin's form shows it
    progress    how far a backfill is

The first two import the others. What is done to schedules is in scheduling_app.actions, for the admin as well.
"""
