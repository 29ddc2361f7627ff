"""Least recently used leaves first."""

from __future__ import annotations

from collections.abc import Hashable

from kvlab.store.eviction_order import EvictionOrder, require_resident
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent


class Lru(Replacement):
    """Keeps one queue by last use. The owner touches a chain from its leaf to its head, so heads are always younger."""

    name = "lru"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._order = EvictionOrder()

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._order)
        self._order.place(key)

    def touch(self, key: Hashable) -> None:
        require_resident(key, key in self._order)
        self._order.place(key)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        return self._order.first(evictable)

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        self._order.remove(key)

    def freed(self, key: Hashable) -> None:
        self._order.freed(key)

    def __contains__(self, key: object) -> bool:
        return key in self._order

    def __len__(self) -> int:
        return len(self._order)
