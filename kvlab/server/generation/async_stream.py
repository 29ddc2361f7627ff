"""From the decoder's thread to the event loop: tokens in batches, without a thread per request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from kvlab.decoder import Stream


class AsyncTokenStream:
    """The tokens of one stream, for one coroutine. Made on the event loop.

    Args:
        stream: what the decoder hands out.
        on_token: called with every token, and with None at the end, before the coroutine gets it; usually on the
            decoder's thread.
    """

    def __init__(self, stream: Stream, on_token: Callable[[int | None], None] | None = None) -> None:
        self._on_token = on_token
        self.stream = stream
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[int | None] = deque()
        self._news = asyncio.Event()
        self._told = False
        stream.listen(self._hear)

    async def next(self, timeout: float | None = None) -> list[int | None]:
        """What has arrived since the last call, at least one token; a None in it ends the request.

        Raises TimeoutError after ``timeout`` seconds of nothing.
        """
        async with asyncio.timeout(timeout):
            while not self._arrived:
                self._news.clear()
                await self._news.wait()
        batch = []
        while self._arrived:
            batch.append(self._arrived.popleft())
        return batch

    def _hear(self, token: int | None) -> None:  # on the decoder's thread
        if self._on_token is not None:
            self._on_token(token)
        self._arrived.append(token)
        if not self._told:  # one call for all that arrive until the loop gets to it
            self._told = True
            try:
                self._loop.call_soon_threadsafe(self._tell)
            except RuntimeError:  # the loop is gone: so is the client
                self.stream.cancel()

    def _tell(self) -> None:
        self._told = False
        self._news.set()
