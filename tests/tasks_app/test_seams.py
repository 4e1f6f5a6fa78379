"""What is not ours: each private name of a library stands in a table of `seams`, and is as that table says.

Where this fails after an upgrade, the message says which seam has come undone, and what of the console rests on it.
"""

import ast
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import scheduling_app.seams
import taskconsole
import tasks_app.seams
from tasks_app.seams import KEPT, THERE, Seam

ROOT = Path(taskconsole.__file__).parent.parent
APPS = "tasks_app", "scheduling_app", "taskconsole"


def modules_of(package: ModuleType) -> list[ModuleType]:
    names = [each.name for each in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]
    return [import_module(name) for name in names]


SEAMS = [*modules_of(tasks_app.seams), *modules_of(scheduling_app.seams)]
TABLE = [(module, seam) for module in SEAMS for seam in module.NAMES]


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def sources() -> Iterator[Path]:
    """The modules of the apps past the seams, relative to the project."""
    for app in APPS:
        for path in sorted((ROOT / app).rglob("*.py")):
            path = path.relative_to(ROOT)
            if not {"migrations", "seams"}.intersection(path.parts):
                yield path


def tree_of(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


# The installed libraries


@pytest.mark.parametrize("seam", [seam for _, seam in TABLE], ids=lambda seam: f"{seam.owner}.{seam.name}")
def test_a_private_name_is_as_the_console_expects(seam):
    if "sentry" in seam.owner:
        pytest.importorskip("sentry_sdk")
    assert seam.problem() == ""


class Library:
    limit = 1

    def __init__(self):
        self._state = 1

    def _store(self, task_id, result, request=None):
        pass


def seam_of(name: str, shape: str) -> Seam:
    return Seam(f"{__name__}:Library", name, shape, "Storing", "There is no public way.")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("_store", "(self, task_id, result, request=…)"),
        ("_store", "(self, task_id, result, …)"),
        ("_store", THERE),
        ("limit", THERE),
        ("_state", KEPT),
    ],
)
def test_what_is_as_expected_is_no_problem(name, shape):
    assert not seam_of(name, shape).problem()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("_store", "(self, task_id, result)"),
        ("_store", "(self, task_id, …)"),  # `result` is not optional
        ("_store", "(self, task_id, result, request)"),
        ("_stored", THERE),
        ("limit", "(self)"),
        ("_status", KEPT),
    ],
)
def test_what_is_not_is_told_in_a_sentence(name, shape):
    problem = seam_of(name, shape).problem()
    assert f"Library.{name}: expected {shape}, found " in problem
    assert "Storing breaks. There is no public way." in problem


def test_a_module_that_is_gone_is_told_too():
    assert "found nothing" in Seam("celery.no_such:Task", "_run", THERE, "A run", "").problem()


# The tables are whole


@pytest.mark.parametrize("module", SEAMS, ids=lambda module: module.__name__)
def test_a_seam_uses_what_its_table_names_and_nothing_else(module):
    tree = ast.parse(inspect.getsource(module))
    used = {name for _, name in foreign_names(tree, ours=defined_in(tree, of_self=False))} | overrides_in(module)
    named = {seam.name for seam in module.NAMES}
    owners = {part for seam in module.NAMES for part in re.split("[.:]", seam.owner)}
    assert used <= named | owners, f"{module.__name__}: {', '.join(sorted(used - named))} is in no table."
    unused = {name for name in named - used if is_foreign(name)}
    assert not unused, f"{module.__name__}: {', '.join(sorted(unused))} is in its table, and nowhere else."


def test_no_private_name_is_used_past_the_seams():
    trees = {path: tree_of(path) for path in sources()}
    ours = {name for tree in trees.values() for name in defined_in(tree)}
    found = [
        f"{path}:{line}: {name}"
        for path, tree in trees.items()
        for line, name in foreign_names(tree, ours=defined_in(tree), inherited=ours)
    ]
    assert not found, f"Private names of a library go into `seams`, with their reason: {', '.join(found)}"


def test_no_private_method_is_overridden_past_the_seams():
    found = [f"{path}: {name}" for path in sources() for name in overrides_in(module_of(path))]
    assert not found, f"An override of a library's private method goes into `seams`: {', '.join(found)}"


def test_nothing_of_a_library_is_replaced_past_the_seams():
    found = [f"{path}:{line}" for path in sources() for line in replaced(tree_of(path))]
    assert not found, f"What replaces a part of a library goes into `seams`: {', '.join(found)}"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("task._backend", "_backend"),
        ("task.__header__(1)", "__header__"),
        ("super()._forget(1)", "_forget"),
        ("getattr(pool, '_threads')", "_threads"),
        ("from celery import _state", "_state"),
        ("from celery._state import task", "_state"),
    ],
)
def test_a_private_name_is_found(source, name):
    assert [found for _, found in foreign_names(ast.parse(source))] == [name]


@pytest.mark.parametrize("source", ["rows.model._meta", "row._state.db", "def _f(): pass\nmodule._f", "x.__dict__"])
def test_what_is_documented_or_our_own_is_not(source):
    tree = ast.parse(source)
    assert not list(foreign_names(tree, ours=defined_in(tree)))


def test_a_replaced_part_is_found():
    assert list(replaced(ast.parse("from asgiref.sync import SyncToAsync\nSyncToAsync.executor = 1"))) == [2]
    assert list(replaced(ast.parse("import celery\nsetattr(celery.Task, 'run', 1)"))) == [2]
    assert not list(replaced(ast.parse("from tasks_app import transport\ntransport.on_refused = 1")))


# How they are found

#: Documented, for all their underscores: Django's, and those of named tuples.
DOCUMENTED = {"_meta", "_state", "_default_manager", "_base_manager", "_fields", "_replace", "_asdict", "_exit"}
PRIVATE_DUNDERS = {"__header__", "__eqhash__"}


def foreign_names(tree: ast.AST, ours=frozenset(), inherited=frozenset()) -> Iterator[tuple[int, str]]:
    """The lines and names of what is private to others. `ours`: what the module defines itself; `inherited`: what any
    of our modules defines, where an object has it of its own."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=name):
                own = inherited if is_own(value) else ours
                yield from [(node.lineno, name)] * (is_foreign(name) and name not in own and name not in ours)
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                yield from [(node.lineno, name)] * (is_foreign(name) and name not in ours)
            case ast.ImportFrom(module=str(module), names=names):
                imported = [*module.split("."), *(each.name for each in names)]
                if not module.startswith(APPS):
                    yield from ((node.lineno, name) for name in imported if is_private(name))


def is_foreign(name: str) -> bool:
    return (is_private(name) and name not in DOCUMENTED) or name in PRIVATE_DUNDERS


def is_own(value: ast.expr) -> bool:
    """`self`, `cls` or `super()`."""
    is_super = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super"
    return is_super or (isinstance(value, ast.Name) and value.id in {"self", "cls"})


def defined_in(tree: ast.AST, of_self: bool = True) -> set[str]:
    """The names that a module gives itself: of functions, of variables, and of attributes of `self`, which may be a
    library's too."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()) if of_self:
                names.add(name)
    return names


def module_of(path: Path) -> ModuleType | None:
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    return None if name in NOT_IMPORTED else import_module(name)


#: Modules that do things when they are imported.
NOT_IMPORTED = {"taskconsole.__main__"}


def overrides_in(module: ModuleType | None) -> set[str]:
    """The private names that classes of a module have, and that a base of theirs has which is not ours."""
    classes = [
        cls for _, cls in inspect.getmembers(module, inspect.isclass) if module and cls.__module__ == module.__name__
    ]
    return {
        name
        for cls in classes
        for name in vars(cls)
        if is_foreign(name)
        and not re.fullmatch("_abc_impl|_is_protocol|_[^_].*_", name)  # what Python itself gives a class
        and any(name in vars(base) for base in cls.__mro__[1:] if not base.__module__.startswith((*APPS, "builtins")))
    }


def replaced(tree: ast.AST) -> Iterator[int]:
    """The lines that assign to an attribute of something that was imported from a library. (`admin.site` is a project's
    own to set.)"""
    foreign = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if not module.startswith((*APPS, "django.contrib")):
                foreign |= {each.asname or each.name for each in names}
            case ast.Import(names=names):
                foreign |= {(each.asname or each.name).split(".")[0] for each in names} - sys.stdlib_module_names
            case ast.Attribute(value=value, ctx=ast.Store()) if root_of(value) in foreign:
                yield node.lineno
            case ast.Call(func=ast.Name(id="setattr"), args=[value, *_]) if root_of(value) in foreign:
                yield node.lineno


def root_of(value: ast.expr) -> str:
    while isinstance(value, ast.Attribute):
        value = value.value
    return value.id if isinstance(value, ast.Name) else ""
