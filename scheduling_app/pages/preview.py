"""What a schedule would do, saved or not: its next times, and its policies in sentences.

The times are those that fire: from the timing that schedulers go by, with the jitter that they add, without those that
its calendar keeps from running, and no more of them than it has runs left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from scheduling_app.models import Schedule
from scheduling_app.sources.fields import Sentence, label_of, sentences
from scheduling_app.sources.rules import TIMING
from scheduling_app.timing.blackout import Blackout
from scheduling_app.timing.clocks import TimingError
from scheduling_app.timing.kinds import PreviewTime, Timing, jittered, preview

#: How many coming times are previewed.
PREVIEWED = 10


@dataclass(frozen=True)
class Upcoming:
    """A coming time: when it is due, what the clocks do to it, and when it starts (None: not known, or not at all)."""

    due: PreviewTime
    starts_at: datetime | None
    #: What its calendar does to it; "" mostly.
    note: str = ""
    is_skipped: bool = False


@dataclass(frozen=True)
class Preview:
    """What a schedule would do: its timing in words, its coming times, and its policies in sentences.

    Or what is wrong with it, as (label of the field, complaint), beside what can be told all the same.
    """

    timing: Timing | None = None
    times: Sequence[Upcoming] = ()
    jitter: int = 0
    sentences: Sequence[Sentence] = ()
    complaints: Sequence[tuple[str, str]] = ()
    #: Whether it ends with these times.
    is_over_after: bool = False

    @property
    def clock(self) -> str:
        """Django's format of a time of day: with seconds where they matter."""
        return "H:i:s" if any(time.due.at.second for time in self.times) else "H:i"


def preview_of(schedule: Schedule, now: datetime, errors: Mapping[str, Sequence[str]] | None = None) -> Preview:
    """What it would do, as it stands, saved or not; `errors` are those that a form found, by the fields' names."""
    errors, timing, blackout = dict(errors or {}), None, None
    if errors.keys().isdisjoint([*TIMING, "jitter", "blackout", "max_runs"]):
        try:
            timing = schedule.timing()
            blackout = schedule.blackout.blackout() if schedule.blackout else None
        except TimingError as error:
            name = "blackout" if timing else error.field
            timing, errors[name] = None, [f"{error.field}: {error}" if timing else str(error)]
    times = _upcoming(schedule, timing, now, blackout) if timing else []
    return Preview(
        timing,
        times[:PREVIEWED],
        schedule.jitter,
        [each for each in sentences(schedule) if errors.keys().isdisjoint(each.fields)],
        [(label_of(name), complaint) for name, complaints in errors.items() for complaint in complaints],
        timing is not None and len(times) <= PREVIEWED,
    )


def _upcoming(schedule: Schedule, timing: Timing, now: datetime, blackout: Blackout | None) -> list[Upcoming]:
    """The times after `now`, one more than are shown, until it is finished."""
    found: list[Upcoming] = []
    times = preview(timing, now, PREVIEWED + 2)
    left = PREVIEWED + 2 if schedule.max_runs is None else max(schedule.max_runs - schedule.fired_count, 0)
    for time, following in zip(times, [*(time.at for time in times[1:]), None], strict=False):
        if not left or len(found) > PREVIEWED:
            break
        coming = _coming(schedule, time, following, blackout)
        left -= not coming.is_skipped
        found.append(coming)
    return found


def _coming(schedule: Schedule, due: PreviewTime, following: datetime | None, blackout: Blackout | None) -> Upcoming:
    """As firing has it: what its calendar moves starts right then; jitter is for what starts on time."""
    free_from = blackout.free_from(due.at) if blackout else due.at
    if blackout and free_from != due.at:
        if free_from is None or schedule.blackout_action == Schedule.BlackoutAction.SKIP:
            return Upcoming(due, None, f"skipped: in a window of {blackout.name}", is_skipped=True)
        starts_at = free_from.astimezone(due.local.tzinfo)
        return Upcoming(due, starts_at, f"runs {starts_at:%a %H:%M}, after a window of {blackout.name}")
    if schedule.pk is None:
        return Upcoming(due, None)
    starts_at = jittered(schedule.pk, due.at, schedule.jitter, following)
    return Upcoming(due, starts_at.astimezone(due.local.tzinfo))
