"""How many may be inside: a bounded queue, and room for their live KV."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvlab.server.errors import ApiError
from kvlab.server.monitor import Monitor
from kvlab.server.settings import Settings


class Gate:
    """Admits generations in the order they came. One event loop.

    With a budget of live memory a request waits until its worst case, prompt and ``max_tokens``, fits beside what is
    running; without one the decoder's own queue does the waiting, and this only counts.
    """

    def __init__(self, settings: Settings, monitor: Monitor) -> None:
        self._room = settings.max_concurrency + settings.queue
        self._budget = settings.live_memory
        self._monitor = monitor
        self._inside = 0
        self._bytes = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self.closed = False

    @asynccontextmanager
    async def enter(self, n: int, nbytes: int) -> AsyncIterator[None]:
        """Be inside with ``n`` generations that need ``nbytes`` of live KV.

        Raises ApiError 429 when too many wait already, 400 when it can never fit, 503 at shutdown.
        """
        if self.closed:
            raise ApiError(503, "the server is shutting down", headers={"retry-after": "10"})
        if self._inside + len(self._line) + n > self._room:
            raise ApiError(
                429,
                f"{self._inside} generations are running or waiting, and no more may wait; try again shortly",
                code="queue_full",
                headers={"retry-after": "1"},
            )
        if self._budget is not None and nbytes > self._budget:
            raise ApiError(
                400,
                f"this request may need {nbytes} bytes of live KV, but {self._budget} are allowed: "
                "shorten the prompt or lower max_tokens",
                code="context_length_exceeded",
            )
        while not self._fits(nbytes):
            await self._wait()
        self._inside += n
        self._bytes += nbytes
        self._monitor.running.inc(n)
        try:
            yield
        finally:
            self._inside -= n
            self._bytes -= nbytes
            self._monitor.running.dec(n)
            self._wake()

    def _fits(self, nbytes: int) -> bool:
        return self._budget is None or self._inside == 0 or self._bytes + nbytes <= self._budget

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        self._monitor.waiting.inc()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._line:
                self._line.remove(turn)
            else:  # it was this one's turn: the next must not wait for it
                self._wake()
            raise
        finally:
            self._monitor.waiting.dec()

    def _wake(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
