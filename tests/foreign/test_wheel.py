"""What `pip install taskconsole` brings into a project that had Celery and Beat, and out of it again: from a wheel, in
an environment of its own. script/matrix does so with other Pythons and Djangos (MATRIX_PYTHON,
MATRIX_REQUIREMENTS)."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from django.conf import settings

from tests.acceptance.processes import eventually
from tests.foreign.shop import PROJECT, Shop

pytestmark = pytest.mark.timeout(300)
PYTHON = os.environ.get("MATRIX_PYTHON", sys.executable)
REQUIREMENTS = os.environ.get("MATRIX_REQUIREMENTS", "Django~=5.2.0").split()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, settings.BASE_DIR]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> str:
    """A Python that has the wheel, Django, Beat and pytest, and nothing of ours besides."""
    directory = tmp_path_factory.mktemp("environment")
    subprocess.run([PYTHON, "-m", "venv", directory], check=True, timeout=60)
    python = str(directory / "bin" / "python")
    install = [python, "-m", "pip", "install", "-qq", f"{wheel}[beat]", *REQUIREMENTS, "pytest", "pytest-django"]
    subprocess.run(install, check=True, timeout=240, env=_without_ours())
    return python


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The shop before the console came, with plain Celery."""
    directory = tmp_path_factory.mktemp("project") / "shop"
    shutil.copytree(PROJECT, directory, ignore=shutil.ignore_patterns("__pycache__"))
    _edit(directory / "shop/settings.py", lambda text: _without(text, "# The console", "tasks_app"))
    _edit(directory / "shop/urls.py", lambda text: _without(text, "taskconsole"))
    _edit(
        directory / "shop/celery.py",
        lambda text: _without(text, "tasks_app").replace("RecordingCelery(", "Celery("),
    )
    return directory


@pytest.fixture(scope="module")
def shop(python, project):
    shop = Shop(15, {}, python, project)
    yield shop
    shop.close()


def test_the_wheel_has_all_that_the_apps_need_and_nothing_of_this_site(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"taskconsole", "tasks_app", "scheduling_app", f"taskconsole-{_version(wheel)}.dist-info"}
    assert not names & {f"taskconsole/{file}.py" for file in ("settings", "celery", "wsgi", "site_urls")}
    packages = [settings.BASE_DIR / name for name in ("taskconsole", "tasks_app", "scheduling_app")]
    kinds = ("templates", "static", "migrations")
    found = [file for app in packages for kind in kinds for file in app.glob(f"{kind}/**/*.*")]
    parts = [str(file.relative_to(settings.BASE_DIR)) for file in found if file.suffix != ".pyc"]
    assert len(parts) > 50
    assert [name for name in parts if name not in names] == []
    metadata = Parser().parsestr(zipfile.ZipFile(wheel).read(_metadata(names)).decode())
    assert metadata["License-Expression"] == "MIT"
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {"beat", "embedded", "server"} <= set(metadata.get_all("Provides-Extra"))
    needed = {line.split(";")[0].strip() for line in metadata.get_all("Requires-Dist") if "extra" not in line}
    assert not [line for line in needed if line.startswith(("environs", "whitenoise", "gunicorn", "django-csp"))]


def test_into_a_project_and_out_of_it_again(shop, project):
    # With plain Celery: its pages, its worker, its Beat.
    old_pages = shop.serve()
    with_plain = shop.start("shell", "-c", PLAIN_WORKER, until="ready.")
    old_pages.get("/order/kettle/")
    eventually(lambda: _shipped(shop) == ["kettle"], 20, "an order that plain Celery ships")
    with_plain.stop()

    # In: what is missing, as a diff.
    diff = _diff(shop)
    assert {line for line in diff.splitlines() if line.startswith("+++")} == {
        "+++ b/shop/settings.py", "+++ b/shop/celery.py", "+++ b/shop/urls.py",
    }  # fmt: skip
    _apply(project, diff)
    assert shop.manage("taskconsole", "install").startswith("The console is installed.")
    shop.manage("migrate", "-v", "0")
    shop.manage("check", "--fail-level", "WARNING")
    shop.run_pytest()

    # A deploy, workers first: what the old pages still send is recorded where it is taken, and runs once.
    worker = shop.start("celery", "worker", "-c", "1", "-Q", "shop,mail,slow", "-l", "INFO", until="ready.")
    old_pages.get("/order/lamp/")
    assert shop.record("orders.tasks.ship")["state"] == "SUCCESS"
    assert _shipped(shop) == ["kettle", "lamp"]
    shop.server.stop()
    pages = shop.serve()
    task_id = pages.get("/order/clock/").text
    eventually(lambda: _shipped(shop) == ["clock", "kettle", "lamp"], 20, "an order of the new pages")
    assert pages.sign_in("/console/").status == 200
    assert "clock is on its way" in pages.get(f"/console/tasks/{task_id}").text

    # Beat's tables are taken over, and fire.
    shop.manage("shell", "-c", BEATS)
    shop.manage("importbeat", "--apply", "--disable-imported")
    scheduler = shop.start("runscheduler", until="Scheduler started.")
    assert shop.record("orders.tasks.report")["queue"] == "slow", "as its route says, and Beat had it"

    # Out: what only the console knows is handed to plain Celery.
    scheduler.stop()
    worker.stop()
    shop.server.stop()
    assert "1 scheduled" in shop.manage("taskconsole", "drain", "--timeout", "0", fails=True)
    handed = shop.manage("taskconsole", "drain", "--hand-over")
    assert "1 handed over to plain Celery." in handed
    assert shop.manage("taskconsole", "drain") == "Nothing is left.\n"
    exported = json.loads(shop.manage("schedules", "export", "-"))
    assert "every second" in json.dumps(exported)
    _apply(project, diff, "--reverse")
    shop.start("shell", "-c", PLAIN_WORKER, until="ready.")
    shop.serve().get("/order/vase/")
    eventually(lambda: "vase" in _shipped(shop), 20, "an order that plain Celery ships again")
    shop.run_pytest()


PLAIN_WORKER = """
from shop.celery import app
app.worker_main(["worker", "-c", "1", "-P", "solo", "-Q", "shop,mail,slow", "-l", "INFO"])
"""
BEATS = """
from django_celery_beat.models import IntervalSchedule, PeriodicTask
second = IntervalSchedule.objects.create(every=1, period="seconds")
PeriodicTask.objects.create(name="every second", task="orders.tasks.report", interval=second)
"""


def _shipped(shop: Shop) -> list[str]:
    return [
        row["item"] for row in shop.rows("SELECT item FROM orders_order WHERE shipped_at IS NOT NULL ORDER BY item")
    ]


def _diff(shop: Shop) -> str:
    done = subprocess.run(
        [shop.python, "-m", "taskconsole", "install"],
        cwd=shop.directory, env=shop.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    return done.stdout


def _apply(project: Path, diff: str, *options: str) -> None:
    subprocess.run(["git", "apply", *options], cwd=project, input=diff, text=True, check=True, timeout=60)


def _edit(file: Path, change) -> None:
    file.write_text(change(file.read_text()))


def _without(text: str, *marks: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not any(mark in line for mark in marks))


def _without_ours() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DJANGO_SETTINGS_MODULE")}


def _version(wheel: Path) -> str:
    return wheel.name.split("-")[1]


def _metadata(names: set[str]) -> str:
    return next(name for name in names if name.endswith(".dist-info/METADATA"))
