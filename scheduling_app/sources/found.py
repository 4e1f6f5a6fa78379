"""What an import finds: a schedule to be, or the reason why there is none."""

from dataclasses import dataclass, field
from datetime import datetime

from scheduling_app.models import Schedule
from scheduling_app.sources.rules import complaints
from scheduling_app.timing.clocks import ScheduleError


class Refused(ScheduleError):
    """Why there is no such schedule: str() says so, and what to do."""

    def __init__(self, message: str, field: str = ""):
        super().__init__(field, message)


class Over(Refused):
    """It is not to run any more, there or here: nothing is lost without it."""


@dataclass
class Found:
    """A schedule to be, not saved, and what to know about it."""

    schedule: Schedule
    notes: list[str] = field(default_factory=list)


def check(schedule: Schedule, now: datetime) -> None:
    """Raises Refused where it is at fault, Over where it has no time to come."""
    if found := complaints(schedule):
        raise Refused(" ".join(f"{name}: {said}" for name, said in found), found[0][0])
    if schedule.timing().next_after(now) is None:
        raise Over("It has no time to come.")
