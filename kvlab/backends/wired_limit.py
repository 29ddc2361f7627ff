"""Metal's wired limit: one number for the process, whatever the number of generators."""

from __future__ import annotations

import threading
from collections.abc import Callable

import mlx.core as mx


class WiredLimit:
    """Counts the generators that want memory wired; the limit of before comes back when the last one has closed.

    mlx-lm's generators each raise the limit and each set it back when they close: closing one model would take the
    limit from all others.
    """

    def __init__(self, set_limit: Callable[[int], object] = mx.set_wired_limit) -> None:
        self._set_limit = set_limit
        self._lock = threading.Lock()
        self._holders = 0
        self._before = 0

    def hold(self, before: int) -> None:
        """A generator has raised the limit, which was ``before``."""
        with self._lock:
            if not self._holders:
                self._before = before
            self._holders += 1

    def release(self) -> None:
        """A generator that held the limit has closed."""
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._set_limit(self._before)


WIRED_LIMIT = WiredLimit()
