"""A TCP proxy that can be a bad network: slow, cutting its connections, or silent while they stay open."""

import select
import socket
import struct
import threading
import time
from contextlib import suppress

BY_RESET = struct.pack("ii", 1, 0)  # a close sends RST, not FIN


class Proxy:
    """Forwards what comes to its own `port` to another one of this machine, as `mode` says: open, silent or cutting."""

    def __init__(self, target: int):
        self.target, self.mode, self.delay = target, "open", 0.0  # seconds, each way
        self._age = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_) -> None:
        self._listener.close()
        self.reset()

    def reset(self) -> None:
        """Cut all connections, as a firewall that forgot them does."""
        self._age += 1

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=[self._listener.accept()[0]], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        age = self._age
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self.target)) as server:
            other = {client: server, server: client}
            while age == self._age and self.mode != "cutting":
                if self.mode == "silent":
                    time.sleep(0.02)
                    continue
                for source in select.select([client, server], [], [], 0.02)[0]:
                    time.sleep(self.delay)
                    if not (data := source.recv(65536)):
                        return
                    other[source].sendall(data)
            for each in other:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, BY_RESET)
