"""The limit on concurrent generations: those that decode, and a bounded queue behind them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from kvlab.counts import counted
from kvlab.decoder.config import FAIR
from kvlab.server.errors import ApiError, shutting_down
from kvlab.server.metrics import ServerMetrics
from kvlab.server.settings import Settings

OPEN_SHARE = 0.75
"""Of the queue: so much is there for whoever comes first, the rest for single answers of who has few."""
NO_LIMIT = 1 << 40
"""Places of a queue without a limit."""


class ConcurrencyLimit:
    """Counts generations and refuses those beyond the limit. Admitted ones wait in the decoder. One event loop.

    Once places are taken, the last quarter of the queue is for requests for one answer, of tenants that hold less than
    half of all places: neither a request for many answers nor another tenant shuts them out. Where requests are
    admitted first in, first out, all of the queue is for all.
    """

    def __init__(self, settings: Settings, metrics: ServerMetrics) -> None:
        queue = NO_LIMIT if settings.queue is None else settings.queue
        self._max_generations = settings.max_concurrency + queue
        self._metrics = metrics
        share = OPEN_SHARE if settings.decoder.admission == FAIR else 1
        self._open = settings.max_concurrency + int(share * queue)
        self._busy_status = settings.busy_status
        self._generations = 0
        self._of_tenant: Counter[str] = Counter()
        self.closing = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether the server shuts down: no new generations are admitted."""
        return self.closing.is_set()

    @contextmanager
    def admit(self, n: int, tenant: str = "") -> Iterator[None]:
        """Count ``n`` generations of a tenant while the block runs.

        Raises ApiError with the settings' ``busy_status`` when the queue is full, 503 at shutdown, 400 for more than
        could ever run.
        """
        if self.closed:
            raise shutting_down()
        if n > self._max_generations:
            raise ApiError(
                400, f"the request asks for {n} answers, and this server takes {self._max_generations}: send fewer"
            )
        takes_many = n > 1 or (tenant and self._of_tenant[tenant] >= self._max_generations // 2)
        most = self._open if takes_many and self._generations else self._max_generations
        if self._generations + n > most:
            raise ApiError(
                self._busy_status,
                f"{counted(self._generations, 'generation')} running or waiting, and no more may wait; try again soon",
                code="queue_full",
                headers={"retry-after": "1"},
            )
        self._generations += n
        self._of_tenant[tenant] += n
        self._metrics.running(tenant, n)
        try:
            yield
        finally:
            self._generations -= n
            self._of_tenant[tenant] -= n
            if not self._of_tenant[tenant]:
                del self._of_tenant[tenant]
            self._metrics.running(tenant, -n)
