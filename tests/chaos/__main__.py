"""Chaos: `python -m tests.chaos --seed 7`, `--seeds 1-12`, `--guards`. See run.py and sabotage.py."""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from tests.chaos import schedulers
from tests.chaos.cluster import ROOT
from tests.chaos.run import FAULTS_PER_MINUTE, RATE, SETTLE, Report, Scenario, run
from tests.chaos.sabotage import GUARDS

#: What `script/chaos` runs by itself.
SEEDS, SECONDS = "1-8", 100


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    if options.guards is not None:
        return guards(options.guards or list(GUARDS))
    if options.seed is None:
        first, last = map(int, options.seeds.split("-"))
        return lane([_scenario(options, seed) for seed in range(first, last + 1)])
    do = schedulers.run if options.schedulers else run
    report = do(_scenario(options, options.seed), keep=options.keep)
    print(report, flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(asdict(report)))
    return bool(report.violations)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/chaos", description="Random faults, and what must hold after them.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="one run")
    which.add_argument("--seeds", default=SEEDS, metavar="A-B", help="many, one after the other (default: %(default)s)")
    which.add_argument("--guards", nargs="*", metavar="GUARD", help="each guard taken away, or these: each has to show")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of load and faults (default: %(default)g)")
    parser.add_argument("--faults-per-minute", type=float, default=FAULTS_PER_MINUTE, help="(default: %(default)g)")
    parser.add_argument("--rate", type=float, default=RATE, help="submissions a second (default: %(default)g)")
    parser.add_argument("--kinds", nargs="*", default=[], help="of faults; all by default")
    parser.add_argument("--mix", nargs="*", default=[], help="kinds of load; all by default")
    parser.add_argument("--schedulers", type=int, default=0, metavar="N", help="N of them alone, over many schedules")
    parser.add_argument("--settings", type=json.loads, default={}, help=argparse.SUPPRESS)
    parser.add_argument("--sql", default="", help=argparse.SUPPRESS)
    parser.add_argument("--settle", type=float, default=SETTLE, help=argparse.SUPPRESS)
    parser.add_argument("--without", default="", choices=["", *GUARDS], help="with this guard taken away")
    parser.add_argument("--keep", action="store_true", help="keep the directory, with what each process said")
    parser.add_argument("--json", help=argparse.SUPPRESS)
    return parser.parse_args()


def _scenario(options: argparse.Namespace, seed: int) -> Scenario:
    return Scenario(
        seed, options.seconds, options.faults_per_minute, options.rate, options.kinds, options.mix, options.settings,
        options.sql, options.without, options.settle, options.schedulers,
    )  # fmt: skip


def lane(scenarios: list[Scenario]) -> int:
    reports = []
    for scenario in scenarios:
        reports += in_processes(scenario)
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
    print(f"{faults} faults in {minutes:.0f} minutes; seeds with violations: {violated or 'none'}")
    return bool(violated)


def guards(names: list[str]) -> int:
    """Each scenario without its guard, which has to show, and with it, which has to pass."""
    failed, lines = [], []
    for name in names:
        guard, scenario = GUARDS[name], GUARDS[name].scenario
        both = replace(scenario, without=name), replace(scenario, sql="", settle=SETTLE)
        off, on = in_processes(*both)
        shown = any(violated.startswith(guard.shows) for violated, _, _ in off.violations)
        if on.violations or not shown:
            failed.append(name)
            print(on if on.violations else off, flush=True)
        passed = "FAILS" if on.violations else "passes"
        violated = ", ".join(name for name, _, _ in off.violations) or "nothing"
        lines.append(f"{name:<13} {scenario.seed:>4}  {passed:<9} {'' if shown else 'NOT SHOWN: '}{violated}")
        print(lines[-1], flush=True)
    print(f"\n{'guard':<13} seed  with it   without it, violated:")
    print("\n".join(lines))
    print(f"guards whose run tells nothing: {', '.join(failed) or 'none'}")
    return bool(failed)


def in_processes(*scenarios: Scenario) -> list[Report]:
    """Run them side by side, each in a process of its own."""
    with tempfile.TemporaryDirectory() as answers:
        files = [Path(answers) / f"{number}.json" for number in range(len(scenarios))]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.chaos", *_arguments(scenario), f"--json={file}"],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
            )
            for scenario, file in zip(scenarios, files, strict=True)
        ]
        try:
            for process in processes:
                process.wait()
        finally:  # Ctrl-C: let them clear up
            for process in processes:
                process.terminate()
                process.wait()
        if missing := [process.args for process, file in zip(processes, files, strict=True) if not file.exists()]:
            raise SystemExit(f"Ended without a report: {missing}")
        return [Report(**json.loads(file.read_text())) for file in files]


def _arguments(scenario: Scenario) -> list[str]:
    return [
        f"--seed={scenario.seed}", f"--seconds={scenario.seconds}", f"--faults-per-minute={scenario.per_minute}",
        f"--rate={scenario.rate}", f"--settings={json.dumps(scenario.settings)}", f"--sql={scenario.sql}",
        f"--settle={scenario.settle}", f"--without={scenario.without}", f"--schedulers={scenario.schedulers}",
        *(["--kinds", *scenario.kinds] if scenario.kinds else []), *(["--mix", *scenario.mix] if scenario.mix else []),
    ]  # fmt: skip


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
