"""Chaos: `python -m tests.chaos --seed 7`, `--seeds 1-12`, `--guards`. See tests/chaos/run.py."""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.chaos.run import FAULTS_PER_MINUTE, RATE, Report, run


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    if options.guards is not None:
        return guards(options)
    if options.seeds:
        return lane(options)
    report = run(
        options.seed, options.seconds, options.faults_per_minute, options.without, rate=options.rate, keep=options.keep
    )
    print(report, flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(asdict(report)))
    return bool(report.violations)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/chaos", description="Random faults, and an oracle.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, default=1, help="of the load and of the faults (default: %(default)s)")
    which.add_argument("--seeds", metavar="A-B", help="one after the other, each in a cluster of its own")
    which.add_argument("--guards", nargs="*", metavar="GUARD", help="each guard off, or these: each run has to fail")
    parser.add_argument("--seconds", type=float, default=60, help="of load and faults (default: %(default)s)")
    parser.add_argument("--faults-per-minute", type=float, default=FAULTS_PER_MINUTE, help="(default: %(default)s)")
    parser.add_argument("--rate", type=float, default=RATE, help="submissions a second (default: %(default)s)")
    parser.add_argument("--without", default="", metavar="GUARD", help="with this guard switched off")
    parser.add_argument("--keep", action="store_true", help="keep the directory, with what each process said")
    parser.add_argument("--json", help=argparse.SUPPRESS)
    return parser.parse_args()


def lane(options: argparse.Namespace) -> int:
    """The seeds A to B, and a table."""
    first, last = map(int, options.seeds.split("-"))
    reports = []
    for seed in range(first, last + 1):
        arguments = ["--seconds", options.seconds, "--faults-per-minute", options.faults_per_minute]
        reports.append(in_a_process("--seed", seed, "--rate", options.rate, *arguments))
        print(reports[-1], flush=True)
    print(f"\n{'seed':>5} {'faults':>7} {'tasks':>6} {'starts':>7} {'lost':>5} {'violations':>11} {'seconds':>8}")
    for each in reports:
        figures = each.statistics
        print(
            f"{each.seed:>5} {len(each.faults):>7} {figures['tasks']:>6} {figures['starts']:>7} {figures['lost']:>5} "
            f"{sum(count for _, count, _ in each.violations):>11} {each.seconds:>8.0f}"
        )
    violated = [each.seed for each in reports if each.violations]
    faults, minutes = sum(len(each.faults) for each in reports), sum(each.seconds for each in reports) / 60
    print(f"{faults} faults in {minutes:.0f} minutes; violated: {violated or 'nothing'}")
    return bool(violated)


def in_a_process(*arguments: object) -> Report:
    """A run in a process of its own."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos", *map(str, arguments), "--json", answer.name],
            stdout=subprocess.DEVNULL,
        )
        try:
            process.wait()
        except BaseException:  # Ctrl-C reaches it too; let it clear up
            process.terminate()
            process.wait()
            raise
        text = answer.read()
    if not text:
        raise SystemExit(f"chaos {' '.join(map(str, arguments))} ended with {process.returncode}, without a report.")
    return Report(**json.loads(text))


def guards(options: argparse.Namespace) -> int:
    raise NotImplementedError


if __name__ == "__main__":
    sys.exit(main())
