"""``DriveTimer``: times prompts and the drive beside requests, so that none of them is the one that finds out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from kvlab.backends import current
from kvlab.decoder.reuse.restore_meter import RestoreMeter
from kvlab.models import LoadedModel
from kvlab.store import Namespace, Store

WARM_UP_TOKENS = 16
TIMED_PROMPTS = (64, 256)
"""Tokens of the prompts that are timed before the first request, where the folder holds KV already."""
SLOW_S = 1.0
"""After a prompt that took longer no other one is timed."""


class DriveTimer:
    """Tells a meter of a store's drive. ``start`` and ``close`` belong to one thread, the decoder's."""

    def __init__(self, meter: RestoreMeter, store: Store, space: Namespace) -> None:
        self._meter, self._store, self._space = meter, store, space
        self._thread: threading.Thread | None = None

    def run(self) -> bool:
        """Time a read now; return whether there was a block to read."""
        found = self._store.timed_read(self._space)
        self._meter.timed(found)
        return found is not None

    def start(self) -> None:
        """Time a read on a thread of its own, unless that is under way."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self.run, name="kvlab-drive-timer", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait for the read that is under way."""
        if self._thread is not None:
            self._thread.join()


def time_prompts(loaded: LoadedModel, make: Callable[[], Sequence[Any]], meter: RestoreMeter) -> None:
    """Compute short prompts in caches that ``make`` makes, and tell the meter how long they took."""
    threads = current().threads(loaded.model)
    try:
        for tokens in (WARM_UP_TOKENS, *TIMED_PROMPTS):
            caches = make()
            threads.choose(tokens)
            started = time.perf_counter()
            mx.eval(loaded.model(mx.array([[1] * tokens]), cache=caches), [cache.state for cache in caches])
            seconds = time.perf_counter() - started
            if tokens > WARM_UP_TOKENS:
                meter.computed(0, tokens, seconds)
            if seconds > SLOW_S:
                break
    finally:
        threads.restore()
