import shutil
import tempfile
import time
from pathlib import Path

import pytest

from taskconsole.embedded import Valkey
from tests.conformance import lane as lanes
from tests.conformance import suite
from tests.conformance.lane import Lane

SAMPLE = """
import os, signal, time

def test_passes():
    pass

def test_fails():
    assert "this" == "that"

def test_dies():
    os._exit(1)

def test_comes_late():
    time.sleep(60)

def test_hangs():
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    time.sleep(60)

def test_passes_at_the_second_try():
    was_tried = os.path.exists("tried")
    open("tried", "w").close()
    assert was_tried

def test_comes_last():
    pass
"""
HANGS, LAST = (f"t/integration/test_sample.py::test_{name}" for name in ("hangs", "comes_last"))


@pytest.fixture(scope="module")
def broker():
    directory = Path(tempfile.mkdtemp(prefix="taskconsole-lane-"))
    directory.chmod(0o755)
    with Valkey(directory / "broker", persistence=False) as server:
        yield server
    shutil.rmtree(directory)


@pytest.fixture
def make_lane(broker, tmp_path, monkeypatch):
    """A lane whose suite is SAMPLE, and which has `seconds` for all of it, one for each test."""
    folder = tmp_path / "t" / "integration"
    folder.mkdir(parents=True)
    for file, text in {"../__init__.py": "", "__init__.py": "", "test_sample.py": SAMPLE}.items():
        (folder / file).write_text(text)
    monkeypatch.setattr(suite, "directory", lambda: tmp_path)
    monkeypatch.setattr(lanes, "LIMIT", 1)
    return lambda seconds: Lane(broker, time.monotonic() + seconds)


def test_no_test_spoils_the_others_by_its_failure_its_death_or_its_slowness(make_lane):
    lane = make_lane(120)
    outcomes = lane.run([test for test in lane.collect() if "hangs" not in test])
    outcomes = {test.split("::")[1]: outcome for test, outcome in outcomes.items()}
    assert [name for name, outcome in outcomes.items() if outcome.has_passed] == [
        "test_passes", "test_passes_at_the_second_try", "test_comes_last",
    ]  # fmt: skip
    assert outcomes["test_passes"].tries == 1
    assert outcomes["test_passes_at_the_second_try"].tries == 2
    assert "'this' == 'that'" in outcomes["test_fails"].text
    assert "hung or died" in outcomes["test_dies"].text
    assert "Timeout" in outcomes["test_comes_late"].text


def test_a_process_that_hangs_is_ended(make_lane, monkeypatch):
    monkeypatch.setattr(lanes, "AROUND", 5)
    monkeypatch.setattr(lanes, "SECOND_TRIES", 0)
    outcomes = make_lane(120).run([HANGS, LAST])
    assert "hung or died" in outcomes[HANGS].text
    assert outcomes[LAST].has_passed


def test_what_has_not_ended_when_the_time_is_over_counts_as_not_run(make_lane):
    outcomes = make_lane(3).run([HANGS, LAST])
    assert {outcome.state for outcome in outcomes.values()} == {"not run"}


def test_a_suite_of_which_nothing_can_be_run_ends_it_all(make_lane):
    with pytest.raises(RuntimeError, match="ran none of Celery's tests"):
        make_lane(120).run(["t/integration/test_sample.py::test_that_is_not_there"])
