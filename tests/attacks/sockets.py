"""Connections that are slow, silent, too many, or not read from."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress

from tests.attacks.bodies import CHAT, MESSAGES, chat
from tests.attacks.wire import Target, request, side_by_side

ENDLESS = {"max_tokens": 20_000, "logit_bias": {"2297": -100}, "stream": True}
"""Fields of an answer of the bundled model that does not end by itself."""


def _open(target: Target, stack: ExitStack, number: int, *, receive_buffer: int | None = None) -> list[socket.socket]:
    """Open ``number`` connections that stay open; those that the server refuses are counted."""
    made = []
    for _ in range(number):
        if target.is_over:
            break
        opened = stack.enter_context(socket.socket())
        if receive_buffer is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        opened.settimeout(2)
        try:
            opened.connect(target.address)
        except OSError as error:
            target.count(type(error).__name__)
        else:
            made.append(opened)
    return made


def _trickle(target: Target, opened: list[socket.socket], pieces: bytes, pause: float) -> None:
    """Send one byte on every connection, again and again; those that the server closes leave the list."""
    for at in itertools.count():
        if target.is_over or not opened:
            return
        for made in list(opened):
            try:
                made.sendall(pieces[at % len(pieces) :][:1])
            except OSError:
                target.count("closed by the server")
                opened.remove(made)
        target.pause(pause)


def _again(target: Target, number: int, use: Callable[[list[socket.socket]], None], **options: int) -> None:
    """Open connections and use them until the server has closed them all, and begin again, while there is time."""
    while not target.is_over:
        with ExitStack() as stack:
            opened = _open(target, stack, number, **options)
            use(opened)
            target.count("rounds")
            target.pause(0.1)


def _side_by_side(target: Target, number: int, use: Callable[[socket.socket], None], **options: int) -> None:
    """Use one connection after the other, on ``number`` threads, while there is time."""

    def client() -> None:
        while not target.is_over:
            target.connect(use, **options)

    side_by_side(number, client)


def unread_streams(target: Target) -> None:
    """Streams of endless answers whose clients never read."""

    def use(opened: list[socket.socket]) -> None:
        for i, made in enumerate(opened):
            path = CHAT if i % 2 else MESSAGES
            with suppress(OSError):
                made.sendall(request(path, chat(f"story {i}", **ENDLESS)))
        target.pause(target.seconds_left)

    _again(target, 8, use, receive_buffer=1024)


def slow_readers(target: Target) -> None:
    """Streams whose clients read one byte at a time."""

    def use(opened: list[socket.socket]) -> None:
        for i, made in enumerate(opened):
            with suppress(OSError):
                made.sendall(request(CHAT, chat(f"tale {i}", **ENDLESS)))
        while opened and not target.is_over:
            for made in list(opened):
                try:
                    if not made.recv(1):
                        opened.remove(made)
                except OSError:
                    opened.remove(made)
            target.pause(0.1)

    _again(target, 8, use, receive_buffer=1024)


def idle_sockets(target: Target) -> None:
    """Two thousand connections without a request."""

    def use(opened: list[socket.socket]) -> None:
        target.count(f"opened {len(opened)}")
        target.pause(target.seconds_left)

    _again(target, 2_000, use)


def slow_headers(target: Target) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: " + b"a" * 1_000_000
    _again(target, 300, lambda opened: _trickle(target, opened, head, 0.05))


def slow_bodies(target: Target) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n"

    def use(opened: list[socket.socket]) -> None:
        for made in opened:
            with suppress(OSError):
                made.sendall(head)
        _trickle(target, opened, b" ", 0.05)

    _again(target, 300, use)


def huge_headers(target: Target) -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (i, b"v" * 80) for i in range(100_000))
    heads = itertools.cycle(
        [
            b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + lines + b"\r\n",
            b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"v" * 8_000_000,
            b"GET /" + b"h" * 8_000_000,
            b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " + b"k" * 60_000 + b"\r\n\r\n",
        ]
    )

    def use(made: socket.socket) -> None:
        with suppress(ConnectionError):
            made.sendall(next(heads))
            made.shutdown(socket.SHUT_WR)
        target.count_status(made)

    while not target.is_over:
        target.connect(use)


def endless_bodies(target: Target) -> None:
    """Bodies in chunks, without a length and without an end."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"

    def use(made: socket.socket) -> None:
        made.sendall(head)
        while not target.is_over:
            made.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")

    _side_by_side(target, 4, use)


def small_requests(target: Target) -> None:
    """As many small requests as eight clients can send, most of them wrong."""
    kinds = itertools.cycle(
        [
            request("/health", b"", method="GET"),
            request("/v1/nothing", {}),
            request(CHAT, {"messages": []}),
            request(CHAT, b"{"),
            request("/v1/models", b"", method="GET"),
            request("/", b"", method="GET"),
            request(CHAT, chat("hi", max_tokens=1)),
            b"no HTTP\r\n\r\n",
        ]
    )

    def use(made: socket.socket) -> None:
        made.sendall(next(kinds))
        target.count_status(made)

    _side_by_side(target, 8, use)


def watchers(target: Target) -> None:
    """Dashboards: followers of events that do not read, and pollers of metrics and state."""
    paths = itertools.cycle(["/metrics", "/kvlab/state", "/slots", "/openapi.json"])

    def use(made: socket.socket) -> None:
        made.sendall(request(next(paths), b"", method="GET"))
        target.count_status(made)

    with ExitStack() as stack:
        for made in _open(target, stack, 50, receive_buffer=1024):
            with suppress(OSError):
                made.sendall(request("/kvlab/events", b"", method="GET"))
        _side_by_side(target, 2, use)


def pipelines(target: Target) -> None:
    """Thousands of requests on one connection, whose answers are not read."""
    one = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

    def use(made: socket.socket) -> None:
        made.settimeout(1)
        made.sendall(one * 5_000)
        target.count("sent")

    _side_by_side(target, 4, use, receive_buffer=1024)


def half_closed(target: Target) -> None:
    """Clients that close their side behind the request, leave in the middle of it, or reset the connection."""
    whole = request(CHAT, chat("hi", **ENDLESS))

    turns = itertools.count()

    def use(made: socket.socket) -> None:
        kind = next(turns) % 3
        made.sendall(whole[:-20] if kind == 1 else whole)
        if kind < 2:
            made.shutdown(socket.SHUT_WR)
            made.recv(1024)
            target.pause(0.2)
        else:
            made.recv(10)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close is a reset
        target.count("left")

    _side_by_side(target, 4, use)


SOCKETS: dict[str, Callable[[Target], None]] = {
    made.__name__: made
    for made in (
        unread_streams, slow_readers, idle_sockets, slow_headers, slow_bodies, huge_headers, endless_bodies,
        small_requests, watchers, pipelines, half_closed,
    )
}  # fmt: skip
