"""What the documents name is there: files, classes and functions, settings with their defaults, links and pictures."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from django.conf import settings

from scheduling_app.conf import ScheduleSettings
from tasks_app.conf import Setting, TaskSettings

ROOT = settings.BASE_DIR
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"])
#: `tasks_app/outbox.py:RecordingCelery.send_task`: a file or a folder of ours, and perhaps what is defined in it.
NAME = re.compile(r"`((?:tasks_app|scheduling_app|taskconsole|tests)/(?:[\w/]+\.py|[\w/]*))(?::([\w.]+))?`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
#: | `TASK_LEASE` | `30.0` | seconds | …
ROW = re.compile(r"^\| `([A-Z_]+)` \| `([^`]+)` \|", re.MULTILINE)


@cache
def defined_in(file: Path) -> set[str]:
    """The dotted names of a module's functions, classes, methods and variables."""
    return set(_defined(ast.parse(file.read_text()).body, ""))


def _defined(body: list[ast.stmt], prefix: str):
    for node in body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield prefix + name
            case ast.Assign(targets=targets):
                yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield prefix + name
        if isinstance(node, ast.ClassDef):
            yield from _defined(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_name_of_code_is_defined_where_the_page_says(page):
    names = NAME.findall(page.read_text())
    assert [file for file, _ in names if not (ROOT / file).exists()] == []
    assert [f"{file}:{name}" for file, name in names if name and name not in defined_in(ROOT / file)] == []


def test_each_of_the_five_walks_names_its_code_step_by_step():
    walks = re.split(r"^## ", (ROOT / "docs/architecture.md").read_text(), flags=re.MULTILINE)[1:]
    assert [walk.partition(":")[0] for walk in walks] == ["Submit", "Due time", "Revoke", "Lost run", "Chord"]
    assert all(len(NAME.findall(walk)) >= 5 for walk in walks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_and_picture_of_this_repository_leads_somewhere(page):
    targets = [target.partition("#") for target in LINK.findall(page.read_text()) if "://" not in target]
    assert [file for file, _, _ in targets if not (page.parent / file).exists()] == []
    missing = [
        f"{file}#{anchor}"
        for file, _, anchor in targets
        if anchor and anchor not in anchors_of(page.parent / file if file else page)
    ]
    assert missing == []


def anchors_of(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_table_of_settings_has_each_of_ours_with_its_default_and_no_other():
    ours = {
        name: setting.default
        for of_app in (TaskSettings, ScheduleSettings)
        for name, setting in vars(of_app).items()
        if isinstance(setting, Setting)
    }
    rows = ROW.findall((ROOT / "docs/settings.md").read_text())
    assert len(rows) == len(dict(rows)), "one is there twice"
    assert {name: ast.literal_eval(default) for name, default in rows} == ours


@pytest.mark.parametrize("package", ["tasks_app", "tasks_app/relay"])
def test_the_map_of_a_package_names_each_of_its_modules(package):
    words = set(re.findall(r"\w+", ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or ""))
    modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    assert modules <= words, modules - words
