"""Connections: how many, how long each may take to say what it wants, and in how large a header."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from kvlab.server.http import ABORT_KEY
from kvlab.server.limits import MAX_HEADER_BYTES
from kvlab.server.settings import Settings

FREE_CHUNKS = 1_000
MIN_BYTES_PER_CHUNK = 256
"""A body may arrive in FREE_CHUNKS pieces and one more for so many bytes: each costs the event loop time."""
FREE_PIECES = 16
SMALL_PIECE_BYTES = 1_024
PIECE_PAUSE_SECONDS = 0.5
"""Behind FREE_PIECES small pieces of a request, those that come in PIECE_PAUSE_SECONDS are read together."""
MAX_PIPELINED_BYTES = MAX_HEADER_BYTES
"""Bytes behind a request that is being answered; a connection with more is closed, before anything is computed."""
TURNS_TO_BE_READ = 4
"""Turns of the event loop after which a new connection has been read: to accept it, to watch it, and to read it."""
CLOSING_SECONDS = 1.0
"""At shutdown, so long a client may read nothing of the answer that it is sent."""
HANDLES_FOR_THE_REST = 256
"""File handles that connections leave to stores, models and logs."""


def connection_limit(settings: Settings) -> int:
    """Return how many connections may be open: the setting, or what this process's file handles allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return settings.max_connections
    return min(settings.max_connections, max(soft // 2, soft - HANDLES_FOR_THE_REST))


class Connections:
    """The open connections of a server, the one that has waited for longest first. One event loop.

    Args:
        settings: the limits.
        limit: most connections.
    """

    def __init__(self, settings: Settings, limit: int) -> None:
        self.settings, self.limit = settings, limit
        self._open: dict[HttpProtocol, None] = {}
        self._turn = self._last_added = 0
        self._counts_turns = False

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: HttpProtocol) -> None:
        """Note a new connection.

        Beyond the limit one is closed: the longest idle one that has been read, else the one whose request has been
        incomplete for longest, else the longest idle one, else the new one.
        """
        self._note_turn(connection)
        if len(self._open) >= self.limit:
            read = (other for other in self._open if other.is_idle and self._turn - other.turn >= TURNS_TO_BE_READ)
            incomplete = (other for other in self._open if other.is_incomplete)
            idle = (other for other in self._open if other.is_idle)
            closed = next(read, None) or next(incomplete, None) or next(idle, None)
            if closed is None:
                connection.abort()
                return
            self.discard(closed)
            closed.abort()
        self._open[connection] = None

    def _note_turn(self, connection: HttpProtocol) -> None:
        """Note in which turn of the event loop a connection came; turns are counted as long as one may be unread."""
        connection.turn = self._last_added = self._turn
        if not self._counts_turns:
            self._counts_turns = True
            connection.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn += 1
        self._counts_turns = self._turn - self._last_added < TURNS_TO_BE_READ
        if self._counts_turns:
            asyncio.get_running_loop().call_soon(self._next_turn)

    def discard(self, connection: HttpProtocol) -> None:
        """Forget a connection."""
        self._open.pop(connection, None)

    def renew(self, connection: HttpProtocol) -> None:
        """Note that a connection was of use: it is the last one to be closed."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def protocol(self, **arguments: Any) -> HttpProtocol:
        """Make the protocol of a new connection; called by uvicorn with its own arguments."""
        return HttpProtocol(self, **arguments)


class HttpProtocol(H11Protocol):
    """uvicorn's protocol, with a deadline for headers, and a way to close a connection whose client does not read."""

    def __init__(self, owner: Connections, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._owner = owner
        self._header_timer: asyncio.TimerHandle | None = None
        self._small_pieces = 0
        self._read_on_timer: asyncio.TimerHandle | None = None
        self.turn = 0
        self.conn = _BoundedH11()
        self._served_app = self.app
        self.app = self._run_app  # type: ignore[assignment]

    @property
    def is_idle(self) -> bool:
        """Whether no request is being read or answered on it."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_incomplete(self) -> bool:
        """Whether the rest of a request has still to arrive on it."""
        return not self.is_idle and self.cycle.more_body

    def abort(self) -> None:
        """Close the connection at once; what its client has not read is lost, and what has not begun is not begun."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_header()
        self._owner.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        if self._read_on_timer is not None:
            self._read_on_timer.cancel()
        self._owner.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.is_idle:
            self._stop_header_timer()
            self._owner.renew(self)
        elif self._header_timer is None:
            self._await_header()
        self._read_small_pieces_together(len(data))
        if not (self.is_idle or self.is_incomplete) and len(self.conn.trailing_data[0]) > MAX_PIPELINED_BYTES:
            self.abort()

    def _read_small_pieces_together(self, size: int) -> None:
        """Stop reading for a while behind many small pieces: each costs the event loop as much as a whole request."""
        if not (self.is_idle or self.is_incomplete):
            self._small_pieces = 0
        elif size < SMALL_PIECE_BYTES and self._read_on_timer is None:
            self._small_pieces += 1
            if self._small_pieces > FREE_PIECES:
                self.transport.pause_reading()
                self._read_on_timer = self.loop.call_later(PIECE_PAUSE_SECONDS, self._read_on)

    def _read_on(self) -> None:
        self._read_on_timer = None
        if not self.flow.read_paused:
            self.transport.resume_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # What came before the answer was complete is the beginning of the next header.
        if self.is_idle and self._header_timer is None and self.conn.trailing_data[0]:
            self._await_header()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # Its last answer may be unread: a closing transport waits for that without end.
        self.loop.call_later(self._owner.settings.send_seconds, self.abort)

    def handle_events(self) -> None:
        try:
            super().handle_events()
        except h11.LocalProtocolError:  # a wrong request after the beginning of its answer: no error can be sent
            self.abort()

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except h11.LocalProtocolError:
            self.abort()
        self._end_unread()

    def _end_unread(self, before: int = -1) -> None:
        """Close the connection when its client has read nothing of its answer since the last look."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == before and (unsent or self.is_idle):
            self.abort()
        elif self in self.connections:
            self.loop.call_later(CLOSING_SECONDS, self._end_unread, unsent)

    async def _run_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.transport.is_closing():
            return
        scope[ABORT_KEY] = self.abort
        await self._served_app(scope, receive, send)  # type: ignore[arg-type]

    def _await_header(self) -> None:
        self._header_timer = self.loop.call_later(self._owner.settings.header_seconds, self._header_is_late)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _header_is_late(self) -> None:
        self._header_timer = None
        if self.is_idle:
            self.abort()


class _BoundedH11(h11.Connection):
    """h11's parser; it refuses a header that is too large, and a body in too many small pieces."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEADER_BYTES)
        self._reset()

    def _reset(self) -> None:
        self._header = b""
        self._header_is_too_large = False
        self._chunks = self._bytes = 0

    def receive_data(self, data: bytes) -> None:
        if self.their_state is h11.IDLE and not self._header_is_too_large:
            # A header that arrives whole is parsed whatever its size: it is measured before.
            self._header += data[: MAX_HEADER_BYTES + 1]
            if len(self._header) > MAX_HEADER_BYTES:
                end = self._header.replace(b"\r", b"").find(b"\n\n")
                self._header_is_too_large = end < 0
                self._header = b""
        if not self._header_is_too_large:
            super().receive_data(data)

    def next_event(self) -> Any:
        if self._header_is_too_large:
            raise h11.RemoteProtocolError("the header is too large", error_status_hint=431)
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._header = b""
        elif isinstance(event, h11.Data):
            self._chunks += 1
            self._bytes += len(event.data)
            if self._chunks > FREE_CHUNKS + self._bytes // MIN_BYTES_PER_CHUNK:
                raise h11.RemoteProtocolError("the body comes in too small pieces")
        return event

    def start_next_cycle(self) -> None:
        super().start_next_cycle()
        self._reset()
