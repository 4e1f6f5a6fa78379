"""When: next times, words and validation. Pure: no Django, no clock, no setting; the time comes in as an argument.

    blackout    the windows of a calendar, in which nothing runs
    kinds       cron, interval, date: the next time, also over a change of the clocks (WallTiming); jitter, previews
    cron        reading a crontab expression, and saying it in words
    clocks      zones, and what their clocks do when they change

Each imports those below it alone.
"""
