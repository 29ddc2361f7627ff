"""HTTP over plain sockets, as no well-behaved client speaks it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

MAX_WAIT_S = 20.0
"""After it, an attack gives up a connection and makes a new one."""


class Target:
    """The server under attack, until ``seconds`` are over. ``outcomes`` counts what came back. Thread-safe.

    On a slow machine an attack goes on until something has come back, for ``most_seconds`` at most.
    """

    def __init__(self, url: str, seconds: float, most_seconds: float) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._until = time.monotonic() + seconds
        self._at_most = time.monotonic() + most_seconds
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()

    @property
    def seconds_left(self) -> float:
        return (self._until if self.outcomes else self._at_most) - time.monotonic()

    @property
    def is_over(self) -> bool:
        return self.seconds_left <= 0

    def count(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than the attack lasts."""
        time.sleep(max(0.0, min(seconds, self.seconds_left)))

    def connect(self, use: Callable[[socket.socket], None], *, receive_buffer: int | None = None) -> None:
        """Connect and ``use`` the connection; what the server does to it is counted, and nothing is raised."""
        with socket.socket() as made:
            if receive_buffer is not None:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            made.settimeout(max(0.1, min(MAX_WAIT_S, self.seconds_left + 1)))
            try:
                made.connect(self.address)
                use(made)
            except TimeoutError:
                self.count("timeout")
            except OSError as error:
                self.count(type(error).__name__)
                self.pause(0.05)  # a refused connection costs the attacker nothing: no busy loop of its own

    def post(self, path: str, content: bytes) -> None:
        """Send a request on a new connection, wait for its answer, and count its status."""

        def use(made: socket.socket) -> None:
            with suppress(ConnectionError):  # the server may answer and close before it has read all
                made.sendall(request(path, content))
            self.count_status(made)

        self.connect(use)

    def count_status(self, made: socket.socket) -> None:
        """Read an answer up to its end and count its status."""
        first = b""
        while chunk := made.recv(65536):
            first = first or chunk
        self.count(first.split(b" ", 2)[1].decode() if first.startswith(b"HTTP/") else "closed")


def request(path: str, body: Any, *, method: str = "POST", headers: str = "") -> bytes:
    """Encode a request that closes its connection; ``body`` is bytes as they are, or becomes JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def side_by_side(number: int, work: Callable[[], None]) -> None:
    """Run ``work`` on ``number`` threads."""
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
