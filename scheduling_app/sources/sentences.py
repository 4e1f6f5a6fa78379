"""What each policy of a schedule will do, in a sentence: in the form, while one types, and on its page.

"" where the schedule has not that policy. Which fields say so, and in which order they are told, is in `fields`.
"""

from datetime import timedelta

from scheduling_app.models import Schedule
from tasks_app.guard import LONGEST_BACKOFF

CatchUp, Overlap = Schedule.CatchUp, Schedule.Overlap


def missed(schedule: Schedule) -> str:
    grace = schedule.misfire_grace_time
    late = f"at most {_span(grace)} late" if grace else "however late it is"
    match schedule.catch_up:
        case CatchUp.ALL:
            return f"After a downtime, each missed time runs, {late}, oldest first; the latest {Schedule.MAX_CATCH_UP}."
        case CatchUp.NONE:
            return "Times that pass while no scheduler runs are not made up for."
    return f"After a downtime, only the latest of the missed times runs, {late}."


def overlap(schedule: Schedule) -> str:
    limit = schedule.max_instances
    while_ = "While an earlier run is unfinished" if limit == 1 else f"While {limit} earlier runs are unfinished"
    match schedule.overlap:
        case Overlap.SKIP:
            return f"{while_}, the next time is skipped."
        case Overlap.QUEUE_ONE:
            return f"{while_}, one time waits until there is room; more are skipped."
        case Overlap.QUEUE_ALL:
            return f"{while_}, the next times wait, each for its turn, {Schedule.MAX_QUEUED} at most."
        case Overlap.CANCEL:
            return f"{while_}, the next time cancels what is unfinished, and runs."
    return "It runs at each of its times, whatever earlier runs do."


def expiry(schedule: Schedule) -> str:
    if schedule.expires_after:
        return f"A run that no worker has started within {_span(schedule.expires_after)} is revoked."
    if schedule.misfire_grace_time is None:
        return "A run waits for a worker as long as it takes."
    grace = _span(schedule.misfire_grace_time)
    return f"A run that no worker has started within {grace}, or by the next due time if that is later, is revoked."


def limits(schedule: Schedule) -> str:
    limits = []
    if schedule.soft_time_limit:
        limits.append(f"gets SoftTimeLimitExceeded after {_span(schedule.soft_time_limit)}")
    if schedule.time_limit:
        limits.append(f"is killed after {_span(schedule.time_limit)}")
    return f"A run {' and '.join(limits)}." if limits else ""


def retries(schedule: Schedule) -> str:
    times = schedule.max_retries
    if not times:
        return ""
    said = f"A run that fails is repeated up to {_times(times)}"
    if not schedule.retry_backoff:
        return f"{said}, at once."
    wait = f"{said}, after {_span(schedule.retry_backoff)}"
    longer = "" if times == 1 else f", then after twice as long each time, {_span(LONGEST_BACKOFF)} at most"
    return f"{wait}{longer}."


def failures(schedule: Schedule) -> str:
    times = schedule.pause_after_failures
    if not times:
        return ""
    which = "When its last run has failed" if times == 1 else f"When its last {times} runs have all failed"
    return f"{which}, it pauses itself at its next time, and says why."


def blackout(schedule: Schedule) -> str:
    if schedule.blackout is None:
        return ""
    moved = schedule.blackout_action == Schedule.BlackoutAction.DEFER
    what = "runs when the window ends" if moved else "is skipped"
    return f"A time within a window of the calendar {schedule.blackout} {what}."


def end(schedule: Schedule) -> str:
    if not schedule.max_runs:
        return ""
    return f"It is finished when it has fired {_times(schedule.max_runs)}; runs by hand do not count."


def due_time(schedule: Schedule) -> str:
    if not schedule.due_kwarg:
        return ""
    return f"Its task is given the due time as {schedule.due_kwarg}, such as 2026-03-01T09:00:00+00:00."


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _span(seconds: int) -> str:
    """`3600` as "1 hour"; a span that is no whole number of a larger unit keeps the smaller one."""
    for unit in ("days", "hours", "minutes"):
        size = timedelta(**{unit: 1}) // timedelta(seconds=1)
        if seconds % size == 0:
            break
    else:
        unit, size = "seconds", 1
    number = seconds // size
    return f"{number} {unit[:-1] if number == 1 else unit}"
