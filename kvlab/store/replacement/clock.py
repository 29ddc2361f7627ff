"""CLOCK, also called second chance: a queue in order of admission, and one bit a key that says it was used.

Corbató, "A paging experiment with the Multics system", MIT Project MAC 1968. Deviation: a key that may not leave (it
has descendants, or is being read) is parked with its bit, and is the next to be looked at once it is freed.
"""

from __future__ import annotations

from collections.abc import Hashable

from kvlab.store.eviction_order import EvictionOrder, require_resident
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent


class Clock(Replacement):
    """Evicts the first key of the queue that was not used since the hand last passed it.

    ``victim`` clears the bits that it passes, and moves their keys to the end of the queue. A key that was used before
    it is admitted, as after a restart, begins with its bit set.
    """

    name = "clock"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._queue = EvictionOrder()
        self._used: set[Hashable] = set()

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._queue)
        self._queue.place(key)
        if uses > 1:
            self._used.add(key)

    def touch(self, key: Hashable) -> None:
        require_resident(key, key in self._queue)
        self._used.add(key)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        while (key := self._queue.first(evictable)) in self._used:
            self._used.remove(key)
            self._queue.place(key)
        return key

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        self._queue.remove(key)
        self._used.discard(key)

    def freed(self, key: Hashable) -> None:
        self._queue.freed(key)

    def __contains__(self, key: object) -> bool:
        return key in self._queue

    def __len__(self) -> int:
        return len(self._queue)
