"""The snippets of docs/testing.md work as they stand, in a project of their own, and leave no database behind."""

import os
import re
import subprocess
import sys

import pytest
from django.conf import settings
from django.db import connection

pytestmark = pytest.mark.timeout(400)
PAGE = (settings.BASE_DIR / "docs" / "testing.md").read_text()
MODEL = "from django.db import models\n\n\nclass Order(models.Model):\n    pass\n"


@pytest.fixture
def project(tmp_path):
    """The files that the page names."""
    (tmp_path / "shop").mkdir()
    for name, text in re.findall(r"^```python\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "models.py").write_text(MODEL)
    (tmp_path / "pytest.ini").write_text("[pytest]\nDJANGO_SETTINGS_MODULE = taskconsole.settings\n")
    return tmp_path


def outcome(project, database: str, *arguments: str, **environment: str) -> str:
    """What pytest says of the project's tests, with a database server that it makes a test database on."""
    url = os.environ["DATABASE_URL"].rpartition("/")[0] + f"/{database}"
    python_path = os.pathsep.join([str(project), str(settings.BASE_DIR)])
    environment = {**os.environ, "DATABASE_URL": url, "EXTRA_APPS": "shop", "PYTHONPATH": python_path, **environment}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error::pytest.PytestWarning", *arguments]
    ran = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def is_there(database: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_database WHERE datname = %s", [f"test_{database}"])
        return bool(cursor.rowcount)


@pytest.mark.django_db
def test_each_snippet_passes_and_the_database_is_dropped(project):
    assert "9 passed" in outcome(project, "snippets")
    assert not is_there("snippets")


@pytest.mark.django_db
def test_a_broker_in_memory_does_for_workers_within_the_tests_process(project):
    said = outcome(project, "in_memory", "-k", "Sent or test_it_is_shipped", CELERY_BROKER_URL="memory://")
    assert "4 passed" in said
    assert not is_there("in_memory")


def test_the_first_two_need_no_database_at_all(project):
    said = outcome(
        project, "nowhere", "test_body.py", "test_eager.py", DATABASE_URL="postgres://nobody@127.0.0.1:9/none"
    )
    assert "2 passed" in said
