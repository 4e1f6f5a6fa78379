"""Python's own http.client: a connection to an address that was looked up, and checked, before."""

import http.client
import socket

from tasks_app.seams import KEPT, Seam

NAMES = (
    Seam(
        "http.client:HTTPConnection",
        "_create_connection",
        KEPT,
        "The task http_request",
        "Its host is the name that a certificate is for; to connect elsewhere there is no public way.",
    ),
)


def connect_to(connection: http.client.HTTPConnection, address: str, port: int) -> None:
    """Have it connect there, whatever its host is."""
    connection._create_connection = lambda _, *args: socket.create_connection((address, port), *args)  # type: ignore[attr-defined]
