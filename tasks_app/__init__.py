"""Celery's tasks, each a row in Postgres that is there before its message is. Where what happens to one is:

    sent by      outbox, the one door out (`send_task`); building makes the row of a call, by the rules of messages and
                 formats; canvases and gathering make a workflow one whole; steps are what is to come of it
    published    publishing makes messages, transport and broker are about the broker, breaker about one that is away;
                 marking marks what went out
    run by       guard, in front of each task's class; execution claims the row; coroutines runs an async body;
                 workers, leases: what a worker does beside; queues: whether one reads a queue
    ended by     backend, Celery's result backend: outcomes keeps results, closing closes the row, consequences and
                 chords are what follows; retries is each way back to waiting
    moved by     relay/, when nobody asks: what is due, lost or interrupted; draining, before the console leaves
    limited by   limits (how many at once, how often), uniqueness (whether there may be another)
    asked for by client, control (revoke), waiting (`get`); pages/ and urls; health, doctor, checks (what is wrong)

Below all of that: models, the tables; moves, each move of a row's state by one statement that tells whether it won;
states, their names; statements (SQL past Django's layers), notify, ambient (what code knows beside its arguments),
storable, json_field, moments (what a column holds), exceptions, recording (which app of Celery's), conf (settings).
At the very bottom: seams/, each private name of a library that is used or overridden.
Beside it: tasks that come with the console, apps, admin, history (what people did there).

A project's Celery app is made before Django's apps are loaded: what it imports at once (outbox and guard, with what
they need) imports models where it uses them. What may import what stands in pyproject.toml, "The rooms of tasks_app",
and is held by import-linter. Nothing here imports scheduling_app.
"""
