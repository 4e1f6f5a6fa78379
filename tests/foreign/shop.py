"""A shop that runs: its processes, its pages as a browser gets them, and its rows."""

import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
from django.conf import settings
from psycopg.rows import dict_row

from tests.acceptance.processes import Manage, eventually

PROJECT = Path(__file__).parent / "project"
STAFF, PASSWORD = "ada@shop.example", "correct horse battery staple"


class ShopCommand(Manage):
    """`manage.py …` of a shop."""

    def __init__(self, shop: "Shop", *arguments: str, **environment: str):
        super().__init__(*arguments)
        self.directory, self.python = shop.directory, shop.python
        self.environment = shop.environment | {"PYTHONUNBUFFERED": "1"} | environment


class Answer:
    """What a page answered, after redirects: its status, address and text."""

    def __init__(self, status: int, url: str, text: str, headers: Any):
        self.status, self.url, self.text, self.headers = status, url, text, headers


class Shop:
    """One shop, migrated, with a member of staff. `variation` is what of its environment is not as usual.

    `python` and `directory`: where the console is installed, and what it is in, if that is not this checkout.
    """

    def __init__(self, number: int, variation: dict[str, str], python: str = sys.executable, directory: Path = PROJECT):
        self.python, self.directory = python, directory
        server, _, _ = os.environ["DATABASE_URL"].rpartition("/")
        broker, _, _ = os.environ["REDIS_URL"].rpartition("/")
        self.maintenance = f"{server}/postgres"
        self.names = [f"shop_{number}"]
        if "SHOP_REPLICA" in variation:
            self.names.append(variation["SHOP_REPLICA"])
        self.url = f"{server}/{self.names[0]}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in _OURS},
            "PYTHONPATH": str(settings.BASE_DIR) if python == sys.executable else "",
            "DATABASE_URL": self.url,
            "REDIS_URL": f"{broker}/{number}",
            **variation,
        }
        self._as_administrator(f"CREATE DATABASE {self.names[0]}")
        self.manage("migrate", "-v", "0")
        for replica in self.names[1:]:  # which never hears of anything
            self._as_administrator(f"CREATE DATABASE {replica} TEMPLATE {self.names[0]}")
        self.manage("createsuperuser", "--noinput", "--email", STAFF, DJANGO_SUPERUSER_PASSWORD=PASSWORD)
        self._running: list[ShopCommand] = []

    def manage(self, *arguments: str, fails: bool = False, **environment: str) -> str:
        """What a command says; an error where it ends as it is not to."""
        return self._run("manage.py", *arguments, fails=fails, **environment)

    def run_pytest(self) -> str:
        """The shop's own tests, which expect no prefix, and one app and database."""
        return self._run(
            "-m", "pytest", "-q", "-p", "no:cacheprovider", SHOP_SCRIPT_NAME="", SHOP_REPLICA="", SHOP_SECOND_APP=""
        )

    def _run(self, *arguments: str, fails: bool = False, **environment: str) -> str:
        done = subprocess.run(
            [self.python, *arguments],
            cwd=self.directory,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        said = done.stdout + done.stderr
        assert bool(done.returncode) == fails, f"{arguments}: {done.returncode}\n{said}"
        return said

    def start(self, *arguments: str, until: str = "", **environment: str) -> ShopCommand:
        """A process that goes on, once it has said `until`."""
        process = ShopCommand(self, *arguments, **environment)
        self._running.append(process)
        process.__enter__()
        process.wait_for(until)
        return process

    def open(self) -> "Visitor":
        """Start all of it; whoever visits its pages, not signed in."""
        worker = self.start("celery", "worker", "-c", "1", "-Q", "shop,mail,slow", "-l", "INFO")
        scheduler = self.start("runscheduler")
        visitor = self.serve()
        worker.wait_for("ready.")
        scheduler.wait_for("Scheduler started.")
        return visitor

    def serve(self) -> "Visitor":
        """Start its pages alone."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.server = self.start("runserver", "--noreload", "--insecure", address, until="Quit the server")
        visitor = Visitor(address, self.environment.get("SHOP_SCRIPT_NAME", ""))
        eventually(lambda: visitor.get("/").status == 200, 20, "the shop's front page")
        return visitor

    def rows(self, sql: str, *values: Any) -> list[dict]:
        with psycopg.connect(self.url, autocommit=True, row_factory=dict_row) as connection:
            return connection.execute(sql, values).fetchall()

    def record(self, name: str, state: str = "SUCCESS", timeout: float = 20) -> dict:
        """The newest task of this name, once it is in this state."""
        sql = "SELECT * FROM tasks_app_taskrecord WHERE name = %s AND state = %s ORDER BY id DESC LIMIT 1"
        try:
            return eventually(lambda: self.rows(sql, name, state), timeout, f"{name} {state}")[0]
        except AssertionError as error:
            said = "\n".join(process.said() for process in self._running)
            raise AssertionError(f"{error}\n{self.rows('TABLE tasks_app_taskrecord')}\n{said}") from None

    def close(self) -> None:
        for process in reversed(self._running):
            process.kill()
            process.output.close()
        for name in self.names:
            self._as_administrator(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _as_administrator(self, sql: str) -> None:
        with psycopg.connect(self.maintenance, autocommit=True) as connection:
            connection.execute(sql)


#: What of our own test run's environment no project would have.
_OURS = {"DJANGO_SETTINGS_MODULE", "EXTRA_APPS", "EXTRA_QUEUES", "CELERY_BROKER_URL", "TIME_ZONE", "BEAT_ENABLED"}


class Visitor:
    """A browser without scripts, behind a proxy that serves the site below `prefix`, as it tells by its links."""

    def __init__(self, address: str, prefix: str):
        self.address, self.prefix = address, prefix
        self.jar = CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar), _NoRedirects())

    def get(self, path: str, **headers: str) -> Answer:
        return self._ask(path, None, headers)

    def post(self, path: str, **fields: str) -> Answer:
        return self._ask(path, fields, {})

    def sign_in(self, path: str) -> Answer:
        """Ask for a page that needs it, and fill in the form that it leads to."""
        form = self.get(path)
        assert 'name="username"' in form.text, f"{form.status} {form.url} {form.text[:500]}"
        return self.post(form.url, **_hidden(form.text), username=STAFF, password=PASSWORD)

    def press(self, page: Answer, button: str) -> Answer:
        """Send the page's token to the address of one of its buttons."""
        (address,) = {found for found in re.findall(r'formaction="([^"]+)"', page.text) if button in found}
        return self.post(address, **_hidden(page.text))

    def _ask(self, path: str, fields: dict[str, str] | None, headers: dict[str, str], hops: int = 5) -> Answer:
        inner = path.removeprefix(self.prefix) if self.prefix else path
        data = None if fields is None else urlencode(fields).encode()
        asked = urllib.request.Request(f"http://{self.address}{inner}", data, headers)
        try:
            with self._opener.open(asked, timeout=20) as answer:
                status, text, got = answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            status, text, got = error.code, error.read().decode(), error.headers
        except OSError as error:
            return Answer(0, path, str(error), {})
        if status in (301, 302) and hops:
            to = got["Location"]
            assert to.startswith(f"{self.prefix}/"), f"{path} leads out of the site, to {to}"
            return self._ask(to, None, {}, hops - 1)
        return Answer(status, path, text, got)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def _hidden(text: str) -> dict[str, str]:
    fields = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', text)
    return dict(fields)
