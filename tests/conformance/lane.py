"""One side of the comparison: its tests, in one process after another, with a broker of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import redis

from taskconsole.embedded import Valkey, dies_with_parent
from tests.conformance import suite
from tests.conformance.verdict import Outcome

INI = Path(__file__).parent / "suite.ini"
#: Seconds for one test, and for what goes on around it: imports, the worker's start and end.
LIMIT, AROUND = 240, 40
#: So many failed tests, or fewer, are tried once more: on a busy machine some come late.
SECOND_TRIES = 12


class Lane:
    """Runs tests until `give_up_at` (time.monotonic). In `environment`, BROKER stands for the URL of the broker."""

    def __init__(self, broker: Valkey, give_up_at: float, plugins: Iterable[str] = (), **environment: str):
        self.give_up_at = give_up_at
        self.server = redis.Redis.from_url(broker.url)
        self.server.config_set("requirepass", "")  # the suite's own connections know of no password
        self.tests, self.report, self.output = (broker.directory / name for name in ("tests", "report", "output"))
        url = f"redis://127.0.0.1:{broker.port}"
        self.environment = os.environ | {name: text.replace("BROKER", url) for name, text in environment.items()}
        self.environment.pop("DJANGO_SETTINGS_MODULE", None)  # set by taskconsole.celery; the control must not see it
        self.environment |= {
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(broker.port),
            "CONFORMANCE_TESTS": str(self.tests),
            "CONFORMANCE_REPORT": str(self.report),
            "PYTHONPATH": os.pathsep.join(map(str, [suite.ROOT, suite.directory()])),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # for `celery`
        }
        self.command = [sys.executable, "-m", "pytest", "-c", str(INI), "--rootdir=.", f"--timeout={LIMIT}"]
        self.command += [f"-p{plugin}" for plugin in plugins]
        self.command += ["t/integration", *(f"--ignore=t/integration/{file}" for file in suite.ELSEWHERE)]

    def collect(self) -> list[str]:
        """The ids of all tests."""
        self.tests.unlink(missing_ok=True)
        command = [*self.command, "--collect-only"]
        done = subprocess.run(command, cwd=suite.directory(), env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"Celery's tests cannot be collected:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return [line for line in done.stdout.splitlines() if "::" in line]

    def run(self, tests: list[str]) -> dict[str, Outcome]:
        outcomes = self._run(tests)
        failed = [test for test in tests if outcomes[test].state == "failed"]
        if len(failed) <= SECOND_TRIES and not self._is_over():
            for test, outcome in self._run(failed).items():
                outcomes[test] = replace(outcome, tries=2, text=outcome.text or outcomes[test].text)
        return outcomes

    def _run(self, tests: list[str]) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        while left := [test for test in tests if test not in outcomes]:
            if self._is_over():
                return outcomes | dict.fromkeys(left, Outcome("not run"))
            outcomes |= self._run_process(left)
        return outcomes

    def _run_process(self, tests: list[str]) -> dict[str, Outcome]:
        """The outcomes of the first of these tests: to the first that fails, or to the end."""
        self.tests.write_text("\n".join(tests))
        self.report.write_text("")
        self.server.flushall()
        with self.output.open("wb") as output:
            process = subprocess.Popen(
                self.command,
                cwd=suite.directory(),
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )
        try:
            while process.poll() is None and not self._is_over() and not self._is_stuck():
                time.sleep(0.1)
        finally:
            _kill_group(process)
        outcomes = self._outcomes()
        if not outcomes and not self._is_over():
            raise RuntimeError(f"pytest ran none of Celery's tests:\n{self._last_output()}")
        return outcomes

    def _is_over(self) -> bool:
        return time.monotonic() > self.give_up_at

    def _is_stuck(self) -> bool:
        return time.time() - self.report.stat().st_mtime > LIMIT + AROUND

    def _outcomes(self) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        for line in self.report.read_text().split("\n")[:-1]:  # without a last one that a kill cut short
            event = json.loads(line)
            test = event.pop("test")
            outcomes[test] = self._unfinished() if event["state"] == "started" else Outcome(**event)
        return outcomes

    def _unfinished(self) -> Outcome:
        if self._is_over():
            return Outcome("not run")
        return Outcome("failed", text=f"Its process hung or died. The last that it said:\n{self._last_output()}")

    def _last_output(self) -> str:
        return self.output.read_text(errors="replace")[-3000:]


def _kill_group(process: subprocess.Popen) -> None:
    """pytest, and what is left of its worker's children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
