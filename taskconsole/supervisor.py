"""Keeps the programs of a Procfile running: a small supervisor without threads.

One loop copies the programs' output and looks after the dead. A child that dies starts again after a pause, which
doubles from half a second to ten; one that keeps dying as soon as it starts ends the whole, for nobody would see it
among the lines of the others. Every child leads a session of its own, so that a terminal's Ctrl-C reaches us alone and
that what a dead child left behind can be killed with its process group.
"""

import contextlib
import os
import re
import select
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from taskconsole.embedded import EmbeddedError, Server, dies_with_parent

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds before a dead child starts again
SETTLED = 30  # seconds of life that forgive earlier deaths
QUICK, QUICK_DEATHS = 10, 5  # so many lives in a row, each shorter than so many seconds, and we give up
GRACE = 30  # seconds from SIGTERM to SIGKILL; above WORKER_SHUTDOWN_GRACE
TICK = 0.1  # seconds


def read_procfile(path: Path) -> dict[str, str]:
    """Names and shell commands."""
    return dict(re.findall(r"^([\w-]+):\s*(.+?)\s*$", path.read_text(), re.MULTILINE))


class Program:
    def __init__(self, name: str, command: str, directory: Path):
        self.name, self.command, self.directory = name, command, directory
        self.process: subprocess.Popen[bytes] | None = None
        self.unfinished_line = b""

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {self.command}"],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=dies_with_parent(signal.SIGKILL),
        )


Child = Program | Server


class Life:
    """What the supervisor remembers of a child."""

    def __init__(self, child: Child):
        self.child = child
        self.began = time.monotonic()
        self.begins: float | None = None  # again, while it is dead
        self.pause, self.quick_deaths = FIRST_PAUSE, 0

    def end(self, now: float) -> None:
        lived = now - self.began
        if lived >= SETTLED:
            self.pause = FIRST_PAUSE
        self.quick_deaths = self.quick_deaths + 1 if lived < QUICK else 0
        self.begins = now + self.pause
        self.pause = min(self.pause * 2, LONGEST_PAUSE)


class Supervisor:
    """`servers` run already; whoever started them stops them. `say(name, line)` prints."""

    def __init__(self, programs: Sequence[Program], servers: Sequence[Child], say: Callable[[str, str], None]):
        self.programs, self.say = programs, say
        self.lives = [Life(child) for child in (*servers, *programs)]
        self.output = selectors.DefaultSelector()
        self.signals = 0

    def run(self, host: str, port: int) -> bool:
        """Runs until a signal, which is a good end, or until a child cannot be kept alive, which is not."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._count_signal)
        knock, answered = Knock(host, port), False
        try:
            for program in self.programs:
                self._start(program)
            while not self.signals:
                self._copy_output()
                if not all(self._keep_alive(life) for life in self.lives):
                    return False
                if not answered and (answered := knock.answered()):
                    self.say("up", f"The console is ready: http://{host}:{port}/ (Ctrl-C stops it)")
        finally:
            self._stop()
        return True

    def _count_signal(self, *_: object) -> None:
        self.signals += 1

    def _start(self, child: Child) -> None:
        child.start()
        if isinstance(child, Program) and child.process:
            self.output.register(child.process.stdout, selectors.EVENT_READ, child)  # type: ignore[arg-type]

    def _keep_alive(self, life: Life) -> bool:
        """False when it is not worth another try."""
        now, child = time.monotonic(), life.child
        if life.begins is None:
            if child.process is None or child.process.poll() is None:
                return True
            kill_group(child.process)
            self._copy_output()  # its last words
            life.end(now)
            if life.quick_deaths == QUICK_DEATHS:
                self.say("up", f"{child.name} died {QUICK_DEATHS} times in quick succession; its last words are above.")
                return False
            self.say("up", f"{child.name} ended ({child.process.returncode}); it starts again.")
        elif now >= life.begins:
            life.began, life.begins = now, None
            try:
                self._start(child)
            except EmbeddedError as error:  # counts as one more death
                self.say("up", str(error))
        return True

    def _copy_output(self) -> None:
        for key, _ in self.output.select(TICK):
            program, text = key.data, os.read(key.fd, 65536)
            if not text:
                self.output.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
            *lines, program.unfinished_line = (program.unfinished_line + text).split(b"\n")
            for line in lines:
                self.say(program.name, line.decode(errors="replace"))

    def _stop(self) -> None:
        running = [program.process for program in self.programs if program.process]
        for process in running:
            process.terminate()
        hurry, deadline = self.signals + 1, time.monotonic() + GRACE
        while any(process.poll() is None for process in running):
            if self.signals >= hurry or time.monotonic() > deadline:
                break
            self._copy_output()
        for process in running:
            kill_group(process)
            process.wait()
        self._copy_output()


def kill_group(leader: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)


class Knock:
    """Asks the web process for a page, again until there is an answer, without ever waiting for it."""

    def __init__(self, host: str, port: int):
        self.host, self.port = host, port
        self.socket: socket.socket | None = None

    def answered(self) -> bool:
        try:
            if self.socket is None:
                self.socket = socket.create_connection((self.host, self.port), timeout=1)
                self.socket.sendall(f"GET / HTTP/1.0\r\nHost: {self.host}:{self.port}\r\n\r\n".encode())
            if not select.select([self.socket], [], [], 0)[0]:
                return False
            if self.socket.recv(1):
                return True
        except OSError:  # not listening yet, or gone again
            pass
        self.socket = None
        return False
