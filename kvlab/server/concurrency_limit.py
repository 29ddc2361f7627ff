"""How many may be inside: those that decode, and a bounded queue behind them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kvlab.server.errors import ApiError
from kvlab.server.metrics import ServerMetrics
from kvlab.server.settings import Settings


class ConcurrencyLimit:
    """Counts generations. The decoder does the waiting, for a place and for live memory. One event loop."""

    def __init__(self, settings: Settings, monitor: ServerMetrics) -> None:
        self._room = settings.max_concurrency + settings.queue
        self._monitor = monitor
        self._inside = 0
        self.closed = False

    @contextmanager
    def enter(self, n: int) -> Iterator[None]:
        """Be inside with ``n`` generations. Raises ApiError 429 when too many wait already, 503 at shutdown."""
        if self.closed:
            raise ApiError(503, "the server is shutting down", headers={"retry-after": "10"})
        if self._inside + n > self._room:
            raise ApiError(
                429,
                f"{self._inside} generations are running or waiting, and no more may wait; try again shortly",
                code="queue_full",
                headers={"retry-after": "1"},
            )
        self._inside += n
        self._monitor.running.inc(n)
        try:
            yield
        finally:
            self._inside -= n
            self._monitor.running.dec(n)
