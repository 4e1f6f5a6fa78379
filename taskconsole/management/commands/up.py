import fcntl
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from taskconsole.embedded import EmbeddedError, Postgres, Server, Valkey, dies_with_parent, is_free, kept
from taskconsole.supervisor import Program, Supervisor, read_procfile

#: Where manage.py, the Procfile and DATA_DIR are.
BASE = Path(getattr(settings, "BASE_DIR", "") or Path.cwd())
PORT_PATIENCE = 3  # seconds: a web process whose supervisor was killed lives about one second longer

#: What a command in another terminal must know of a running console, to be about the same one.
TOLD = ("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL", "SECRET_KEY", "EXTRA_APPS", "EXTRA_QUEUES", "TIME_ZONE")


class Command(BaseCommand):
    help = (
        "Runs all of the console: the Procfile's processes and, unless DATABASE_URL and REDIS_URL name others, a "
        "Postgres and a Valkey of its own. Ctrl-C stops everything; the data stay in DATA_DIR (var)."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default=os.environ.get("HOST") or "127.0.0.1", help="default: %(default)s")
        parser.add_argument("--port", type=int, default=os.environ.get("PORT") or 8000, help="default: %(default)s")

    def handle(self, *, host: str, port: int, **options: bool) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        try:
            with ExitStack() as stack:
                self.run(stack, host, port, self.coloured(**options))
        except EmbeddedError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            pass

    def run(self, stack: ExitStack, host: str, port: int, coloured: bool) -> None:
        data = BASE / (os.environ.get("DATA_DIR") or "var")
        procfile = self.procfile()
        self.lock(stack, data)
        self.wait_for_port(host, port)
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        os.environ |= {"HOST": host, "PORT": str(port), "PYTHONUNBUFFERED": "1"}
        if not os.environ.get("SECRET_KEY"):
            os.environ["SECRET_KEY"] = kept(data / "secret_key", lambda: secrets.token_urlsafe(50))
        servers = self.start_servers(stack, data)

        programs = [Program(name, command, BASE) for name, command in procfile.items()]
        say = printer([*procfile, "up"], coloured)
        for server in servers:
            say("up", f"{server.name} listens on port {server.port}; its data and its log are in {server.state}")
        self.tell_other_terminals(stack, data / "running.env")
        self.migrate()
        reachable = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104
        if not Supervisor(programs, servers, say).run(reachable, port):
            raise CommandError("Stopped.")

    def procfile(self) -> dict[str, str]:
        try:
            return read_procfile(BASE / "Procfile")
        except FileNotFoundError:
            raise CommandError(
                f"There is no Procfile in {BASE}. Write one, with a line for each process, such as "
                "`web: gunicorn shop.wsgi`, `worker: python manage.py celery worker` and "
                "`scheduler: python manage.py runscheduler`."
            ) from None

    def lock(self, stack: ExitStack, data: Path) -> None:
        try:
            data.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context((data / "lock").open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(f"`manage.py up` runs already with the data in {data}. Stop it first.") from None
        except PermissionError as error:
            raise CommandError(f"Cannot write to {error.filename}: name another directory in DATA_DIR.") from None

    def wait_for_port(self, host: str, port: int) -> None:
        deadline = time.monotonic() + PORT_PATIENCE
        while not is_free(port, host):
            if time.monotonic() > deadline:
                raise CommandError(f"Cannot listen on {host}:{port}. Choose another port: --port {port + 1}")
            time.sleep(0.1)

    def start_servers(self, stack: ExitStack, data: Path) -> list[Server]:
        servers: list[Server] = []
        if not os.environ.get("DATABASE_URL"):
            postgres = stack.enter_context(Postgres(data / "postgres"))
            os.environ["DATABASE_URL"] = postgres.url
            servers.append(postgres)
        if not os.environ.get("REDIS_URL") and not os.environ.get("CELERY_BROKER_URL"):
            valkey = stack.enter_context(Valkey(data / "valkey"))
            os.environ["REDIS_URL"] = os.environ["CELERY_BROKER_URL"] = valkey.url
            servers.append(valkey)
        return servers

    def tell_other_terminals(self, stack: ExitStack, file: Path) -> None:
        """While this runs, `manage.py` in another terminal reads from there what its own environment does not say."""
        file.unlink(missing_ok=True)
        kept(file, lambda: "\n".join(f"{name}='{os.environ[name]}'" for name in TOLD if name in os.environ))
        stack.callback(file.unlink, missing_ok=True)

    def migrate(self) -> None:
        # A process of its own, for the settings of this one were read before there was a database.
        command = [sys.executable, str(BASE / "manage.py"), "ensureadmin", "--migrate"]
        dies = dies_with_parent(signal.SIGKILL)
        if subprocess.run(command, start_new_session=True, preexec_fn=dies).returncode:
            raise CommandError("The database could not be prepared: see above. Is DATABASE_URL right?")

    def coloured(self, *, no_color: bool, force_color: bool, **_: bool) -> bool:
        if no_color or os.environ.get("NO_COLOR"):
            return False
        return force_color or bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def printer(names: list[str], coloured: bool) -> Callable[[str, str], None]:
    """A function that prints one line of the process `name`."""
    width = max(map(len, names))
    colours = {name: 31 + (index + 1) % 6 if coloured else None for index, name in enumerate(names)}

    def say(name: str, line: str) -> None:
        prefix = f"{name:<{width}} |"
        colour = colours[name]
        try:
            print(f"\033[{colour}m{prefix}\033[0m {line}" if colour else f"{prefix} {line}", flush=True)
        except OSError:  # the terminal was closed, or whoever read the pipe: go on to a clean end without them
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return say
