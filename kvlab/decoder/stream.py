"""``Stream`` and ``Completion``: the tokens of a request as they come, and its figures at the end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Completion:
    """The answer to a request, and its figures.

    Attributes:
        request: its number in the decoder.
        tokens: generated token ids, without the end token.
        finish_reason: ``stop``, ``length`` or ``cancelled``.
        cached_tokens: prompt tokens that were not recomputed, by tier in ``cached_by_tier``.
        prompt_tokens: tokens of the prompt.
        miss: why the others had to be computed (see the store), empty without a store.
        queue_ms: first part of the time to first token: waiting in the queue.
        lookup_ms: second part: looking up blocks in the store.
        restore_ms: third part: copying KV at rest into live caches.
        prefill_ms: last part: computing the remaining prompt, up to the first token.
        ttft_ms: from the submission to the first token; 0 when none came.
        tpot_ms: mean time per later token.
        itl_ms: every gap between two tokens.
        kv_bytes_live: bytes of the live KV arrays that this sequence held at its end.
        tags: those of the request.
        cut_tokens: tokens that were dropped from the middle of a prompt beyond the context limit; ``prompt_tokens``
            are those that were left.
        discarded_tokens: tokens that left the context while the answer went on beyond its limit.
    """

    request: int
    tokens: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    cached_by_tier: Mapping[str, int]
    miss: str
    queue_ms: float
    lookup_ms: float
    restore_ms: float
    prefill_ms: float
    ttft_ms: float
    tpot_ms: float
    itl_ms: tuple[float, ...]
    kv_bytes_live: int
    tags: Mapping[str, Any] = field(default_factory=dict)
    cut_tokens: int = 0
    discarded_tokens: int = 0


class Stream:
    """Yields the tokens of one request as they come. Any thread may iterate it, or wait for :meth:`result`."""

    def __init__(self, request: int, cancel: Callable[[int], None]) -> None:
        self.request = request
        self._cancel = cancel
        self._tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._done = threading.Event()
        self._completion: Completion | None = None
        self._error: BaseException | None = None
        self._listener: Callable[[int | None], None] | None = None
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        """Yield token ids as they come. Raises the error that ended the request, if one did."""
        while (token := self._tokens.get()) is not None:
            yield token
        self._tokens.put(None)
        if self._error is not None:
            raise self._error

    def listen(self, listener: Callable[[int | None], None]) -> None:
        """Have ``listener`` called with every token, and with None once the request is done, in place of iterating.

        Earlier tokens are handed over at once; later calls are on the decoder's thread, so the listener must
        neither block nor raise.
        """
        with self._lock:
            while not self._tokens.empty():
                listener(self._tokens.get())
            self._listener = listener

    def cancel(self) -> None:
        """Stop within one decode step; the completion then has ``finish_reason`` ``cancelled``. Idempotent."""
        self._cancel(self.request)

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end, ``timeout`` seconds at most; return the completion.

        Raises:
            TimeoutError: the request is still running. Any error that ended the request is raised as well.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"request {self.request} is still running after {timeout} s")
        if self._error is not None:
            raise self._error
        if self._completion is None:
            raise RuntimeError(f"request {self.request} ended without a completion")
        return self._completion

    # The decoder's side.

    def push(self, token: int) -> None:
        """Hand over one token."""
        self._hand_over(token)

    def finish(self, completion: Completion) -> None:
        """End the stream with a completion."""
        self._completion = completion
        self._done.set()
        self._hand_over(None)

    def fail(self, error: BaseException) -> None:
        """End the stream with an error."""
        self._error = error
        self._done.set()
        self._hand_over(None)

    def _hand_over(self, token: int | None) -> None:
        with self._lock:
            if self._listener is not None:
                self._listener(token)
            else:
                self._tokens.put(token)
