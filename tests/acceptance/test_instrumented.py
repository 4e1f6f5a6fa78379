"""Tracing libraries, as they are: a run belongs to the trace of whoever submitted it, by each way of sending."""

import json
import sys

import pytest

from tests.acceptance.conftest import BRISK
from tests.acceptance.processes import Manage
from tests.sample.instrumented import QUEUE

SUBMIT = "from tests.sample.instrumented import submit; submit()"


@pytest.mark.parametrize("library", ["sentry", "opentelemetry"])
def test_each_way_of_sending_leads_to_a_run_in_the_submitters_trace(worker, library):
    as_library = {"SAMPLE_INSTRUMENTED": library, "EXTRA_QUEUES": QUEUE}
    its_own = ["-Q", QUEUE, "-c", "2", "-l", "INFO", "-n", f"{library}@%h"]
    with Manage("celery", "worker", *its_own, **BRISK | as_library) as traced:
        traced.wait_for("ready.")
        with Manage("shell", "-v", "0", "-c", SUBMIT, **as_library) as submitter:
            submitter.process.wait(90)
            said = submitter.said()
        print(traced.said(), file=sys.stderr)
    (told,) = [json.loads(line) for line in said.splitlines() if line.startswith('{"trace"')] or [said]
    assert told["led to"] == dict.fromkeys(told["led to"], told["trace"])
    assert told["after"], "nothing of a submission is left behind in its submitter"
    assert "no existing span" not in said
