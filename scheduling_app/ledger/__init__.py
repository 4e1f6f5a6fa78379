"""What becomes of each due time: decided once, written in one transaction with its task.

    planning    the next time of what has changed, and a row for what it missed by then
    waiting     runs that wait for an earlier one, or for their turn in a backfill
    backfill    due times of a range, to be run again or for the first time
    firing      what is due: a batch in one transaction, the messages after it
    policies    the decisions, without a database
    marks       what a run looks like, for those who show it
    trigger.sql what the database does when a schedule changes

The first three import firing; that imports policies. None imports sources, pages or APScheduler.
"""
