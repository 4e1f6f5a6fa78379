"""Celery's own integration tests, unchanged: with the console, and with plain Celery and results in Redis beside it.

A test that plain Celery passes and the console does not is a fault, but for the few of allowed.toml.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from taskconsole.embedded import Postgres, Valkey
from tests.conformance import suite
from tests.conformance.lane import Lane
from tests.conformance.verdict import Outcome, Verdict, read_allowed

Outcomes = dict[str, Outcome]
#: Minutes after which it is given up: on 2 quiet cores it takes half as long.
MINUTES, QUICK_MINUTES = 30, 6
#: Processes at once on either side: most tests wait most of their time.
LANES = 2
#: Of a failed test, the last lines that are printed; all of it is in RESULTS.
LINES = 25
RESULTS = suite.CACHE / "results.json"
#: The console's settings, whatever the developer's machine says; BROKER is the lane's.
CONSOLE = {
    "TEST_BROKER": "BROKER/1", "TEST_BACKEND": "other://", "REDIS_URL": "BROKER/1",
    "CELERY_BROKER_URL": "",  # the suite's own processes of plain Celery would take it
    "SECRET_KEY": "conformance", "DEBUG": "0", "TIME_ZONE": "UTC", "EXTRA_APPS": "", "EXTRA_QUEUES": "",
    "BEAT_ENABLED": "0",
}  # fmt: skip


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    give_up_at = time.monotonic() + 60 * (options.minutes or (QUICK_MINUTES if options.quick else MINUTES))
    with lanes(give_up_at) as (console, control):
        tests = suite.quick(control[0].collect()) if options.quick else control[0].collect()
        tests = [test for test in tests if not options.tests or any(part in test for part in options.tests)]
        if options.quick:
            (of_console,) = run((console, tests))
            (of_control,) = run((control, [test for test in tests if not of_console[test].has_passed]))
        else:
            of_console, of_control = run((console, tests), (control, tests))
    verdict = Verdict(of_console, of_control, read_allowed())
    RESULTS.write_text(verdict.as_json())
    print_verdict(verdict)
    return bool(verdict.fault)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/conformance", description=__doc__)
    parser.add_argument("tests", nargs="*", help="those whose ids contain one of these; all by default")
    parser.add_argument("--quick", action="store_true", help="a part; plain Celery runs only what the console fails")
    parser.add_argument("--minutes", type=float, help=f"for it all (default: {MINUTES}, with --quick {QUICK_MINUTES})")
    return parser.parse_args()


@contextlib.contextmanager
def lanes(give_up_at: float) -> Iterator[tuple[list[Lane], list[Lane]]]:
    """The console's and plain Celery's, each with servers of its own."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskconsole-conformance-")))
        directory.chmod(0o755)  # for the account that runs the servers

        def broker(name: str) -> Valkey:
            return stack.enter_context(Valkey(directory / name, persistence=False))

        def console(number: int) -> Lane:
            server = Postgres(directory / f"postgres-{number}", settings={"fsync": "off"})
            environment = CONSOLE | {"DATABASE_URL": stack.enter_context(server).url}
            migrate = [sys.executable, "manage.py", "migrate", "--skip-checks", "--verbosity=0"]
            subprocess.run(migrate, cwd=suite.ROOT, env=os.environ | environment, check=True)
            return Lane(broker(f"console-{number}"), give_up_at, ["tests.conformance.console"], **environment)

        def control(number: int) -> Lane:
            return Lane(broker(f"control-{number}"), give_up_at, TEST_BROKER="BROKER/2", TEST_BACKEND="BROKER/3")

        yield [console(number) for number in range(LANES)], [control(number) for number in range(LANES)]


def run(*sides: tuple[list[Lane], list[str]]) -> list[Outcomes]:
    """The outcomes of each side's tests, which its lanes share out among them; all lanes run at once."""
    with ThreadPoolExecutor(max_workers=2 * LANES) as threads:
        runs = [
            [threads.submit(lane.run, tests[number :: len(lanes)]) for number, lane in enumerate(lanes)]
            for lanes, tests in sides
        ]
        try:
            found = [{test: outcome for each in side for test, outcome in each.result().items()} for side in runs]
        except BaseException:
            for lane in (lane for lanes, _ in sides for lane in lanes):
                lane.give_up_at = 0  # ends the others' processes before their servers
            raise
    return [{test: outcomes[test] for test in tests} for outcomes, (_, tests) in zip(found, sides, strict=True)]


def print_verdict(verdict: Verdict) -> None:
    for test in verdict.regressions:
        print(f"\n##### {test}\n{verdict.console[test].last_lines(LINES)}")
    print("", verdict.table(), "", sep="\n")
    for what, tests in verdict.remarks().items():
        print(f"{what}:", *tests, sep="\n  ")
    print(verdict.fault or "The console passes whatever plain Celery passes, but for what allowed.toml lists.")


if __name__ == "__main__":
    sys.exit(main())
