"""From the decoder's thread to the event loop: tokens in batches, without a thread for each request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from kvlab.decoder import Stream
from kvlab.server.limits import MAX_UNSENT_TOKENS


class AsyncTokenStream:
    """The tokens of one stream, for one coroutine. Made on the event loop.

    Args:
        stream: the decoder's stream of one request.
        on_token: called with every token, and with None at the end, before the coroutine gets it; usually on the
            decoder's thread.
        max_unsent: tokens that may wait for the coroutine; with more, the request is cancelled and ``overflowed`` set.
    """

    def __init__(
        self,
        stream: Stream,
        on_token: Callable[[int | None], None] | None = None,
        max_unsent: int = MAX_UNSENT_TOKENS,
    ) -> None:
        self.stream = stream
        self.overflowed = False
        self._on_token, self._max_unsent = on_token, max_unsent
        self._loop = asyncio.get_running_loop()
        self._tokens: deque[int | None] = deque()
        self._has_tokens = asyncio.Event()
        self._wakeup_is_scheduled = False
        stream.listen(self._receive)

    async def next_batch(self, timeout: float | None = None) -> list[int | None]:
        """Return the tokens that arrived since the last call, at least one; a None in them ends the request.

        Raises TimeoutError after ``timeout`` seconds without a token.
        """
        async with asyncio.timeout(timeout):
            while not self._tokens:
                self._has_tokens.clear()
                await self._has_tokens.wait()
        batch = []
        while self._tokens:
            batch.append(self._tokens.popleft())
        return batch

    def _receive(self, token: int | None) -> None:  # on the decoder's thread
        if self._on_token is not None:
            self._on_token(token)
        if token is not None and len(self._tokens) >= self._max_unsent:
            self.overflowed = True
            self.stream.cancel()  # nothing is dropped but what comes after: the client gets an error
        elif not self.overflowed or token is None:
            self._tokens.append(token)
        if not self._wakeup_is_scheduled:  # one call for all tokens that arrive before the event loop runs it
            self._wakeup_is_scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the event loop is closed, so the client is gone too
                self.stream.cancel()

    def _wake(self) -> None:
        self._wakeup_is_scheduled = False
        self._has_tokens.set()
