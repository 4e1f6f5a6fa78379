"""What a run says: the table, the tests in which the console differs from plain Celery, and whether that is allowed."""

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

ALLOWED = Path(__file__).parent / "allowed.toml"
STATES = "passed", "failed", "skipped"
#: Of the tests that the console fails, so many may fail with plain Celery too; with more, it is no control.
BOTH = 12


@dataclass(frozen=True)
class Outcome:
    """What became of one test: "passed", "failed", "skipped" or "not run", for lack of time; `text` says why."""

    state: str
    seconds: float = 0
    text: str = ""
    tries: int = 1

    @property
    def has_passed(self) -> bool:
        return self.state == "passed"

    def last_lines(self, count: int) -> str:
        return "\n".join(self.text.splitlines()[-count:])


def read_allowed(path: Path = ALLOWED) -> dict[str, str]:
    """The tests that may differ, by node id, or by that of their file or class, with the reason for each."""
    return {entry["test"]: entry["reason"] for entry in tomllib.loads(path.read_text()).get("allowed", [])}


@dataclass
class Verdict:
    """`console` and `control`, by test; the control may have run only what the console did not pass."""

    console: Mapping[str, Outcome]
    control: Mapping[str, Outcome]
    allowed: Mapping[str, str] = field(default_factory=dict)

    @property
    def regressions(self) -> list[str]:
        """Tests that plain Celery passes and the console does not, for no reason that is listed."""
        return [test for test in self._not_passed() if self.control[test].has_passed and not self._is_allowed(test)]

    @property
    def fault(self) -> str:
        """Why the run is no success; empty where it is one."""
        states = [outcome.state for outcome in (*self.console.values(), *self.control.values())]
        both = [test for test in self._not_passed() if self.control[test].state == "failed"]
        if "not run" in states:
            return f"{states.count('not run')} tests have not run: the time was over."
        if len(both) > BOTH:
            return f"{len(both)} tests fail with plain Celery too: the machine is too busy, or the suite is broken."
        if not any(outcome.has_passed for outcome in self.console.values()):
            return "Not one test has passed with the console."
        return f"{len(self.regressions)} tests pass with plain Celery only." if self.regressions else ""

    def remarks(self) -> dict[str, list[str]]:
        """What there is to say beside the table, each with the tests or the entries that it is about."""
        passed = [test for test, outcome in self.console.items() if outcome.has_passed]
        remarks = {
            "The console passes at the second try only": [test for test in passed if self.console[test].tries > 1],
            "In allowed.toml, but the console passes": [test for test in passed if self._is_allowed(test)],
            "Plain Celery passes, the console does not, and allowed.toml has no reason for it": self.regressions,
        }
        return {what: tests for what, tests in remarks.items() if tests}

    def table(self) -> str:
        """File by file, the console beside the control."""
        rows = [_row("", ["console", "", "", "Celery", "", ""]), _row("", STATES * 2)]
        for file in sorted(set(map(_file, self.console))):
            rows.append(_row(file, self._counts(lambda test, file=file: _file(test) == file)))
        return "\n".join([*rows, _row("all", self._counts(lambda test: True))])

    def as_json(self) -> str:
        sides = {"console": self.console, "control": self.control}
        outcomes = {side: {test: asdict(outcome) for test, outcome in of.items()} for side, of in sides.items()}
        return json.dumps(outcomes, indent=1)

    def _not_passed(self) -> list[str]:
        return [test for test, outcome in self.console.items() if not outcome.has_passed]

    def _is_allowed(self, test: str) -> bool:
        return any(_names(entry, test) for entry in self.allowed)

    def _counts(self, is_counted: Callable[[str], bool]) -> list[int]:
        counts = []
        for outcomes in (self.console, self.control):
            found = [outcome.state for test, outcome in outcomes.items() if is_counted(test)]
            counts += [found.count(state) for state in STATES]
        return counts


def _names(entry: str, test: str) -> bool:
    return test == entry or test.startswith((f"{entry}::", f"{entry}["))


def _file(test: str) -> str:
    return test.split("::")[0].removeprefix("t/integration/")


def _row(name: str, cells: Iterable[object]) -> str:
    return f"{name:<45}" + "".join(f"{cell:>9}" for cell in cells)
