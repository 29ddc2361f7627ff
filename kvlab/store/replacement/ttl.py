"""Time to live: a key lives for a fixed time after its last use.

Hosted prompt caches work so; five minutes is their usual lifetime. With one lifetime for all keys, the key that expires
first is the least recently used one: a full tier evicts as with lru. What differs is that keys leave a tier that has
space: the store removes what ``expired`` returns before new blocks enter, a replay before each request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from kvlab.errors import StoreError
from kvlab.store.eviction_order import EvictionOrder, require_resident
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent

LIFETIME_S = 300.0


class Ttl(Replacement):
    """Evicts the key whose life ends first, by last use.

    Args:
        lifetime: seconds after its last use for which a key lives.
        clock: returns the time in seconds, of any origin; a replay gives that of its trace.

    Raises ``StoreError`` for a lifetime that is not above 0.
    """

    name = "ttl"

    def __init__(
        self, capacity: int, lifetime: float = LIFETIME_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(capacity)
        if not lifetime > 0:
            raise StoreError(f"a lifetime of {lifetime} s is none: write seconds above 0")
        self._lifetime, self._clock = lifetime, clock
        self._order = EvictionOrder()
        self._used: dict[Hashable, float] = {}

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._used)
        self._use(key)

    def touch(self, key: Hashable) -> None:
        require_resident(key, key in self._used)
        self._use(key)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        return self._order.first(evictable)

    def expired(self, evictable: Evictable = any_key) -> Hashable | None:
        """Return a key whose life has ended, among those that ``evictable`` accepts, or None; it stays resident."""
        key = self._order.first(evictable)
        return key if key is not None and self._clock() - self._used[key] > self._lifetime else None

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        self._order.remove(key)
        del self._used[key]

    def freed(self, key: Hashable) -> None:
        self._order.freed(key)

    def _use(self, key: Hashable) -> None:
        self._used[key] = self._clock()
        self._order.place(key)

    def __contains__(self, key: object) -> bool:
        return key in self._used

    def __len__(self) -> int:
        return len(self._used)
