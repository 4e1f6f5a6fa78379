"""`manage.py up` as a whole: its servers, its processes, its end. One console serves the tests in turn."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, ProxyHandler, build_opener

import psutil
import pytest
from django.core.management import CommandError

from taskconsole import supervisor
from taskconsole.embedded import is_free
from taskconsole.management.commands import up
from taskconsole.supervisor import Program, Supervisor

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)
PATIENCE = 60  # seconds

# The test run's own servers and secrets, which a person who types `manage.py up` does not have.
UNSET = {
    "DATABASE_URL",
    "REDIS_URL",
    "CELERY_BROKER_URL",
    "SECRET_KEY",
    "ADMIN_USERNAME",
    "ADMIN_PASSWORD",
    "EXTRA_APPS",
}


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


class Console:
    """A copy of the project, for a developer's .env must not lead the tests to other data."""

    def __init__(self, directory):
        self.directory = directory
        left_out = shutil.ignore_patterns(".*", "var", "node_modules", "__pycache__", "tests")
        shutil.copytree(ROOT, directory / "project", ignore=left_out)
        self.output = directory / "output"
        self.port = next(port for port in range(18000, 19000) if is_free(port))
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        with self.output.open("wb") as output:
            self.process = self.popen(stdout=output, stderr=subprocess.STDOUT)
        wait_for(lambda: "The console is ready" in self.output.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.output.read_text()
        return self

    def popen(self, *command, **arguments):
        """`manage.py up`, or another command, as from another terminal."""
        environment = {name: value for name, value in os.environ.items() if name not in UNSET}
        environment |= {"DATA_DIR": str(self.directory / "var"), "DEBUG": "0"}
        manage = [sys.executable, str(self.directory / "project/manage.py")]
        command = command or ("up", "--port", str(self.port))
        return subprocess.Popen([*manage, *command], env=environment, cwd="/", **arguments)

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(PATIENCE)

    def child(self, words):
        """The one child of `up` whose command line has `words`."""
        children = psutil.Process(self.process.pid).children()
        return next((child for child in children if is_alive(child, words)), None)

    def log_in(self, password):
        """Whether the admin lets us in."""
        cookies = CookieJar()
        browser = build_opener(ProxyHandler({}), HTTPCookieProcessor(cookies))
        page = f"{self.url}/admin/login/"
        browser.open(page, timeout=PATIENCE).read()
        token = next(cookie.value for cookie in cookies if cookie.name == "csrftoken")
        form = {"username": "admin", "password": password, "csrfmiddlewaretoken": token, "next": "/admin/jsi18n/"}
        browser.open(page, urlencode(form).encode(), timeout=PATIENCE).read()
        return any(cookie.name == "sessionid" for cookie in cookies)


def is_alive(process, words=""):
    """A zombie is gone: where process 1 collects no orphans, it stays in the table."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and words in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def started():
    directory = Path(tempfile.mkdtemp(prefix="taskconsole-up-"))
    directory.chmod(0o755)  # for the account that runs the servers when the tests run as root
    console = Console(directory)
    try:
        console.start()
        yield console, re.search(r"password:\s+(\S+)", console.output.read_text())[1]
    finally:
        console.stop()
        shutil.rmtree(directory)


@pytest.fixture
def console(started):
    console, _ = started
    return console if console.process.poll() is None else console.start()


@pytest.fixture
def password(started):
    return started[1]


def test_the_first_page_answers(console):
    assert build_opener(ProxyHandler({})).open(f"{console.url}/admin/", timeout=PATIENCE).status == 200


def test_the_printed_password_lets_in_and_no_other(console, password):
    assert console.log_in(password)
    assert not console.log_in("guess")


def test_lines_carry_the_name_of_their_process_and_no_colour(console):
    text = console.output.read_text()
    assert re.search(r"^web +\| .*Listening at", text, re.MULTILINE)
    assert "\033[" not in text


def test_a_command_in_another_terminal_finds_its_servers(console):
    with console.popen("schedules", "export", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as command:
        assert command.communicate(timeout=PATIENCE)[0] == "[]\n"
    file = console.directory / "var/running.env"
    assert file.stat().st_mode & 0o777 == 0o600, "it has passwords"


def test_a_second_up_on_the_same_data_says_so(console):
    second = console.popen(stderr=subprocess.PIPE, text=True)
    _, errors = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1
    assert "`manage.py up` runs already" in errors


def test_a_killed_worker_comes_back(console):
    worker = console.child("celery worker")
    pool = worker.children()
    worker.kill()
    wait_for(lambda: console.child("celery worker") not in (None, worker))
    wait_for(lambda: not any(is_alive(process) for process in pool))


def test_a_killed_postgres_and_a_killed_valkey_come_back_and_the_pages_work(console, password):
    killed = {words: console.child(words) for words in ("bin/postgres", "valkey-server")}
    for server in killed.values():
        server.kill()
    for words, server in killed.items():
        wait_for(lambda words=words, server=server: console.child(words) not in (None, server))

    def works():
        try:
            return console.log_in(password)
        except URLError:  # a page of the moments before
            return False

    wait_for(works)


def test_sigterm_ends_well_leaves_no_process_and_the_data(console, password):
    family = psutil.Process(console.process.pid).children(recursive=True)
    console.process.terminate()
    assert console.process.wait(PATIENCE) == 0
    assert [process for process in family if is_alive(process)] == []
    assert not (console.directory / "var/running.env").exists()
    console.start()
    assert "password:" not in console.output.read_text()
    assert console.log_in(password)


def test_ctrl_c_ends_it_in_seconds_also_while_somebody_is_in_the_midst_of_a_request(console):
    with ExitStack() as stack:
        for _ in range(4):  # for both processes of the web
            client = stack.enter_context(socket.create_connection(("127.0.0.1", console.port)))
            client.sendall(b"GET / HTTP/1.1\r\nHost: ")
        begin = time.monotonic()
        console.process.send_signal(signal.SIGINT)
        assert console.process.wait(PATIENCE) == 0
        assert time.monotonic() - begin < 8  # five, and what a busy machine adds


def test_kill_9_leaves_no_process(console):
    family = psutil.Process(console.process.pid).children(recursive=True)
    console.process.kill()
    console.process.wait()
    wait_for(lambda: not any(is_alive(process) for process in family))


def test_a_server_that_dotenv_names_is_used_instead():
    with tempfile.TemporaryDirectory(prefix="taskconsole-up-") as directory:
        console = Console(Path(directory))
        (console.directory / "project/.env").write_text("DATABASE_URL=postgres://nobody@127.0.0.1:1/nothing\n")
        with console.popen(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as up:
            try:
                said = up.communicate(timeout=PATIENCE)[0]
            finally:
                up.terminate()  # with servers of its own it would go on
        assert "The database could not be prepared" in said
        assert not (console.directory / "var/postgres").exists()


def test_servers_of_ones_own_are_used_instead(monkeypatch, tmp_path):
    monkeypatch.setenv("DATABASE_URL", "postgres://elsewhere/console")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://elsewhere")
    with ExitStack() as stack:
        assert up.Command().start_servers(stack, tmp_path) == []


def test_colours_stand_around_the_name_alone(capsys):
    up.printer(["web", "worker"], True)("web", "a line")
    assert re.fullmatch("\033\\[3\\dm" + re.escape("web    |") + "\033\\[0m a line\n", capsys.readouterr().out)


@pytest.fixture
def lines(monkeypatch):
    """What a supervisor in this process says; its signal handlers are taken back afterwards."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield []
    for number, handler in handlers.items():
        signal.signal(number, handler)


def supervise(lines, **commands):
    programs = [Program(name, command, Path("/")) for name, command in commands.items()]
    return Supervisor(programs, [], lambda *line: lines.append(line)).run("127.0.0.1", 1), programs


def test_a_program_that_keeps_dying_ends_everything(lines):
    good, programs = supervise(lines, doomed="echo last words; exit 3", steady="sleep 60")
    assert not good
    assert lines.count(("doomed", "last words")) == 5
    assert "doomed died 5 times" in lines[-1][1]
    assert programs[1].process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(("grace", "signals"), [(0.1, 1), (PATIENCE, 2)])
def test_a_program_deaf_to_sigterm_is_killed_after_the_grace_or_a_second_signal(lines, monkeypatch, grace, signals):
    monkeypatch.setattr(supervisor, "GRACE", grace)
    script = f"trap '' TERM; {f'sleep 0.3; kill -INT {os.getpid()}; ' * signals} sleep {PATIENCE}"
    began = time.monotonic()
    good, programs = supervise(lines, deaf=f'sh -c "{script}"')
    assert good
    assert programs[0].process.returncode == -signal.SIGKILL
    assert time.monotonic() - began < PATIENCE / 2


def test_without_a_procfile_it_says_what_stands_in_one(monkeypatch, tmp_path):
    monkeypatch.setattr(up, "BASE", tmp_path)
    with pytest.raises(CommandError, match=r"There is no Procfile in .*`worker: python manage.py celery worker`"):
        up.Command().procfile()
