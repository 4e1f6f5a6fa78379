"""python -m benchmarks: the console and its peers, measured side by side. README.md says what the figures mean."""

import argparse
import json
import os
import platform
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from benchmarks.harness import Bar, Lab

PARTS = ("submit", "worker", "workflows", "schedules")
PACKAGES = ("celery", "django", "django-celery-results", "django-celery-beat", "apscheduler", "psycopg", "redis")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part; may be repeated")
    parser.add_argument("--runs", type=int, help="of each way, in turns (default: 3, with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--time-limit", type=float, default=60, help="seconds for a dispatch (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every run")
    options = parser.parse_args()
    runs = options.runs or (1 if options.quick else 3)
    raw: dict = {}
    bars: list[Bar] = []
    with Lab() as lab:
        raw["machine"] = describe(lab)
        print("\n".join(f"{name:<22} {value}" for name, value in raw["machine"].items()), flush=True)
        for part in options.only or PARTS:
            more = (options.time_limit,) if part == "schedules" else ()
            raw[part], checked = import_module(f"benchmarks.{part}").measure(lab, runs, options.quick, *more)
            bars += checked
    raw["bars"] = [vars(bar) | {"passes": bar.passes} for bar in bars]
    if options.json:
        options.json.write_text(json.dumps(raw, indent=1))
    print("\nBars", *bars, sep="\n")
    return 0 if all(bar.passes for bar in bars) else 1


def describe(lab: Lab) -> dict[str, str]:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version'), current_setting('fsync')")
        postgres, fsync = cursor.fetchone()
    broker = lab.broker.info("server")
    return {
        "cores": f"{os.cpu_count()}, {platform.machine()}, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgres": f"{postgres}, fsync {fsync}",
        "broker": f"{broker.get('server_name', 'redis')} {broker.get('valkey_version') or broker['redis_version']}",
    } | {package: version(package) for package in PACKAGES}


if __name__ == "__main__":
    sys.exit(main())
