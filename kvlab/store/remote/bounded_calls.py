"""Ask a remote on other threads, and wait for it only so long."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from kvlab.store.remote.circuit import Circuit
from kvlab.store.remote.errors import RemoteTrouble

LOOKUP_THREADS, READ_THREADS = 2, 4
"""Threads for lookups, and for reads, which must not delay them."""
LOOKUP_GAP_S = 0.01
"""Questions that follow one another more closely belong to one lookup, but for those that begin one."""
CONNECT_S = 2.0
"""Longest time that the first connection may take, when a store is opened."""

T = TypeVar("T")


class BoundedCalls:
    """Calls functions that may block. ``wait_s`` is what one lookup may wait in all, however many questions it has.

    A question that had the whole time and no answer opens the circuit, and so does one that failed.
    """

    def __init__(self, circuit: Circuit, wait_s: float) -> None:
        self._circuit, self._wait_s = circuit, wait_s
        self._lookups = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="kvlab-remote-lookup")
        self._reads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="kvlab-remote-read")
        self._lock = threading.Lock()
        self._last_end, self._spent_s = 0.0, 0.0
        self.failed_at = float("-inf")
        self.late = 0

    def connect(self, ping: Callable[[], None]) -> None:
        """Connect before the first lookup, which would not wait so long; open the circuit where that fails.

        The first reads find connections, too: they are made meanwhile, and nothing waits for them.
        """
        with contextlib.suppress(RemoteTrouble):
            self._wait(self._lookups.submit(ping), CONNECT_S, is_whole=True)
            for _ in range(READ_THREADS):
                self._reads.submit(ping)

    def ask(self, function: Callable[..., T], *arguments: Any, otherwise: T, begins: bool = False) -> T:
        """Return what a question of a lookup gives; ``otherwise`` where that takes too long or fails.

        ``begins`` says that it is the first one of a lookup.
        """
        if self._circuit.is_open:
            self.failed_at = time.monotonic()
            return otherwise
        started = time.monotonic()
        with self._lock:
            if begins or started - self._last_end > LOOKUP_GAP_S:
                self._spent_s = 0.0
            left = self._wait_s - self._spent_s
        found = otherwise
        try:
            found = self._wait(self._lookups.submit(function, *arguments), left, is_whole=left >= self._wait_s)
        except RemoteTrouble:
            self.failed_at = time.monotonic()
        with self._lock:
            self._last_end = time.monotonic()
            self._spent_s += self._last_end - started
        return found

    def start(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Begin to read; the result is waited for with :meth:`result`."""
        return self._reads.submit(function, *arguments)

    def result(self, future: Future[T], wait_s: float, most_s: float = math.inf) -> T:
        """Return the result of a read. Raises ``RemoteTrouble``, also where it takes longer than ``wait_s``.

        So it does after ``most_s``, the time that the result is worth; the remote may be well then, and is asked anew.
        """
        if most_s >= wait_s or future.done():
            return self._wait(future, wait_s, is_whole=True)
        try:
            return self._wait(future, most_s, is_whole=False)
        except RemoteTrouble as error:
            self._circuit.trip(str(error), look_at_once=True)
            raise

    def _wait(self, future: Future[T], wait_s: float, *, is_whole: bool) -> T:
        try:
            return future.result(timeout=max(0.0, wait_s))
        except FutureTimeout:
            future.cancel()
            self.late += 1
            trouble = f"no answer within {wait_s:.3g} s"
            if is_whole:
                self._circuit.trip(trouble)
            raise RemoteTrouble(trouble) from None
        except RemoteTrouble as error:
            self._circuit.trip(str(error))
            raise

    def close(self) -> None:
        """Wait for no thread: what still blocks ends by itself."""
        for pool in (self._lookups, self._reads):
            pool.shutdown(wait=False, cancel_futures=True)
