"""A pytest plugin for both sides: which tests a process runs, for how long, and what became of each.

A process ends with its first failed test, for that may leave anything behind: a worker that is busy, a connection that
broke in the midst of a statement. The rest runs in a new one.
"""

import json
import os
import signal
import time
from pathlib import Path

import pytest

#: Written by __main__: the tests to run, one a line. Written here: what happened, one JSON object a line.
TESTS, REPORT = Path(os.environ["CONFORMANCE_TESTS"]), Path(os.environ["CONFORMANCE_REPORT"])

_phases: list[pytest.TestReport] = []
_has_begun: list[bool] = []
_started_at = 0.0


def pytest_configure(config):
    for marker in ("flaky(**options)", "timeout(seconds)", "celery(**overrides)"):
        config.addinivalue_line("markers", marker)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    if TESTS.exists():
        wanted = set(TESTS.read_text().splitlines())
        items[:] = [item for item in items if item.nodeid in wanted]
    for item in items:
        for node in item.listchain():  # no reruns, and no limit but ours
            node.own_markers[:] = [mark for mark in node.own_markers if mark.name not in ("flaky", "timeout")]


def pytest_runtest_logstart(nodeid):
    global _started_at
    _started_at = time.monotonic()
    _write(test=nodeid, state="started")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    """Lets the first test meet a worker that is older than the second that `stats` counts in; plain Celery's, which
    fails less and so starts less often, is older at that test."""
    if not _has_begun and "celery_session_worker" in item.fixturenames:
        time.sleep(1)
        _has_begun.append(True)


def pytest_runtest_logreport(report):
    _phases.append(report)


def pytest_runtest_logfinish(nodeid):
    outcomes = {report.outcome for report in _phases}
    state = next(outcome for outcome in ("failed", "skipped", "passed") if outcome in outcomes)
    seconds = round(time.monotonic() - _started_at, 2)
    _write(test=nodeid, state=state, seconds=seconds, text="\n".join(filter(None, map(_told, _phases))))
    _phases.clear()
    if state == "failed":
        os.killpg(0, signal.SIGKILL)  # with the children of its worker


def _told(report) -> str:
    if report.skipped:
        return str(getattr(report, "wasxfail", "") or report.longrepr[-1])
    if not report.failed:
        return ""
    sections = [f"--- {title}\n{content[-3000:]}" for title, content in report.sections]
    return "\n".join([*sections, f"--- {report.when}", report.longreprtext[-5000:]])


def _write(**event) -> None:
    with REPORT.open("a") as report:
        report.write(json.dumps(event) + "\n")
