"""A TCP proxy that can be a bad network: refuse, cut, delay, or fall silent while its connections stay open."""

import select
import socket
import struct
import threading
import time
from contextlib import suppress

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: a close sends RST


class Proxy:
    """Forwards connections to `port` from `self.port`, as `mode` says: "open", "silent" or "refusing"."""

    def __init__(self, port: int):
        self.target, self.mode, self.delay = port, "open", 0.0  # seconds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_) -> None:
        self._listener.close()
        self.reset()

    def reset(self) -> None:
        """Cut all connections by RST."""
        for each in list(self._open):
            self._close(each)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.add(client)
                if self.mode == "refusing":
                    self._close(client)
                else:
                    threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = None
        with suppress(OSError, ValueError):  # ValueError: closed while it was waited for
            self._wait_out_silence()
            server = socket.create_connection(("127.0.0.1", self.target))
            self._open.add(server)
            other = {client: server, server: client}
            while True:
                for source in select.select([client, server], [], [])[0]:
                    self._wait_out_silence()
                    time.sleep(self.delay)
                    if not (data := source.recv(65536)):
                        return self._close(client, server)
                    other[source].sendall(data)
        return self._close(client, server)

    def _wait_out_silence(self) -> None:
        while self.mode == "silent":
            time.sleep(0.01)

    def _close(self, *connections: socket.socket | None) -> None:
        for each in filter(None, connections):
            self._open.discard(each)
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                each.shutdown(socket.SHUT_RDWR)
            each.close()
