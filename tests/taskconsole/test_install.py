"""`taskconsole install`, in a project as `startproject` makes it, with the Celery app of Celery's own documentation."""

import subprocess
import sys

import pytest
from django.conf import settings
from django.core.management import call_command

CELERY = """
import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
"""


@pytest.fixture
def project(tmp_path):
    call_command("startproject", "shop", tmp_path)
    (tmp_path / "shop" / "celery.py").write_text(CELERY.lstrip())
    (tmp_path / "shop" / "__init__.py").write_text("from shop.celery import app as celery_app\n")
    with (tmp_path / "shop" / "settings.py").open("a") as file:
        file.write("DATABASES['default'] = {'ENGINE': 'django.db.backends.postgresql', 'NAME': 'none'}\n")
        file.write("CELERY_BROKER_URL = 'redis://127.0.0.1:9/0'\n")
    return tmp_path


def run(project, *args: str) -> subprocess.CompletedProcess:
    environment = {"PYTHONPATH": str(settings.BASE_DIR), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, *args], cwd=project, env=environment, capture_output=True, text=True, timeout=60
    )


def apply(project, diff: str) -> None:
    subprocess.run(["git", "apply"], cwd=project, input=diff, text=True, check=True, timeout=60)


def test_what_is_missing_is_printed_as_a_diff_and_then_nothing_is(project):
    before = {file: file.read_text() for file in project.rglob("*.py")}
    found = run(project, "-m", "taskconsole", "install")
    assert found.returncode == 1, found.stderr
    assert "`manage.py migrate`" in found.stderr
    assert {file: file.read_text() for file in project.rglob("*.py")} == before, "nothing was written"
    apply(project, found.stdout)
    again = run(project, "manage.py", "taskconsole", "install")
    assert (again.returncode, again.stdout.startswith("The console is installed.")) == (0, True), again
    checked = run(project, "manage.py", "check")
    assert (checked.returncode, "no issues" in checked.stdout) == (0, True), checked.stderr


def test_what_a_project_has_already_stays_as_it_is(project):
    settings_file, urls = project / "shop" / "settings.py", project / "shop" / "urls.py"
    with settings_file.open("a") as file:
        file.write('INSTALLED_APPS = INSTALLED_APPS + ["django_celery_results"]\n')
        file.write('CELERY_RESULT_BACKEND = "django-db"  # where results go\n')
    urls.write_text('from django.urls import path\n\nurlpatterns = [path("", lambda request: None)]\n')
    apply(project, run(project, "-m", "taskconsole", "install").stdout)
    text = settings_file.read_text()
    assert text.count("django_celery_results") == 1
    assert 'CELERY_RESULT_BACKEND = "tasks_app.backend:RecordBackend"' in text
    assert "django-db" not in text
    assert urls.read_text().startswith("from django.urls import include, path\n")
    assert run(project, "manage.py", "taskconsole", "install").returncode == 0


@pytest.mark.parametrize(
    ("imported", "called"),
    [
        ("import celery", "celery.Celery"),
        ("from celery import Celery, signals", "Celery"),
        ("from celery import (\n    Celery,\n    signals,\n)", "Celery"),
    ],
)
@pytest.mark.parametrize("installed", ["INSTALLED_APPS = tuple(INSTALLED_APPS)", "INSTALLED_APPS = [*INSTALLED_APPS]"])
def test_however_an_app_is_made_and_the_apps_are_listed_the_diff_works(project, imported, called, installed):
    app = project / "shop" / "celery.py"
    app.write_text(app.read_text().replace("from celery import Celery", imported).replace("= Celery(", f"= {called}("))
    with (project / "shop" / "settings.py").open("a") as file:
        file.write(f"{installed}\n")
    apply(project, run(project, "-m", "taskconsole", "install").stdout)
    again = run(project, "manage.py", "taskconsole", "install")
    assert (again.returncode, again.stderr) == (0, "")


def test_what_else_there_is_needs_the_console_installed(project):
    found = run(project, "-m", "taskconsole", "drain")
    assert (found.returncode, "python -m taskconsole install" in found.stderr) == (1, True)


def test_where_it_is_run_from_elsewhere_it_says_so(tmp_path):
    found = run(tmp_path, "-m", "taskconsole", "install")
    assert (found.returncode, "beside the project's manage.py" in found.stderr) == (1, True)
