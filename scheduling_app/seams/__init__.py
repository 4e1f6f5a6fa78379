"""Private names of APScheduler, cronsim and Django's forms; the room itself is described in tasks_app/seams."""
