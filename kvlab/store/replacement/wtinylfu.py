"""W-TinyLFU: an LRU window, and a main part that a key enters only if it was used more often than what it replaces.

Einziger, Friedman & Manes, "TinyLFU: A highly efficient cache admission policy", ACM ToS 2017; shares as in Caffeine
without its hill climber: a window of 1%, a segmented LRU of the rest. Deviations: uses are counted exactly, not by a
sketch, because a sketch over Python's hashes of bytes and strings would differ from process to process; the counts are
those of the last ten capacities of used bytes, and halving forgets the rest, so they are as bounded as a sketch. The
window holds at least one key however large, and competes as soon as one more key of the latest size would not fit.
"""

from __future__ import annotations

from collections.abc import Hashable

from kvlab.store.eviction_order import EvictionOrder
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent
from kvlab.store.replacement.slru import Slru

WINDOW_SHARE = 0.01
SAMPLE_CAPACITIES = 10
"""Counts are halved each time that so many times the capacity was used, what was halved before counting half."""
MAX_COUNT = 15
"""The largest count: that of four bits."""


class WTinyLfu(Replacement):
    """Evicts the oldest key of a full window, or the one that the main part would evict: the one of fewer uses.

    Of equal counts, the key of the window leaves.
    """

    name = "wtinylfu"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._window_capacity = max(1, int(WINDOW_SHARE * capacity))
        self._window = EvictionOrder()
        self._main = Slru(capacity - self._window_capacity)
        self._sizes: dict[Hashable, int] = {}
        self._window_bytes = self._main_bytes = self._latest_size = 0
        self._counts: dict[Hashable, int] = {}
        self._used_bytes = 0

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._sizes)
        self._sizes[key] = self._latest_size = max(size, 1)
        self._count(key, uses)
        self._window.place(key)
        self._window_bytes += self._sizes[key]
        while self._window_bytes > self._window_capacity and len(self._window) > 1:
            self._leave_window(self._window.oldest)

    def touch(self, key: Hashable) -> None:
        if key in self._window:
            self._window.place(key)
        else:
            self._main.touch(key)
        self._count(key, 1)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        found = self._loser(evictable)
        if found is None:
            self._window.unpark()
            self._main.unpark()
            found = self._loser(evictable)
        return found

    def _loser(self, evictable: Evictable) -> Hashable | None:
        """Return the victim among the keys that are not parked, or None."""
        while True:
            rival = self._main.first_unparked(evictable)
            if rival is not None and self._window_bytes + self._latest_size <= self._window_capacity:
                return rival
            candidate = self._window.first_unparked(evictable)
            if candidate is None or rival is None:
                return rival if candidate is None else candidate
            if self._main_bytes + self._sizes[candidate] > self._main.capacity:
                if self._counts.get(candidate, 0) <= self._counts.get(rival, 0):
                    return candidate
                self._leave_window(candidate)
                return rival
            self._leave_window(candidate)

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        size = self._sizes.pop(key)
        if key in self._window:
            self._window.remove(key)
            self._window_bytes -= size
        else:
            self._main.remove(key, evicted)
            self._main_bytes -= size

    def freed(self, key: Hashable) -> None:
        self._window.freed(key)
        self._main.freed(key)

    def _leave_window(self, key: Hashable) -> None:
        size = self._sizes[key]
        self._window.remove(key)
        self._window_bytes -= size
        self._main.admit(key, size)
        self._main_bytes += size

    def _count(self, key: Hashable, uses: int) -> None:
        self._counts[key] = min(MAX_COUNT, self._counts.get(key, 0) + uses)
        self._used_bytes += self._sizes[key]
        if self._used_bytes >= SAMPLE_CAPACITIES * self.capacity:
            self._counts = {name: count // 2 for name, count in self._counts.items() if count > 1}
            self._used_bytes //= 2

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)
