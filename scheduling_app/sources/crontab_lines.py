"""The lines of a crontab as schedules of the tasks run_command and http_request, not saved, or the reason why not.

Cron gives a line to a shell; these tasks know none. What a line says beyond one management command or one HTTP request
is refused, except for where its output goes: that is the result of the task.
"""

import argparse
import ipaddress
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath
from typing import Any, NoReturn
from urllib.parse import urlsplit

from scheduling_app.models import Schedule
from scheduling_app.sources.found import Found, Refused, check
from tasks_app.conf import conf

#: What parts the fields of a line; nothing else does.
BLANKS = " \t"
#: Seconds of silence after which a request fails, where a line says nothing: wget's own; curl has none.
PATIENCE = 900
_FORM = "application/x-www-form-urlencoded"
_ASSIGNMENT = re.compile(r"""([A-Za-z_]\w*)[ \t]*=[ \t]*(?:"(.*)"|'(.*)'|(.*))""", re.ASCII)
#: At the end of a command: `> FILE`, `2>&1` and the like.
_REDIRECTION = re.compile(r"""[ \t]*(?:(?<=[ \t])[12])?&?>>?[ \t]*(&[12]|[^\s&|;<>"']+)$""")
_CHANGE_DIRECTORY = re.compile(r"""cd[ \t]+[^\s&|;<>"']+[ \t]*&&[ \t]*""")
_VARIABLES = {
    "MAILTO": "no mail is sent: a failed run is shown on its schedule's page",
    "SHELL": "no shell is used",
    "PATH": "not needed",
    "CRON_TZ": "the zone of the lines below, as with cronie; Debian's cron has no such rule",
}
_NOT_SET = "not set for the lines below: they run with the worker's environment"


@dataclass(frozen=True)
class Line:
    """A line that is more than a comment: a schedule, or the reason why there is none."""

    number: int
    text: str
    found: Found | None = None
    reason: str = ""
    #: One that sets a variable runs nothing: nothing is lost without it.
    is_command: bool = True


def read(text: str, timezone: str, now: datetime, user_field: bool = False) -> Iterator[Line]:
    """The lines of a crontab that mean something. `timezone` is that of its machine; CRON_TZ in it goes before that."""
    zone, comment, names = timezone, list[str](), Counter[str]()
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() knows of nine more ends of a line
        line = line.strip(BLANKS)
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
            continue
        if assignment := _ASSIGNMENT.fullmatch(line):
            name, value = assignment[1], next((each for each in assignment.groups()[1:] if each is not None), "")
            if name == "CRON_TZ":
                zone = value or timezone
            yield Line(number, line, reason=f"{name}: {_VARIABLES.get(name, _NOT_SET)}.", is_command=False)
        elif line:
            try:
                yield Line(number, line, _schedule(line, zone, user_field, "\n".join([*comment, line]), names, now))
            except Refused as error:
                yield Line(number, line, reason=str(error))
        comment = []


def _schedule(line: str, zone: str, user_field: bool, description: str, names: Counter[str], now: datetime) -> Found:
    times = 1 if line.startswith("@") else 5
    parts = re.split(f"[{BLANKS}]+", line, maxsplit=times + user_field)
    if len(parts) <= times + user_field:
        raise Refused(f"It ends too early: a time{', a user' if user_field else ''} and a command are needed.")
    if not user_field and re.match(f"root[{BLANKS}]", parts[-1]):
        raise Refused("Its command begins with a user, as in /etc/crontab: add --user-field.")
    if line.endswith("\r"):
        raise Refused(
            "It ends with a carriage return, which cron gives to the command. Save the file with Unix line ends."
        )
    found = _call(_command(parts[-1]))
    schedule = found.schedule
    names[schedule.name] += 1
    if names[schedule.name] > 1:
        schedule.name += f" ({names[schedule.name]})"
    schedule.cron, schedule.timezone, schedule.description = " ".join(parts[:times]), zone, description
    check(schedule, now)
    return found


def _command(text: str) -> str:
    """A crontab's command as its shell gets it. A `%` is a new line in it, and the rest the command's input."""
    if re.search(r"(?<!\\)%", text):
        raise Refused("What follows a % is the command's input, which these tasks have none of. (As a sign it is \\%.)")
    text = text.replace(r"\%", "%")
    if sign := next((sign for sign in "$`" if sign in text), ""):
        raise Refused(f"{sign} needs a shell. Write what it stands for.")
    return text


def _call(command: str) -> Found:
    """A schedule that does what a shell's command does, without its times."""
    command, notes = _without_redirections(command)
    words = _words(_CHANGE_DIRECTORY.sub("", command, count=1) if command.startswith("cd ") else command)
    program = PurePath(words[0]).name if words else ""
    if program in ("curl", "wget"):
        return _request(program, words[1:], notes)
    if arguments := _management_command(words):
        return _run_command(arguments, notes)
    raise Refused(f"{program!r} is neither curl nor wget nor a management command of Django.")


def _without_redirections(command: str) -> tuple[str, list[str]]:
    files = []
    while found := _REDIRECTION.search(command):
        command = command[: found.start()].rstrip()
        files.append(found[1])
    return command, [
        f"Its output is the result of its task, and not in {name}."
        for name in files
        if not name.startswith("&") and name != "/dev/null"
    ]


def _words(command: str) -> list[str]:
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = BLANKS, True, ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise Refused(f"A shell could not read it: {error}.") from error
    for word in words:
        if set(word) <= set("();<>|&"):
            raise Refused(f"{word} needs a shell. A schedule runs one command: quote it where it is a part of a word.")
        if word.startswith("#"):
            raise Refused("A # within a line: write a comment on a line of its own.")
    return words


def _management_command(words: Sequence[str]) -> Sequence[str]:
    """What follows manage.py, django-admin or `python -m django`; empty where it is none of them."""
    if words and re.fullmatch(r"python[\d.]*", PurePath(words[0]).name):
        words = words[1:]
        if list(words[:2]) == ["-m", "django"]:
            return words[2:]
    return words[1:] if words and PurePath(words[0]).name in ("manage.py", "django-admin") else ()


def _run_command(arguments: Sequence[str], notes: list[str]) -> Found:
    name = arguments[0]
    if name not in conf.RUN_COMMAND_ALLOWED:
        raise Refused(f"{name} is not among the commands that RUN_COMMAND_ALLOWED names. Add it, and import again.")
    if other := next((each for each in arguments if each.startswith(("--settings", "--pythonpath"))), ""):
        raise Refused(f"{other}: it runs in a worker, with the settings of that.")
    notes = ["It runs as this project's command, in a worker.", *notes]
    return Found(Schedule(name=" ".join(arguments)[:190], task="run_command", args=list(arguments)), notes)


class _Options(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refused(f"http_request cannot do this: {message}.")


def _options(program: str, flags: Sequence[str]) -> _Options:
    parser = _Options(prog=program, add_help=False, allow_abbrev=False)
    parser.add_argument("urls", nargs="*")
    for flag in flags:
        parser.add_argument(*flag.split(), action="store_true", dest="ignored")
    parser.set_defaults(headers=[], data=[], method="", agent="", is_head=False, timeout=PATIENCE, follows=False)
    return parser


def seconds(text: str) -> float:
    """An option's number of seconds; argparse names it by this function."""
    number = float(text)
    if not 0 <= number < 1e6:
        raise ValueError(text)
    return int(number) if number.is_integer() else number


_CURL = _options("curl", ["-s --silent", "-S --show-error", "-f --fail", "-i --include", "-v --verbose"])
_CURL.add_argument("-X", "--request", dest="method")
_CURL.add_argument("-d", "--data", "--data-ascii", "--data-raw", dest="data", action="append")
_CURL.add_argument("-H", "--header", dest="headers", action="append")
_CURL.add_argument("-A", "--user-agent", dest="agent")
_CURL.add_argument("-I", "--head", dest="is_head", action="store_true")
_CURL.add_argument("-L", "--location", dest="follows", action="store_true")
_CURL.add_argument("-m", "--max-time", dest="timeout", type=seconds)
_CURL.add_argument("-o", "--output", dest="output", choices=["/dev/null", "-"])
_WGET = _options("wget", ["-q --quiet", "-nv --no-verbose"])
_WGET.add_argument("--method", dest="method")
_WGET.add_argument("--post-data", "--body-data", dest="data", action="append")
_WGET.add_argument("--header", dest="headers", action="append")
_WGET.add_argument("-U", "--user-agent", dest="agent")
_WGET.add_argument("--spider", dest="is_head", action="store_true")
_WGET.add_argument("-T", "--timeout", dest="timeout", type=seconds)
_WGET.add_argument("-t", "--tries", choices=["1"])
_WGET.add_argument("-O", "--output-document", dest="output", choices=["/dev/null", "-"])


def _request(program: str, words: Sequence[str], notes: list[str]) -> Found:
    options = (_CURL if program == "curl" else _WGET).parse_args(words)
    if len(options.urls) != 1:
        raise Refused(f"One address a line is needed, not {len(options.urls)}.")
    if options.follows:
        raise Refused("http_request follows no redirects: give the address that they lead to, without -L.")
    url = _address(options.urls[0])
    kwargs: dict[str, Any] = {"timeout": options.timeout or PATIENCE}
    headers = {name.strip(): value.strip() for name, _, value in (each.partition(":") for each in options.headers)}
    if options.agent:
        headers["User-Agent"] = options.agent
    if options.data:
        if file := next((each for each in options.data if each.startswith("@")), ""):
            raise Refused(f"{file}: what it sends is in a file. Write it into the line.")
        kwargs["body"] = "&".join(options.data)
        headers = headers if "content-type" in map(str.lower, headers) else {"Content-Type": _FORM, **headers}
    if headers:
        kwargs["headers"] = headers
    method = options.method.upper() or ("HEAD" if options.is_head else "POST" if options.data else "GET")
    if program == "wget":
        notes = ["It follows no redirects, and writes no file: the answer is the result of its task.", *notes]
    name = f"{method} {url}"[:190]
    return Found(Schedule(name=name, task="http_request", args=[method, url], kwargs=kwargs), notes)


def _address(text: str) -> str:
    url = text if "://" in text else f"http://{text}"
    try:
        target = urlsplit(url)
        host = target.hostname if target.scheme in ("http", "https") and target.port != 0 else None
    except ValueError:  # of what stands for the host or the port
        host = None
    if not host:
        raise Refused(f"{text} is not an http:// or https:// address.")
    if not re.fullmatch("[!-~]+", url):
        raise Refused(f"{text} has signs that are written as %XX in an address.")
    if target.username is not None:
        raise Refused("A password in the address is not sent by http_request. Give an Authorization header instead.")
    if re.search(r"[{}]|\[.*[-,].*\]", text):
        raise Refused(f"{text} stands for several addresses: write a line for each.")
    if not conf.HTTP_REQUEST_ALLOW_PRIVATE and _is_private(host):
        raise Refused(f"{host} is not a public address; HTTP_REQUEST_ALLOW_PRIVATE would allow it.")
    return url


def _is_private(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:  # a name: where it leads is known when it is asked for
        return host == "localhost" or host.endswith(".localhost")
