"""Where definitions come from, and what each must be, whatever road it comes by.

    fields          the one table: label, condition, bounds, sentence and rule of each field
    sentences       what a policy will do, in words
    rules           whether a schedule can be, and runs as meant
    sync            what code declares (scheduling_app.declared), brought into the table
    import_export   JSON for version control, and back
    beat            periodic tasks of Celery Beat; beat_times: when both would fire
    crontab_lines   the lines of a crontab; found: what such an import finds
    drift           schedules whose task is gone, or takes other arguments now

sync, imports and drift import rules; rules imports fields, and that sentences. None imports pages or the admin.
"""
