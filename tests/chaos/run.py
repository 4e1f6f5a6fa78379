"""One run: a cluster of its own, a load, faults, then peace; and what the oracle says of it."""

import contextlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.cluster import Cluster
from tests.chaos.faults import Storm, plan

#: Seconds without an end of anything, once all is healthy again, after which what has not ended never will.
SETTLE = 30
#: Submissions a second.
RATE = 6.0
FAULTS_PER_MINUTE = 50.0


@dataclass
class Report:
    seed: int
    guard: str = ""
    seconds: float = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    #: Name, count and the first few offenders of each invariant that does not hold.
    violations: list[tuple[str, int, list[str]]] = field(default_factory=list)
    statistics: dict[str, float] = field(default_factory=dict)
    #: Where something was violated: the last lines of each process, and the lives of the first offenders.
    said: dict[str, str] = field(default_factory=dict)
    lives: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value:g}" for name, value in self.statistics.items())
        lines = [f"seed {self.seed}: {len(self.faults)} faults, {len(self.violations)} violations, {figures}"]
        lines += [f"note: {note}" for note in self.notes]
        if self.violations:
            lines += [f"  fault {fault}" for fault in self.faults]
            lines += [f"--- {name} last said:\n{text}" for name, text in self.said.items()]
            lines += self.lives
        for name, number, offenders in self.violations:
            lines += [f"VIOLATED {name}: {number}", *(f"    {offender}" for offender in offenders)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Scenario:
    """`kinds` of faults and `mix` of the load: all where they are empty. `without`: the name of a guard, taken away.

    `schedulers`: so many of them and nothing else, see schedulers.py.
    """

    seed: int
    seconds: float = 60
    per_minute: float = FAULTS_PER_MINUTE
    rate: float = RATE
    kinds: Sequence[str] = ()
    mix: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    sql: str = ""
    without: str = ""
    settle: float = SETTLE
    schedulers: int = 0


def run(scenario: Scenario, keep: bool = False) -> Report:
    """Run it in this process, which is to be a fresh one: Django is set up for this run's database."""
    began = time.monotonic()
    settings = dict(scenario.settings) | ({"SABOTAGE": scenario.without} if scenario.without else {})
    with directory(keep) as place, Cluster(place, settings) as cluster:
        cluster.make_tables(scenario.sql)
        set_up_django(cluster)
        _make_schedules()
        cluster.start_all(scenario.seed, scenario.seconds, scenario.rate, *scenario.mix)
        storm = Storm(cluster)
        faults = plan(scenario.seed, scenario.seconds, scenario.per_minute, scenario.kinds)
        storm.run(faults, scenario.seconds)
        _settle(cluster, storm, scenario.settle)
        report = _judge(cluster, storm, Report(scenario.seed, scenario.without))
    report.seconds = time.monotonic() - began
    return report


@contextlib.contextmanager
def directory(keep: bool) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="taskconsole-chaos-"))
    place.chmod(0o755)
    try:
        yield place
    finally:
        if keep:
            print(f"kept: {place}", flush=True)
        else:
            shutil.rmtree(place, ignore_errors=True)


def set_up_django(cluster: Cluster) -> None:
    os.environ.update(cluster.environment)
    os.environ.pop("SABOTAGE", None)
    import django

    django.setup()


def _make_schedules() -> None:
    from scheduling_app.models import Schedule

    for name, every, options in (
        ("each second", 1, {}),
        ("each second, all of them", 1, {"catch_up": Schedule.CatchUp.ALL}),
        ("each second, one at a time", 1, {"max_instances": 1}),
        ("every other second", 2, {"jitter": 1}),
    ):
        Schedule.objects.create(
            name=name, task="chaos.tick", args=[name], kind="interval", every=every, unit="seconds", **options
        )


def _settle(cluster: Cluster, storm: Storm, patience: float) -> None:
    """Make everything healthy, let the schedules fire a little more, and wait until nothing is unfinished.

    For as long as that becomes less: not within `patience` seconds means that it never will.
    """
    from django.db import DatabaseError, connection

    from scheduling_app.models import Schedule
    from tasks_app.models import TaskRecord

    calm_at, give_up_at, least = time.monotonic() + 5, time.monotonic() + 5 + patience, math.inf
    quiet_since = None
    while (now := time.monotonic()) < give_up_at:
        storm.go_on()
        cluster.heal()
        try:
            if now > calm_at and Schedule.objects.all().set_enabled(enabled=False):
                least = math.inf
            unfinished = TaskRecord.objects.unfinished().count()
        except DatabaseError:
            connection.close()
            unfinished = math.inf
        if unfinished < least:
            least, give_up_at = unfinished, now + patience
        quiet = now > calm_at and cluster.load_has_ended and unfinished == 0
        quiet_since = (quiet_since or now) if quiet else None
        if quiet_since and now - quiet_since > 1.5:
            return
        time.sleep(0.2)


def _judge(cluster: Cluster, storm: Storm, report: Report) -> Report:
    from tests.chaos import oracle

    report.faults, report.notes = [what for _, what in storm.done], storm.notes
    report.violations = [(each.invariant.name, each.count, each.offenders) for each in oracle.findings(storm.harm)]
    report.statistics, slow = oracle.statistics(), oracle.slow_submits(storm.began)
    report.notes += [f"slow: {submit}" for submit in slow]
    if report.violations:
        report.said = {name: program.said() for name, program in cluster.programs.items()}
        lives = [oracle.life(offenders[0], storm.began) for _, _, offenders in report.violations]
        report.lives = list(filter(None, dict.fromkeys(lives)))
    return report
