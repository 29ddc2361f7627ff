"""Segmented LRU: a probationary queue for keys that were used once, and a protected one for keys that were used again.

Karedla, Love & Wherry, "Caching strategies to improve disk system performance", IEEE Computer 1994. The protected
segment has 80% of the capacity, as in W-TinyLFU. Deviation: the probationary segment has no limit of its own, since the
owner evicts only when the whole tier is full.
"""

from __future__ import annotations

from collections.abc import Hashable

from kvlab.store.eviction_order import EvictionOrder, first_of
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent

PROTECTED_SHARE = 0.8


class Slru(Replacement):
    """Evicts the least recently used key on probation; of the protected ones only when no other may leave.

    What overflows the protected segment goes back to the young end of the probationary one. A key that was used before
    it is admitted, as after a restart, is protected at once.
    """

    name = "slru"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._sizes: dict[Hashable, int] = {}
        self._probation, self._protected = EvictionOrder(), EvictionOrder()
        self._protected_bytes, self._protected_capacity = 0, int(PROTECTED_SHARE * capacity)

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._sizes)
        self._sizes[key] = size
        if uses > 1:
            self._protect(key)
        else:
            self._probation.place(key)

    def touch(self, key: Hashable) -> None:
        if key in self._protected:
            self._protected.place(key)
        else:
            self._probation.remove(key)
            self._protect(key)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        return first_of((self._probation, self._protected), evictable)

    def first_unparked(self, evictable: Evictable) -> Hashable | None:
        """Return the victim among the keys that are not parked, or None."""
        key = self._probation.first_unparked(evictable)
        return self._protected.first_unparked(evictable) if key is None else key

    def unpark(self) -> None:
        """Return all parked keys to their places."""
        self._probation.unpark()
        self._protected.unpark()

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        size = self._sizes.pop(key)
        if key in self._protected:
            self._protected.remove(key)
            self._protected_bytes -= size
        else:
            self._probation.remove(key)

    def freed(self, key: Hashable) -> None:
        self._probation.freed(key)
        self._protected.freed(key)

    def _protect(self, key: Hashable) -> None:
        self._protected.place(key)
        self._protected_bytes += self._sizes[key]
        while self._protected_bytes > self._protected_capacity:
            oldest = self._protected.oldest
            self._protected.remove(oldest)
            self._protected_bytes -= self._sizes[oldest]
            self._probation.place(oldest)

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)
