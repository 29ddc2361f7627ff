"""Reading request bodies: bounded in size, in time, and in the memory of all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request
from starlette.types import Receive

from kvlab.server.errors import ApiError
from kvlab.server.limits import MAX_SMALL_BODY_BYTES
from kvlab.server.settings import Settings

TICKS_TO_END = 100
"""Turns of the event loop in which an expired request gives its memory back; it needs three."""


class BodyMemory:
    """Counts the bytes of large bodies, from their arrival to the end of their requests. One event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @contextmanager
    def reservation(self) -> Iterator[Reservation]:
        """Give a request its part; it is returned when the block ends."""
        made = Reservation(self)
        try:
            yield made
        finally:
            self.used -= made.counted


class Reservation:
    """The part of one request."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self.counted = 0

    def grow_to(self, size: int) -> None:
        """Count a body of ``size`` bytes; small ones do not count. Raises ApiError 429 when too many are held."""
        if size <= max(MAX_SMALL_BODY_BYTES, self.counted):
            return
        more = size - self.counted
        if self._memory.used + more > self._memory.limit:
            raise ApiError(
                429,
                f"requests of {self._memory.used} bytes are being answered, and no more fit; try again shortly",
                code="memory_full",
                headers={"retry-after": "1"},
            )
        self._memory.used += more
        self.counted = size


class BodyReader:
    """Reads the bodies of a server's requests. One event loop."""

    def __init__(self, settings: Settings) -> None:
        self.memory = BodyMemory(settings.body_memory)
        self._settings = settings
        self._waiting: dict[asyncio.Timeout, Reservation] = {}

    async def read(self, request: Request, receive: Receive, reservation: Reservation) -> bytes:
        """Read a whole body. Raises ApiError 400, 408, 413, or 429."""
        takes_prompt = request.method == "POST" and request.url.path.startswith("/v1/")
        limit = self._settings.max_body if takes_prompt else min(MAX_SMALL_BODY_BYTES, self._settings.max_body)
        length = request.headers.get("content-length", "0")
        # More digits than any limit has are not converted: Python's int() refuses thousands of them.
        if not (length.isascii() and length.isdigit()) or len(length) > 15 or int(length) > limit:
            raise ApiError(413, f"the request is larger than {limit} bytes")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._settings.body_seconds) as deadline:
                self._waiting[deadline] = reservation
                try:
                    while True:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise ApiError(400, "the client left before its request was complete")
                        parts.append(message.get("body", b""))
                        size += len(parts[-1])
                        if size > limit:
                            raise ApiError(413, f"the request is larger than {limit} bytes")
                        await self._reserve(reservation, size)
                        if not message.get("more_body"):
                            return b"".join(parts)
                finally:
                    self._waiting.pop(deadline, None)
        except TimeoutError:
            raise ApiError(408, "the request's body took too long to arrive") from None

    async def _reserve(self, reservation: Reservation, size: int) -> None:
        """Count a body; where memory is short, those that have been incomplete for longest end first."""
        while True:
            try:
                return reservation.grow_to(size)
            except ApiError:
                others = [at for at, other in self._waiting.items() if other.counted and other is not reservation]
                if not others:
                    raise
                del self._waiting[others[0]]
                others[0].reschedule(asyncio.get_running_loop().time())
                used = self.memory.used
                for _ in range(TICKS_TO_END):
                    await asyncio.sleep(0)
                    if self.memory.used < used:
                        break

    def close(self) -> None:
        """Let no body arrive any more: those that are incomplete get status 408 now."""
        now = asyncio.get_running_loop().time()
        for deadline in list(self._waiting):
            deadline.reschedule(now)
