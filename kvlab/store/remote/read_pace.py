"""``ReadPace``: how long a read of the remote may take, by what the last ones took."""

from __future__ import annotations

import threading
from collections import deque

MIN_BYTES_PER_S = 20e6
"""Half of the rate of a read that is waited for longest: a slower one is late."""
READS = 16
"""Reads whose rate is remembered."""
PATIENCE = 4.0
"""A read may be so many times slower than the slowest of them."""


class ReadPace:
    """Bounds the wait for a read. Any thread.

    Args:
        wait_s: seconds that an answer may take besides its bytes.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._seconds_a_byte: deque[float] = deque(maxlen=READS)

    def note(self, nbytes: int, seconds: float) -> None:
        """Take note of a read of so many bytes. One that found nothing tells nothing."""
        if nbytes > 0:
            with self._lock:
                self._seconds_a_byte.append(seconds / nbytes)

    def wait_s(self, nbytes: int) -> float:
        """Return the seconds for which a read of so many bytes may be waited for."""
        with self._lock:
            slowest = max(self._seconds_a_byte, default=float("inf"))
        return self._wait_s + nbytes * min(2 / MIN_BYTES_PER_S, PATIENCE * slowest)
