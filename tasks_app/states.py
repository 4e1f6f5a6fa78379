"""Celery's task states, under Celery's names, and the moves between them.

    (none) ── submit ──▶ PENDING ── claim ──▶ STARTED ──▶ SUCCESS │ FAILURE │ REVOKED │ IGNORED │ REJECTED
                            │                 │    ▲
                            │               retry  │ claim
                            ▼                 ▼    │
                         REVOKED ◀─ revoke ── RETRY┘

"Scheduled", "queued" and "running" are views of a state, not states: PENDING with an `eta` in the future is scheduled,
PENDING or RETRY and published is queued, STARTED is running.
"""

PENDING = "PENDING"
STARTED = "STARTED"
RETRY = "RETRY"
SUCCESS = "SUCCESS"
FAILURE = "FAILURE"
REVOKED = "REVOKED"
IGNORED = "IGNORED"
REJECTED = "REJECTED"

#: Waiting for a worker: a claim or a revoke may take them.
WAITING_STATES = (PENDING, RETRY)
UNREADY_STATES = (PENDING, STARTED, RETRY)
#: Terminal. Nothing moves out of them; running a task again is a new record.
READY_STATES = (SUCCESS, FAILURE, REVOKED, IGNORED, REJECTED)
ALL_STATES = (*UNREADY_STATES, *READY_STATES)
#: Of the terminal states, those whose result is an exception.
EXCEPTION_STATES = (FAILURE, REVOKED, REJECTED)
