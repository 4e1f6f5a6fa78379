"""The short lane of script/chaos: a minute of real processes killed, frozen and starved while they work."""

from dataclasses import replace

import pytest

from tests.chaos.__main__ import in_processes
from tests.chaos.run import Scenario
from tests.chaos.sabotage import GUARDS

pytestmark = pytest.mark.timeout(600)


def test_nothing_is_lost_and_nothing_happens_twice_under_random_faults():
    (report,) = in_processes(Scenario(seed=1, seconds=16, per_minute=70))
    assert not report.violations, str(report)
    assert len(report.faults) >= 12


def test_a_guard_that_is_taken_away_is_missed():
    guard = GUARDS["claim-gen"]
    (report,) = in_processes(replace(guard.scenario, without="claim-gen", seconds=6))
    assert any(name.startswith(guard.shows) for name, _, _ in report.violations), str(report)
