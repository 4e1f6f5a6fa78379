"""What became of the due times of a schedule, for whoever looks at them."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

from scheduling_app.models import Backfill, Schedule, ScheduleRun
from tasks_app.models import TaskRecord

#: The fields of a run that a mark is made of.
FIELDS = (
    "scheduled_for",
    "fired_at",
    "outcome",
    "reason",
    "detail",
    "backfill_id",
    "record_id",
    "record__state",
    "record__eta",
    "record__parked_at",
)


@dataclass(frozen=True)
class Mark:
    """What became of one due time."""

    scheduled_for: datetime
    #: When it was decided about: fired or skipped.
    fired_at: datetime | None
    #: Where its task is, in the words of TaskRecord.phase; "skipped" where none was made, "waiting" where one will be,
    #: "fired" where it was deleted.
    phase: str
    reason: str
    detail: str
    task_id: str | None

    @classmethod
    def of(cls, run: dict[str, Any]) -> Self:
        """From the fields in FIELDS, from JSON or not."""
        waits = run["outcome"] == ScheduleRun.Outcome.WAITING
        return cls(
            scheduled_for=_moment(run["scheduled_for"]),
            fired_at=None if waits else _moment(run["fired_at"]),
            phase=_phase(run),
            reason=_waits_for(run) if waits else ScheduleRun.Reason(run["reason"]).label,
            detail=run["detail"],
            task_id=run["record_id"],
        )

    @property
    def is_fired(self) -> bool:
        return self.phase not in (ScheduleRun.Outcome.SKIPPED, ScheduleRun.Outcome.WAITING)

    @property
    def late(self) -> timedelta | None:
        return self.fired_at - self.scheduled_for if self.fired_at else None


def runs_of(source: Schedule | Backfill, count: int, before: datetime | None = None) -> list[Mark]:
    """The runs of a schedule or of a backfill, the newest first, of due times earlier than `before`."""
    runs = source.runs.filter(scheduled_for__lt=before) if before else source.runs.all()
    return [Mark.of(run) for run in runs.order_by("-scheduled_for").values(*FIELDS)[:count]]


def marks_between(schedule: Schedule, start: datetime, end: datetime) -> list[Mark]:
    """Its runs of the due times from `start` to `end`, the oldest first."""
    runs = schedule.runs.filter(scheduled_for__gte=start, scheduled_for__lte=end)
    return [Mark.of(run) for run in runs.order_by("scheduled_for").values(*FIELDS)]


def _waits_for(run: dict[str, Any]) -> str:
    if run["backfill_id"] is None:
        return "until an earlier run has ended"
    reason = ScheduleRun.Reason(run["reason"])
    return "for its turn in a backfill" + ("" if reason == reason.BACKFILL else f"; before: {reason.label}")


def _phase(run: dict[str, Any]) -> str:
    if run["outcome"] != ScheduleRun.Outcome.FIRED:
        return run["outcome"]
    if run["record__state"] is None:
        return "fired"
    eta = run["record__eta"]
    record = TaskRecord(state=run["record__state"], eta=eta and _moment(eta), parked_at=run["record__parked_at"])
    return record.phase


def _moment(value: datetime | str) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value
