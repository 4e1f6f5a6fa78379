"""How far backfills are: how many of their due times are done, and what became of those."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from django.db.models import Count

from scheduling_app.models import Backfill, ScheduleRun
from tasks_app import moments, states
from tasks_app.models import TaskRecord

WAITING = ScheduleRun.Outcome.WAITING
#: The states of an unfinished task, in people's words.
UNFINISHED = [TaskRecord(state=state).phase for state in states.UNREADY_STATES]
#: After which a backfill that has not begun asks whether a scheduler runs.
PATIENCE = timedelta(seconds=10)


@dataclass(frozen=True)
class Progress:
    """A backfill, and how many of its due times are in which phase (as marks.Mark has it)."""

    backfill: Backfill
    phases: Counter[str]

    @property
    def by_phase(self) -> list[tuple[str, int]]:
        return self.phases.most_common()

    @property
    def waiting(self) -> int:
        return self.phases[WAITING]

    @property
    def unfinished(self) -> int:
        return sum(self.phases[phase] for phase in UNFINISHED)

    @property
    def done(self) -> int:
        return self.phases.total() - self.waiting - self.unfinished

    @property
    def elsewhere(self) -> int:
        """Due times that another backfill has run since, or, where it was cancelled, that are as they were before."""
        return max(self.backfill.total - self.phases.total(), 0)

    @property
    def is_live(self) -> bool:
        """Whether there is something to wait for."""
        return self.backfill.state in (Backfill.State.RUNNING, Backfill.State.PAUSED) or self.unfinished > 0

    @property
    def is_overdue(self) -> bool:
        """Whether nothing of it has begun, though it is some time since it could."""
        began = self.phases.total() > self.waiting
        running = self.backfill.state == Backfill.State.RUNNING
        return running and not began and moments.now() - self.backfill.created_at > PATIENCE


def progress_of(backfills: Iterable[Backfill]) -> list[Progress]:
    """Of these, by one query."""
    backfills = list(backfills)
    phases: dict[int, Counter[str]] = {backfill.pk: Counter() for backfill in backfills}
    runs = ScheduleRun.objects.filter(backfill__in=phases).order_by()
    groups = runs.values_list("backfill", "outcome", "record__state").annotate(count=Count("pk"))
    for pk, outcome, state, count in groups:
        phase = outcome if outcome != ScheduleRun.Outcome.FIRED or state is None else TaskRecord(state=state).phase
        phases[pk][phase] += count
    return [Progress(backfill, phases[backfill.pk]) for backfill in backfills]
