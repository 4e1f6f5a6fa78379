"""What a schedule's policies will do, in a sentence each: in the form, while one types, and on its page."""

from datetime import timedelta

from scheduling_app.models import Schedule

CatchUp, Overlap = Schedule.CatchUp, Schedule.Overlap


def sentences(schedule: Schedule) -> list[tuple[str, str]]:
    """(the name of the policy, what it will do)."""
    found = [
        ("Missed times", _missed(schedule)),
        ("Overlap", _overlap(schedule)),
        ("Expiry", _expiry(schedule)),
    ]
    if schedule.pause_after_failures:
        times = schedule.pause_after_failures
        which = "When its last run failed" if times == 1 else f"When its last {times} runs all failed"
        found.append(("Failures", f"{which}, it pauses itself and says so."))
    if schedule.max_retries:
        pause = schedule.retry_backoff
        wait = f"after {_span(pause)}, then twice as long each time" if pause else "at once"
        found.append(("Retries", f"A run that fails is repeated up to {_times(schedule.max_retries)}, {wait}."))
    if schedule.blackout is not None:
        moved = schedule.blackout_action == Schedule.BlackoutAction.DEFER
        what = "starts when the window ends" if moved else "is skipped"
        found.append(("Blackout", f"A time within a window of {schedule.blackout} {what}."))
    if schedule.max_runs:
        found.append(("End", f"It is finished when it has fired {_times(schedule.max_runs)}."))
    return found


def _missed(schedule: Schedule) -> str:
    grace = schedule.misfire_grace_time
    late = f" by up to {_span(grace)}" if grace else ", however late"
    match schedule.catch_up:
        case CatchUp.ALL:
            said = f"Of the times missed{late}, each runs, the oldest first, {Schedule.MAX_CATCH_UP} at most."
        case CatchUp.NONE:
            return "Times missed while no scheduler runs do not run."
        case _:
            said = f"Of the times missed{late}, only the latest runs."
    return said + (" Older ones do not run." if grace else "")


def _overlap(schedule: Schedule) -> str:
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


def _expiry(schedule: Schedule) -> str:
    if schedule.expires_after:
        return f"A run that no worker has started after {_span(schedule.expires_after)} is revoked."
    if schedule.misfire_grace_time is None:
        return "A run waits for a worker as long as it takes."
    grace = _span(schedule.misfire_grace_time)
    return f"A run that no worker has started by the next due time, or after {grace} if that is later, is revoked."


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
