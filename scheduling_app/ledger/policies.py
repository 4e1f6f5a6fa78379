"""What is to become of a schedule's due times: decisions without a database, from its row and its earlier runs.

misfire     too late, or missed while no scheduler ran, and not made up for; or edited or paused first (the trigger's)
blackout    within a window of its calendar
paused      it failed so often in a row that it pauses itself
overlap     an earlier run is unfinished
limit       more of them than run, or wait, at once
invalid     its task is not there, or does not take its arguments
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import islice, takewhile

from scheduling_app.conf import conf
from scheduling_app.models import Schedule, ScheduleRun
from scheduling_app.timing.blackout import Blackout
from scheduling_app.timing.kinds import Timing
from tasks_app.storable import printable

#: Seconds after its time from which a run is late, or missed.
PUNCTUAL = timedelta(seconds=5)
#: For so long another scheduler may hold a row that is due, and freeze: it was not missed yet.
FROZEN = timedelta(seconds=18)
#: Rows of a schedule in the ledger: so many runs are kept, and of more missed times the earlier ones get none.

CatchUp, Overlap = Schedule.CatchUp, Schedule.Overlap
Outcome, Reason = ScheduleRun.Outcome, ScheduleRun.Reason


@dataclass
class Standing:
    """What is known of a schedule's earlier runs when it is due."""

    unfinished: int = 0
    waiting: int = 0
    #: Whether the last runs all failed, as many as pause it.
    failed: bool = False
    #: Its calendar; the text is what is wrong with that.
    blackout: Blackout | str | None = None


@dataclass(slots=True)
class Run:
    """A row of the ledger in the making. (A model's instance costs ten times as much.)"""

    schedule: Schedule
    scheduled_for: datetime
    outcome: str
    reason: str
    detail: str = ""
    backfill_id: int | None = None
    #: The due time after this one.
    following: datetime | None = None
    #: When its task may start, where that is not at once.
    starts_at: datetime | None = None
    #: Whether it waited for an earlier run: jitter has no say then.
    has_waited: bool = False
    record_id: str | None = None

    def skip(self, reason: str, detail: str) -> None:
        self.outcome, self.reason, self.detail = Outcome.SKIPPED, reason, printable(detail)[:500]
        self.record_id = None


@dataclass(frozen=True)
class DueTimes:
    """The times of a schedule up to now, and the one that follows them."""

    times: Sequence[datetime]
    following: datetime | None
    #: The first of those left out, where there were more than are kept.
    left_out_since: datetime | None = None


def due_times(timing: Timing, first: datetime, now: datetime) -> DueTimes:
    """Those from `first` to `now`: the latest SCHEDULE_RUNS_KEPT of them, without a walk through all that a long
    downtime missed."""
    following = timing.next_after(first)
    if following is None or following > now:  # as mostly
        return DueTimes([first], following)
    start, following = _start(timing, first, now), None
    times = deque([start], maxlen=conf.SCHEDULE_RUNS_KEPT)
    for at in timing.times_after(start):
        if at > now:
            following = at
            break
        times.append(at)
    return DueTimes(times, following, None if times[0] == first else first)


def _start(timing: Timing, first: datetime, now: datetime) -> datetime:
    """The time from which on there are as many up to `now` as are kept, or twice as many at most; `first` where there
    are fewer.

    The window is widened until it holds enough, and then halved, as times may come in bursts: each look into it ends.
    """
    few, window, whole = timedelta(0), timedelta(minutes=1), now - first
    while (count := _count(timing, now - min(window, whole), now)) < conf.SCHEDULE_RUNS_KEPT:
        if window >= whole:
            return first
        few, window = window, window * 8
    window = min(window, whole)
    while count > 2 * conf.SCHEDULE_RUNS_KEPT:
        middle = few + (window - few) / 2
        if (halved := _count(timing, now - middle, now)) < conf.SCHEDULE_RUNS_KEPT:
            few = middle
        else:
            window, count = middle, halved
    return timing.next_after(now - window) or first


def _count(timing: Timing, after: datetime, last: datetime) -> int:
    """How many there are; more than twice SCHEDULE_RUNS_KEPT are not counted."""
    times = islice(timing.times_after(after), 2 * conf.SCHEDULE_RUNS_KEPT + 1)
    return sum(1 for _ in takewhile(lambda at: at <= last, times))


class Judge:
    """Decides about the due times of one schedule, one after the other; what it lets run counts for the next ones."""

    def __init__(self, schedule: Schedule, due: DueTimes, standing: Standing, drift: str):
        """`drift`: why its task would not run here; "" mostly."""
        self.schedule, self.due, self.standing, self.drift = schedule, due, standing, drift
        self.now = schedule.database_now
        #: Whether what is unfinished is to be cancelled.
        self.cancels = False

    def runs(self) -> list[Run]:
        """A run for each time, until there were `max_runs` of them."""
        schedule, runs = self.schedule, []
        left = len(self.due.times) if schedule.max_runs is None else schedule.max_runs - schedule.fired_count
        for number, at in enumerate(self.due.times):
            if left <= 0:
                break
            following = self.due.times[number + 1] if number + 1 < len(self.due.times) else self.due.following
            run = self._judged(at, number)
            run.following = following
            left -= run.outcome != Outcome.SKIPPED
            runs.append(run)
        if self.due.left_out_since:
            runs[0].detail = f"{left_out(self.due)} {runs[0].detail}".strip()[:500]
        return runs

    def _judged(self, at: datetime, number: int) -> Run:
        schedule, standing = self.schedule, self.standing
        if standing.failed:
            return self._skipped(at, Reason.PAUSED, failures(schedule))
        if self.drift:
            return self._skipped(at, Reason.INVALID, self.drift)
        return self._missed(at, number) or self._blacked_out(at) or self._overlapping(at) or self._fired(at)

    def _missed(self, at: datetime, number: int) -> Run | None:
        schedule, times = self.schedule, self.due.times
        late, grace = self.now - at, schedule.misfire_grace_time
        if grace is not None and late > timedelta(seconds=grace):
            return self._skipped(at, Reason.MISFIRE, f"{late.total_seconds():.0f} s late, {grace} s are allowed.")
        match schedule.catch_up:
            case CatchUp.LATEST if number < self._latest:
                latest = f"{times[self._latest]:%Y-%m-%d %H:%M:%S} UTC"
                return self._skipped(at, Reason.MISFIRE, f"The latest time, {latest}, stands for it.")
            case CatchUp.ALL if number < len(times) - Schedule.MAX_CATCH_UP:
                return self._skipped(at, Reason.LIMIT, f"{Schedule.MAX_CATCH_UP} missed times run at once, no more.")
            case CatchUp.NONE if late > FROZEN:
                return self._skipped(at, Reason.MISFIRE, "Its missed times are not made up for.")
        return None

    @cached_property
    def _latest(self) -> int:
        """The number of the latest time, of those that its calendar does not skip if there are any."""
        numbers, blackout = range(len(self.due.times) - 1, -1, -1), self.standing.blackout
        if not isinstance(blackout, Blackout) or self.schedule.blackout_action == Schedule.BlackoutAction.DEFER:
            return numbers[0]
        times = self.due.times
        free = (number for number in numbers if blackout.free_from(times[number]) == times[number])
        return next(free, numbers[0])

    def _blacked_out(self, at: datetime) -> Run | None:
        blackout = self.standing.blackout
        if blackout is None:
            return None
        if isinstance(blackout, str):
            return self._skipped(at, Reason.INVALID, blackout)
        free_from = blackout.free_from(at)
        if free_from == at:
            return None
        if free_from is None or self.schedule.blackout_action == Schedule.BlackoutAction.SKIP:
            return self._skipped(at, Reason.BLACKOUT, f"Calendar {blackout.name}.")
        if self.schedule.overlap != Overlap.CANCEL and (overlapping := self._overlapping(at)):
            return overlapping
        run = self._fired(at, f"Moved to {free_from:%Y-%m-%d %H:%M:%S} UTC, out of calendar {blackout.name}.")
        run.starts_at = free_from
        return run

    def _overlapping(self, at: datetime) -> Run | None:
        schedule, standing = self.schedule, self.standing
        if schedule.overlap == Overlap.CANCEL and at != self.due.times[-1]:
            return self._skipped(at, Reason.OVERLAP, "A later time takes its place.")
        if schedule.overlap == Overlap.ALLOW or standing.unfinished + standing.waiting < schedule.max_instances:
            return None
        said = f"{standing.unfinished} unfinished, {schedule.max_instances} allowed."
        match schedule.overlap:
            case Overlap.SKIP:
                return self._skipped(at, Reason.OVERLAP, said)
            case Overlap.QUEUE_ONE if standing.waiting:
                return self._skipped(at, Reason.OVERLAP, f"{said} One waits already.")
            case Overlap.QUEUE_ALL if standing.waiting >= Schedule.MAX_QUEUED:
                return self._skipped(at, Reason.LIMIT, f"{said} {standing.waiting} wait already.")
            case Overlap.CANCEL:
                self.cancels = True
                return None
        standing.waiting += 1
        return self._run(at, Outcome.WAITING, Reason.OVERLAP, said)

    def _fired(self, at: datetime, detail: str = "") -> Run:
        late = self.now - at > PUNCTUAL
        reason = Reason.DUE if not late else Reason.LATE if len(self.due.times) == 1 else Reason.CAUGHT_UP
        self.standing.unfinished += 1
        return self._run(at, Outcome.FIRED, reason, detail)

    def _skipped(self, at: datetime, reason: str, detail: str) -> Run:
        return self._run(at, Outcome.SKIPPED, reason, detail)

    def _run(self, at: datetime, outcome: str, reason: str, detail: str) -> Run:
        return Run(self.schedule, at, outcome, reason, detail[:500])


def left_out(due: DueTimes) -> str:
    """What the first of these times says of those before it that have no row."""
    return f"Stands for the times missed since {due.left_out_since:%Y-%m-%d %H:%M:%S} UTC."


def failures(schedule: Schedule) -> str:
    """Why a schedule pauses itself."""
    times = schedule.pause_after_failures
    return "Its last run failed." if times == 1 else f"Its last {times} runs failed."


def expires_at(schedule: Schedule, starts_at: datetime, following: datetime | None) -> datetime | None:
    """When a run that may start at `starts_at` is too old to: as the schedule says, or else at the next due time or
    when the grace is over, whichever is later, so that what piles up while no worker runs does not all run at once."""
    if schedule.expires_after:
        return starts_at + timedelta(seconds=schedule.expires_after)
    if schedule.misfire_grace_time is None:
        return None
    graced = starts_at + timedelta(seconds=schedule.misfire_grace_time)
    return max(graced, following) if following else graced
