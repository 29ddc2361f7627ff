"""Metal's wired limit: one number for the process, whatever the number of generators."""

from __future__ import annotations

import threading
from collections.abc import Callable

import mlx.core as mx


class WiredLimit:
    """Counts the generators that raised the limit, and resets it when the last one has closed.

    Each of mlx-lm's generators raises the limit and resets it when it closes, also while others still need it.
    """

    def __init__(self, set_limit: Callable[[int], object] = mx.set_wired_limit) -> None:
        self._set_limit = set_limit
        self._lock = threading.Lock()
        self._holders = 0
        self._before = 0

    def hold(self, before: int) -> None:
        """Count a generator that has raised the limit, which was ``before`` bytes."""
        with self._lock:
            if not self._holders:
                self._before = before
            self._holders += 1

    def release(self) -> None:
        """Count a generator that has closed; the last one resets the limit."""
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._set_limit(self._before)


WIRED_LIMIT = WiredLimit()
"""That of this process."""
