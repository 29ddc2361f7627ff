"""``EventCounts``: the store's statistics, as far as a replay needs them."""

from __future__ import annotations

from kvlab.store.ghosts import Ghosts
from kvlab.store.stats import StoreStats


class EventCounts(StoreStats):
    """Counts blocks and sizes that entered, left and were written; remembers no keys, as no miss is to be explained.

    Attributes:
        evictions, evicted: blocks that left for good, and their size.
        insertions, inserted: blocks that entered, and their size.
        writes, written: blocks that were written below RAM, and their size.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self.ghosts = _NoGhosts()
        self.evictions = self.evicted = self.insertions = self.inserted = self.writes = self.written = 0

    def left(self, key: bytes, nbytes: int, reason: str) -> None:
        self.evictions += 1
        self.evicted += nbytes

    def stored(self, blocks: int, nbytes: int) -> None:
        self.insertions += blocks
        self.inserted += nbytes

    def spilled(self, blocks: int, nbytes: int) -> None:
        self.writes += blocks
        self.written += nbytes


class _NoGhosts(Ghosts):
    def left(self, key: bytes, reason: str) -> None: ...

    def back(self, key: bytes) -> None: ...
