"""Submitting: what a task costs whoever calls `delay`, in a fresh process each time, one commit a submit."""

from benchmarks.harness import PEER, Bar, Lab, median, print_table, spread

PLAIN = "plain delay"
WAYS = {
    PLAIN: ("delay", PEER),
    "plain send_task": ("send_task", PEER),
    "recorded delay": ("delay", {}),
    "recorded send_task": ("send_task", {}),
    "recorded submit_many of 500": ("submit_many", {}),
}


def measure(lab: Lab, runs: int, quick: bool) -> tuple[dict, list[Bar]]:
    number = 1_500 if quick else 5_000
    got = {name: [] for name in WAYS}
    for _ in range(runs):
        for name, (way, environment) in WAYS.items():
            lab.empty()
            lab.quiet()
            took = lab.run("-m", "benchmarks.project.submitter", way, str(number), **environment)
            each = {clock: seconds / number * 1e6 for clock, seconds in took.items()}
            got[name].append(each | {"others": lab.others()})
    return got, report(got, number)


def report(got: dict, number: int) -> list[Bar]:
    wall = {name: [run["wall"] for run in runs] for name, runs in got.items()}
    ratio = {name: median(wall[name]) / median(wall[PLAIN]) for name in WAYS}
    print_table(
        f"Submit: microseconds a task, {number:,} tasks in one process",
        ["", "wall", "CPU", "ratio", "cores of others"],
        [
            [
                name,
                spread(wall[name]),
                spread([run["cpu"] for run in got[name]]),
                f"{ratio[name]:.2f}",
                spread([run["others"] for run in got[name]], 1),
            ]
            for name in WAYS
        ],
    )
    return [
        Bar("recorded delay to plain delay", ratio["recorded delay"], 2.2),
        Bar("submit_many to plain delay", ratio["recorded submit_many of 500"], 0.25),
    ]
