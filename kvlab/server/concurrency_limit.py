"""The limit on concurrent generations: those that decode, and a bounded queue behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from kvlab.server.errors import ApiError, shutting_down
from kvlab.server.metrics import ServerMetrics
from kvlab.server.settings import Settings


class ConcurrencyLimit:
    """Counts generations and refuses those beyond the limit. Admitted ones wait in the decoder. One event loop."""

    def __init__(self, settings: Settings, metrics: ServerMetrics) -> None:
        self._max_generations = settings.max_concurrency + settings.queue
        self._metrics = metrics
        self._generations = 0
        self.closing = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether the server shuts down: no new generations are admitted."""
        return self.closing.is_set()

    @contextmanager
    def admit(self, n: int, tenant: str = "") -> Iterator[None]:
        """Count ``n`` generations of a tenant while the block runs.

        Raises ApiError 429 when the queue is full, 503 at shutdown, 400 for more than could ever run.
        """
        if self.closed:
            raise shutting_down()
        if n > self._max_generations:
            raise ApiError(
                400, f"the request asks for {n} answers, and this server takes {self._max_generations}: send fewer"
            )
        if self._generations + n > self._max_generations:
            raise ApiError(
                429,
                f"{self._generations} generations are running or waiting, and no more may wait; try again shortly",
                code="queue_full",
                headers={"retry-after": "1"},
            )
        self._generations += n
        self._metrics.running(tenant, n)
        try:
            yield
        finally:
            self._generations -= n
            self._metrics.running(tenant, -n)
