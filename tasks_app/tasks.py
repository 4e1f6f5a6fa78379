"""Tasks that come with the console. Your own stand in the `tasks.py` of an app of yours."""

import http.client
import io
import ipaddress
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from celery import shared_task
from django.core.management import CommandError, call_command

from tasks_app.conf import conf
from tasks_app.seams.python import connect_to

Number = int | float

#: Characters of a command's output or a response's body that are kept as the result.
KEPT = 100_000


async def handle_number_sum(*numbers: Number | Iterable[Number]) -> Number:
    """The sum of `numbers`; a list among them (a chord's results) is summed first."""
    return sum(number if isinstance(number, Number) else sum(number) for number in numbers)


@shared_task(
    name="number_sum",
    autoretry_for=(Exception,),
    retry_backoff=True,
    retry_backoff_max=60,
    retry_jitter=True,
    max_retries=3,
)
async def number_sum(*numbers: Number | Iterable[Number]) -> Number:
    """Add numbers up. The smallest task there is, to try a set-up with."""
    return await handle_number_sum(*numbers)


@shared_task(name="run_command")
def run_command(command: str, *args: str, **options: str) -> str:
    """Run a Django management command that RUN_COMMAND_ALLOWED names; its output is the result."""
    if command not in conf.RUN_COMMAND_ALLOWED:
        raise CommandError(f"{command!r} is not among the commands that RUN_COMMAND_ALLOWED names.")
    output = io.StringIO()
    call_command(command, *args, stdout=output, stderr=output, no_color=True, **options)
    return _cut(output.getvalue())


@shared_task(name="http_request")
def http_request(
    method: str, url: str, body: str | None = None, headers: dict[str, str] | None = None, timeout: float = 10
) -> dict[str, Any]:
    """Send an HTTP request; the result has `status`, `headers` and `body`. A status of 400 or more is a failure.

    `timeout` in seconds. Redirects are not followed. An address that is not public is refused, unless
    HTTP_REQUEST_ALLOW_PRIVATE is set.
    """
    target = urlsplit(url)
    if target.scheme not in ("http", "https") or not target.hostname:
        raise ValueError(f"{url!r} is not an http:// or https:// address.")
    connection = _connect(target.scheme, target.hostname, target.port, timeout)
    try:
        path = (target.path or "/") + (f"?{target.query}" if target.query else "")
        connection.request(method.upper(), path, body and body.encode(), headers or {})
        response = connection.getresponse()
        text = _cut(response.read(4 * KEPT).decode("utf-8", "replace"))
    finally:
        connection.close()
    if response.status >= 400:
        raise http.client.HTTPException(f"{response.status} {response.reason}: {text[:1000]}")
    return {"status": response.status, "headers": dict(response.getheaders()), "body": text}


def _connect(scheme: str, host: str, port: int | None, timeout: float) -> http.client.HTTPConnection:
    """A connection to the very address that was checked: a name that resolves anew could point elsewhere by then."""
    port = port or {"http": 80, "https": 443}[scheme]
    address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    if not conf.HTTP_REQUEST_ALLOW_PRIVATE and not _is_public(address):
        raise ValueError(f"{host} ({address}) is not a public address; HTTP_REQUEST_ALLOW_PRIVATE would allow it.")
    cls = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[scheme]
    connection = cls(host, port, timeout=timeout)
    connect_to(connection, address, port)
    return connection


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_global and not ip.is_multicast


def _cut(text: str) -> str:
    return text if len(text) <= KEPT else f"{text[:KEPT]}\n… cut, {len(text) - KEPT} characters more"
