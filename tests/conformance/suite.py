"""Celery's own integration tests, as they lie in its source package."""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent.parent
CACHE = ROOT / "var" / "conformance"

#: Files that are left out, and what is tested in them: nothing that meets the console.
ELSEWHERE = {
    "test_backend.py": "Azure's result backend",
    "test_backend_leak_in_fixture_teardown.py": "the sockets of Redis's result backend, for two minutes",
    "test_cache_backend.py": "memcached's result backend",
    "test_database_backend.py": "SQLAlchemy's result backend",
    "test_security.py": "signed messages, of which the console takes none",
}

#: The files that meet the console most, of which `--quick` runs every so many-th test.
QUICK, EACH = ("test_canvas.py", "test_group_chains.py", "test_inspect.py", "test_tasks.py"), 4
FIRST = 1  # so that the slowest are not among them


def quick(tests: list[str]) -> list[str]:
    """A part of these tests, spread over all that they are about."""
    return [test for test in tests if test.split("::")[0].endswith(QUICK)][FIRST::EACH]


def directory() -> Path:
    """A folder with the `t/integration` of the installed Celery in it; pip fetches it the first time.

    Of the source package only `t` is unpacked: with all of it on Python's path, its Celery would be the one tested.
    """
    release = version("celery")
    where = CACHE / f"celery-{release}"
    if not where.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            unpacked = _unpack(_fetch(f"celery=={release}", Path(folder)))
            unpacked.rename(where)  # at the end: an interrupted start leaves nothing half done
    return where


def _fetch(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary=celery", f"--dest={folder}", requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"pip cannot fetch the source package of {requirement}, with Celery's tests:\n{done.stderr.strip()}")
    return next(folder.glob("celery-*.tar.gz"))


def _unpack(package: Path) -> Path:
    top = package.name.removesuffix(".tar.gz")
    wanted = f"{top}/t/integration/", f"{top}/t/__init__.py", f"{top}/t/skip.py", f"{top}/t/canvas_helpers.py"
    with tarfile.open(package) as archive:
        members = [member for member in archive if member.name.startswith(wanted)]
        archive.extractall(package.parent, members, filter="data")
    return package.parent / top
