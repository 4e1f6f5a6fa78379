"""Schedules: when tasks run, and what became of each due time. The way of one, and where it is:

    defined by      admin/, sources/ (code, Beat, a crontab, JSON), manager, all by the one table in sources/fields
    kept in         models, a row a schedule; ledger/trigger.sql tells schedulers of each change
    waited for by   jobstore, which APScheduler asks (`manage.py runscheduler` or manager.ApsSchedulerManager)
    judged, fired   ledger/: planning, policies, firing, waiting, backfill; the times are those of timing/
    shown by        pages/, with states for what one looks like now; actions is what people do there and in the admin

Beside them: signatures (which tasks there are, and whether arguments fit), conf (settings), checks and doctor (what is
wrong here), outages (is the database away?), json_text and form_fields (what people type), seams/ (private names of
libraries).

What may import what, from above: urls, management > admin > pages > actions, manager > states, jobstore > declared,
sources > ledger > form_fields > models > signatures, timing, outages, json_text > seams. Nothing in `tasks_app` imports
this.
"""
