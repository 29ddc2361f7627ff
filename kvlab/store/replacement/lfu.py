"""Least frequently used leaves first."""

from __future__ import annotations

from collections.abc import Hashable

from kvlab.store.eviction_order import EvictionOrder
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent


class Lfu(Replacement):
    """Counts uses while a key is resident; the least recently used of the least used leaves."""

    name = "lfu"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._uses: dict[Hashable, int] = {}
        self._order = EvictionOrder()

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._uses)
        self._place(key, uses)

    def touch(self, key: Hashable) -> None:
        self._place(key, self._uses[key] + 1)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        return self._order.first(evictable)

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        del self._uses[key]
        self._order.remove(key)

    def freed(self, key: Hashable) -> None:
        self._order.freed(key)

    def _place(self, key: Hashable, uses: int) -> None:
        self._uses[key] = uses
        self._order.place(key, (uses,))

    def __contains__(self, key: object) -> bool:
        return key in self._uses

    def __len__(self) -> int:
        return len(self._uses)
