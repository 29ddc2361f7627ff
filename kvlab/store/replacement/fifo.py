"""First in, first out: use changes nothing."""

from __future__ import annotations

from collections.abc import Hashable

from kvlab.store.eviction_order import EvictionOrder, require_resident
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent


class Fifo(Replacement):
    """Evicts in the order of admission. A key that may not leave keeps its place, and leaves once it is freed."""

    name = "fifo"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._queue = EvictionOrder()

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._queue)
        self._queue.place(key)

    def touch(self, key: Hashable) -> None:
        require_resident(key, key in self._queue)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        return self._queue.first(evictable)

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        self._queue.remove(key)

    def freed(self, key: Hashable) -> None:
        self._queue.freed(key)

    def __contains__(self, key: object) -> bool:
        return key in self._queue

    def __len__(self) -> int:
        return len(self._queue)
